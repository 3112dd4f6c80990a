"""Every contract program under several versions of the `tinker` SDK, each in an environment of its own.

python -m tests.sdk_matrix [--version X …] [--write]
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from farstep.cli.local_stack import LocalStack
from tests.sdk_matrix.environments import KNOWN, OLDER, environment, newest
from tests.sdk_matrix.programs import SERVED_NAMES, run_programs
from tests.sdk_matrix.table import put_into_page, table_of
from tests.support.hub_folder import tinker_environment, write_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="append", help="instead of the newest, 0.38.0 and 0.30.4")
    parser.add_argument("--environments", type=Path, default=Path(".venv-tinker"), help="(default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="the table into docs/tinker.md")
    parser.add_argument("--json", type=Path, help="all reports into this file")
    arguments = parser.parse_args()
    versions = arguments.version or _versions()
    told = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in SERVED_NAMES:
            write_tokenizer(folder, name)
        names = [f"--served-name={name}" for name in SERVED_NAMES]
        with LocalStack(home=folder / "home", more=names) as stack:
            for version in versions:
                python = environment(version, arguments.environments.absolute())
                print(f"tinker {version}", flush=True)
                surroundings = tinker_environment(stack.base_url, stack.api_key)
                told.append(run_programs(python=python, environment=surroundings, folder=folder))
                for report in told[-1].failures():
                    print(f"{report.program}: {report.feature}\n{report.why}", flush=True)
    table = table_of(told)
    print(table)
    if arguments.write:
        put_into_page(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in told], indent=1))
    return 1 if any(each.failures() for each in told) else 0


def _versions() -> list[str]:
    found = newest()
    if found == KNOWN:
        print(f"the newest on the registry is {KNOWN} itself: it is run once", flush=True)
    return list(dict.fromkeys((found, KNOWN, OLDER)))


if __name__ == "__main__":
    raise SystemExit(main())
