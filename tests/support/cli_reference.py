"""The reference in `docs/cli.md`, from the parsers of the commands: `make docs` writes it, a test compares it."""

import argparse
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from farstep.checkpoints import Checkpoint, ImportedAdapter
from farstep.cli.main import whole_parser
from farstep.records import CreatedKey, KeyInfo, ProjectInfo, Quotas, SamplerInfo, SessionInfo, Usage
from farstep.results import LoraConfig, RunInfo

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
BEGIN = "<!-- from here on written by `make docs` -->\n"
EVERYWHERE = {"--base-url", "--home", "--json", "--help"}
# What --json prints, by the class whose fields are its keys.
RECORDS = (RunInfo, LoraConfig, Checkpoint, ImportedAdapter, SamplerInfo, SessionInfo, Usage, KeyInfo, CreatedKey)
RECORDS = (*RECORDS, ProjectInfo, Quotas)


def reference() -> str:
    """Everything below the marker."""
    return "\n".join([*_commands(), "## Keys of JSON", "", *_records(), ""])


def page() -> str:
    """The whole page, with the part above the marker as it is."""
    return PAGE.read_text().partition(BEGIN)[0] + BEGIN + "\n" + reference()


def _commands() -> Iterator[str]:
    yield "## Commands"
    yield ""
    for name, parser in _below(whole_parser()):
        yield f"### farstep {name}{_places(parser)}"
        yield ""
        yield from _described(parser)
        for below, leaf in _below(parser):
            yield f"#### farstep {name} {below}{_places(leaf)}"
            yield ""
            yield from _described(leaf)


def _below(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield _sentence(parser.description or "")
    yield ""
    told = [action for action in parser._actions if _is_told(action)]
    if not told:
        return
    yield "| argument | meaning |"
    yield "|---|---|"
    for action in told:
        yield f"| {_named(action)} | {_help(parser, action)} |"
    yield ""


def _is_told(action: argparse.Action) -> bool:
    is_place = not action.option_strings and not action.help
    is_common = bool(EVERYWHERE & set(action.option_strings))
    return not (is_place or is_common or isinstance(action, argparse._SubParsersAction))


def _places(parser: argparse.ArgumentParser) -> str:
    """What a command takes beside options, as in its usage."""
    told = ""
    for action in parser._actions:
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            told += {"?": " [{}]", "+": " {}…"}.get(str(action.nargs), " {}").format(_value(action))
    return told


def _named(action: argparse.Action) -> str:
    value = _value(action).replace("|", "\\|")
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{option}`" if action.nargs == 0 else f"`{option} {value}`" for option in action.option_strings)


def _value(action: argparse.Action) -> str:
    return "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _sentence(text: str) -> str:
    text = f"{text[:1].upper()}{text[1:]}"
    return text if text.endswith(".") else f"{text}."


def _records() -> Iterator[str]:
    yield "| of | keys |"
    yield "|---|---|"
    for record in RECORDS:
        yield f"| `{record.__name__}` | {', '.join(f'`{field.name}`' for field in fields(record))} |"


if __name__ == "__main__":
    PAGE.write_text(page())
