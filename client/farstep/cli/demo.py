"""`farstep demo`: hands over to the application `farstep_demo`, which is a user of this package."""

from __future__ import annotations

import runpy
import sys


def main(argv: list[str]) -> int:
    """Ends the process with the demo's exit code."""
    sys.argv[1:] = argv
    runpy.run_module("farstep_demo", run_name="__main__")
    raise AssertionError("the demo ends the process")
