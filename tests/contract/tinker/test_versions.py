"""The contract programs under the SDK that is installed here, and under an older one where `make` has put it.

`make test-tinker` runs them under several versions in environments of their own.
"""

import sys
from pathlib import Path

import pytest

from tests.sdk_matrix.programs import NAMES, SERVED_NAMES, run_program
from tests.support.hub_folder import tinker_environment, write_tokenizer
from tests.support.processes import KEY

pytestmark = pytest.mark.timeout(300)

OLDER = Path(sys.prefix) / "tinker-0.30.4"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in SERVED_NAMES:
        write_tokenizer(folder, name)
    return folder


@pytest.mark.parametrize("program", NAMES)
@pytest.mark.parametrize("sdk", ["here", "older"])
def test_everything_works_that_the_sdk_has(program, sdk, hub, tinker_url):
    more = {}
    if sdk == "older":
        if not OLDER.is_dir():
            pytest.skip(f"no {OLDER}: the Makefile makes it")
        more["PYTHONPATH"] = str(OLDER)
    environment = tinker_environment(tinker_url, KEY, OMP_NUM_THREADS="1", **more)
    told = run_program(program, python=sys.executable, environment=environment, folder=hub)
    assert told.sdk == ("0.30.4" if sdk == "older" else told.sdk)
    assert not told.failures(), "\n\n".join(f"{each.feature}\n{each.why}" for each in told.failures())
