"""`farstep version`."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version


def main(argv: list[str]) -> int:
    """The exit code."""
    argparse.ArgumentParser(prog="farstep version").parse_args(argv)
    sys.stdout.write(f"farstep {version('farstep')}\n")
    return 0
