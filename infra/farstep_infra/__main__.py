"""The command line of the control plane: `python -m farstep_infra up`."""

from __future__ import annotations

import argparse
import sys

from farstep_infra import settings, up


def main() -> int:
    parser = argparse.ArgumentParser(prog="farstep_infra", description="Farstep's control plane")
    commands = parser.add_subparsers(dest="command", required=True)
    settings.add_arguments(commands.add_parser("up", help="run control plane, trainer and sampler until stopped"))
    return up.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
