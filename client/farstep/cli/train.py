"""`farstep train`: runs a trainer to its end, and says beforehand what it will do and meanwhile how it goes.

Exit codes: 0 completed, 1 failed or refused, 130 cancelled. The first Ctrl-C (or SIGTERM) ends the run at the next step
boundary with a checkpoint, the second at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from farstep.cli import command
from farstep.cli.narration import Narrator
from farstep.cli.output import print_error, print_json_line
from farstep.cli.program import Program, add_program
from farstep.cli.registered import known_names

if TYPE_CHECKING:
    from farstep.trainers.trainer import Trainer

_CANCELLED = 130


def main(argv: list[str]) -> int:
    epilog = known_names(argv) if {"-h", "--help"} & set(argv) else ""
    return command.run_here("train", add_arguments, argv, _train, epilog=epilog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains as a config.yaml, or a Python file that defines a trainer, says: checks everything first, shows what "
        "it is about to do, trains, saves, and writes a report."
    )
    add_program(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="the same in small, through every stage: at most 50 rows and 10 steps"
    )
    parser.add_argument("--json", action="store_true", help="print the run's events, a JSON object a line")
    command.add_connection(parser)


def _train(arguments: argparse.Namespace) -> int:
    narrator, program = Narrator(in_json=arguments.json), Program.of(arguments)
    narrator.begin(program.path)
    from farstep.trainers.lifecycle import TrainerState
    from farstep.trainers.preview import LaunchPreview

    trainer = program.trainer()
    if trainer.state is not TrainerState.CREATED:
        raise command.Refused(
            f"{arguments.file}: the trainer is {trainer.state} already; leave that to `farstep train`"
        )
    if arguments.dry_run:
        trainer.check_config(trainer.config.for_dry_run())
    trainer.add_event_sink(print_json_line if arguments.json else narrator)
    _look_first(trainer)
    try:
        with trainer:
            trainer.init()
            narrator.preview(LaunchPreview.of(trainer))
            with stopping(trainer):
                trainer.train()
    finally:
        narrator.end(trainer)
    return 0 if str(trainer.state) == TrainerState.COMPLETED else _CANCELLED


def _look_first(trainer: Trainer) -> None:
    """Everything that can be wrong without a server, before one is asked for anything.

    Raises:
        Refused: naming all that is wrong.
    """
    from farstep.trainers.preflight import preflight

    wrong = [finding for finding in preflight(trainer, with_tokens=False) if finding.is_bad]
    for finding in wrong:
        print_error(f"{finding.what}: {finding.detail}")
    if wrong:
        raise command.Refused("nothing was started")


@contextmanager
def stopping(trainer: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run at the next step boundary; again, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    has_asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal has_asked
        if has_asked:
            raise KeyboardInterrupt
        has_asked = True
        trainer.cancel("interrupted from the keyboard" if number == signal.SIGINT else "asked to end by SIGTERM")
        sys.stderr.write("\nending after this step, with a checkpoint; Ctrl-C again ends at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
