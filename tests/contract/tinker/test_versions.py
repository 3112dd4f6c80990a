"""The contract programs under the SDK that is installed here, and under an older one where `make` has put it.

`make test-tinker` runs them under several versions in environments of their own.
"""

import sys
from pathlib import Path

import pytest

from tests.sdk_matrix.programs import SERVED_NAMES, run_programs
from tests.support.hub_folder import tinker_environment, write_tokenizer
from tests.support.processes import KEY

pytestmark = pytest.mark.timeout(300)

OLDER = Path(sys.prefix) / "tinker-0.30.4"
SOME = (
    "create a LoRA model, get_info",
    "forward and forward_backward: cross_entropy",
    "optim_step, pipelined pairs",
    "calls of several chunks, in order",
    "loss ppo",
    "save_state and exact resumption",
    "users' mistakes are told at once",
    "sample from the base model",
    "sample from weights just trained, unnamed",
    "log-probabilities of given candidates",
    "list checkpoints, weights_info",
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in SERVED_NAMES:
        write_tokenizer(folder, name)
    return folder


def failures(told):
    return "\n\n".join(f"{each.feature}\n{each.why}" for each in told.failures())


def test_all_features_work_of_the_sdk_that_is_here(hub, tinker_url):
    environment = tinker_environment(tinker_url, KEY, OMP_NUM_THREADS="1")
    told = run_programs(python=sys.executable, environment=environment, folder=hub)
    assert not told.failures(), failures(told)
    assert {report.program for report in told.reports} == {"training", "sampling", "records"}
    assert len(told.reports) > 40


@pytest.mark.skipif(not OLDER.is_dir(), reason=f"no {OLDER}: the Makefile makes it")
def test_an_older_sdk_works_as_well(hub, tinker_url):
    environment = tinker_environment(tinker_url, KEY, OMP_NUM_THREADS="1", PYTHONPATH=str(OLDER))
    told = run_programs(python=sys.executable, environment=environment, folder=hub, features=SOME)
    assert told.sdk == "0.30.4"
    assert {report.feature for report in told.reports} == set(SOME)
    assert not told.failures(), failures(told)
