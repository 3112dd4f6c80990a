"""`farstep process-data`: makes tokens of a configuration's data, into its cache. Needs neither a GPU nor a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from farstep.cli import command
from farstep.cli.output import print_json, print_lines
from farstep.cli.program import Program, add_program


def main(argv: list[str]) -> int:
    return command.run_here("process-data", add_arguments, argv, _process)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads, mixes and tokenises the data of a configuration and keeps it in data.cache_dir, where training "
        "finds it. It needs a tokenizer, and neither a GPU nor a server."
    )
    add_program(parser)
    parser.add_argument("--cache-dir", metavar="FOLDER", help="instead of data.cache_dir")
    parser.add_argument(
        "--max-length", type=command.positive, metavar="N", help="what the model takes (default: data.max_length)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _process(arguments: argparse.Namespace) -> int:
    from farstep.trainers.data import process_data
    from farstep.trainers.preflight import local_tokenizer

    trainer = Program.of(arguments).trainer()
    if arguments.cache_dir is not None:
        trainer.check_config({"data": {"cache_dir": arguments.cache_dir}})
    config = trainer.config
    if trainer.requires_rollout:
        raise command.Refused(
            f"prompts of {trainer.name!r} become tokens as they are asked: nothing to process; see `farstep check`"
        )
    tokenizer = local_tokenizer(config)
    sets = process_data(config, tokenizer, max_length=arguments.max_length, progress=_bar())
    parts = {"train": sets.train, "eval": sets.eval}
    told = {name: part for name, part in parts.items() if part is not None}
    if arguments.json:
        print_json(
            {name: {"from_cache": part.from_cache, **part.report.to_dict()} for name, part in told.items()}
            | {"cache_dir": config.data.cache_dir}
        )
    else:
        found = {True: "was there already", False: "made"}
        print_lines([f"{name}: {found[part.from_cache]}: {part.report}" for name, part in told.items()])
    return 0


def _bar() -> Callable[[int, int], None] | None:
    """Rows done, on a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        sys.stderr.write(f"\r{done:,} of {total:,} rows" + ("\n" if done >= total else ""))

    return show
