"""Fixtures of several folders."""

import warnings

import pytest
from _pytest.config import parse_warning_filter

from tests.support.key_checks import answering_key_checks
from tests.support.processes import KEY, trainer_and_sampler

_TINKER_WAS_USED = pytest.StashKey[bool]()
_LEFT_TO_THE_COLLECTOR = (
    "ignore::ResourceWarning",
    r"ignore:Exception ignored in. <(socket|function _SelectorTransport):pytest.PytestUnraisableExceptionWarning",
)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the filters are read
def pytest_runtest_protocol(item):
    """The `tinker` SDK leaves connections to the collector, which comes when it likes: in and after any later test."""
    if "tinker" in item.nodeid and not item.config.stash.get(_TINKER_WAS_USED, False):
        item.config.stash[_TINKER_WAS_USED] = True
        for line in _LEFT_TO_THE_COLLECTOR:
            item.config.addinivalue_line("filterwarnings", line)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config):
    """The last collection has the filters of the start."""
    if config.stash.get(_TINKER_WAS_USED, False):
        for line in _LEFT_TO_THE_COLLECTOR:
            warnings.filterwarnings(*parse_warning_filter(line, escape=False))


@pytest.fixture(scope="session")
def key_checks():
    """Whom the servers of `pair` ask about keys that are not theirs."""
    with answering_key_checks(KEY) as checks:
        yield checks


@pytest.fixture(scope="session")
def pair_home(tmp_path_factory):
    """The folder of the shared pair's store, `store`."""
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="session")
def pair(pair_home, key_checks):
    """One dp_worker and one sampler on the embedded model, for all contract tests; each test makes its own runs."""
    with trainer_and_sampler(pair_home / "store", env=key_checks.env) as servers:
        yield servers


@pytest.fixture
def service(pair, monkeypatch):
    """A `ServiceClient.local` on the shared pair."""
    from farstep import ServiceClient

    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    trainer, sampler = pair
    with ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url) as client:
        yield client


@pytest.fixture
def trainer(service):
    return service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
