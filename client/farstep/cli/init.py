"""`farstep init`: a folder to begin with: a configuration and data that run as they are, on the embedded model.

It never overwrites, and says of each file what it did. Where there is no terminal to ask, it asks nothing.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from farstep.cli import command
from farstep.cli.output import print_json, print_lines

TEMPLATES = {
    "sft-chat": "conversations, of which the assistant's turns are learnt",
    "classify": "texts to labels as JSON, with a score of the answers",
    "preference": "chosen and rejected answers (DPO)",
    "math-rl": "additions, rewarded when they are right (GRPO)",
    "tool-agent": "an agent in three turns, rewarded for using its tool (GRPO)",
}


def main(argv: list[str]) -> int:
    return command.run_here("init", add_arguments, argv, _init)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a configuration with data, in small, that `farstep train` runs as it is on the embedded model. "
        "Templates: " + "; ".join(f"{name}: {what}" for name, what in TEMPLATES.items()) + "."
    )
    parser.add_argument("template", nargs="?", choices=list(TEMPLATES), help="(default: is asked for)")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="(default: the template's name)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _init(arguments: argparse.Namespace) -> int:
    template = arguments.template or _asked()
    folder = arguments.folder or Path(template)
    actions = [(path, _written(source, path)) for source, path in _files(template, folder)]
    if arguments.json:
        print_json([{"file": str(path), "action": action} for path, action in actions])
        return 0
    program = "train.py" if (folder / "train.py").is_file() else "config.yaml"
    print_lines([f"{action:6}  {path}" for path, action in actions])
    print_lines(["", f"cd {folder} && farstep check {program} && farstep train {program} --dry-run"])
    return 0


def _asked() -> str:
    """Of whoever sits at the terminal.

    Raises:
        Refused: nobody does, or there is no such template.
    """
    names = list(TEMPLATES)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise command.Refused(
            "say which: farstep init TEMPLATE [FOLDER] [--json]; templates: "
            + ", ".join(f"{name} ({what})" for name, what in TEMPLATES.items())
        )
    for index, name in enumerate(names, start=1):
        sys.stderr.write(f"  {index}  {name:11} {TEMPLATES[name]}\n")
    sys.stderr.write("which? ")
    sys.stderr.flush()
    said = sys.stdin.readline().strip()
    if said.isdecimal() and 1 <= int(said) <= len(names):
        return names[int(said) - 1]
    if said not in names:
        raise command.Refused(f"no template {said!r}; nothing was written")
    return said


def _files(template: str, folder: Path) -> list[tuple[Traversable, Path]]:
    found = resources.files("farstep.cli") / "templates" / template
    return sorted(
        ((each, folder / each.name) for each in found.iterdir() if each.is_file()), key=lambda pair: pair[1].name
    )


def _written(source: Traversable, path: Path) -> str:
    """What was done: `create`, or `keep` where there is something of that name already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(source.read_bytes())
    except FileExistsError as error:
        if path.parent.is_dir():
            return "keep"
        raise command.Refused(f"{path.parent} is no folder") from error
    except OSError as error:
        raise command.Refused(f"{path}: {error.strerror}") from error
    return "create"
