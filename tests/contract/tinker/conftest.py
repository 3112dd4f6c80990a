"""The real `tinker` SDK against a real `farstep up`: one server for all modules of a worker of the test run."""

import os

import pytest

from tests.sdk_matrix.programs import SERVED_NAMES
from tests.support.processes import KEY, Server

os.environ.setdefault("TINKER_TELEMETRY", "0")  # before the SDK is imported, which reads it once


@pytest.fixture(scope="session")
def tinker_home(tmp_path_factory):
    """The folder of the server's state."""
    return tmp_path_factory.mktemp("tinker-home")


@pytest.fixture(scope="session")
def tinker_server(tinker_home):
    """A control plane with a trainer and a sampler on the embedded model."""
    server = up(tinker_home, "--custom-losses", *(f"--served-name={name}" for name in SERVED_NAMES))
    try:
        yield server
    finally:
        server.stop()


def up(home, *flags):
    """`farstep up` in that folder."""
    return Server("farstep_infra up", "--home", home, "--port", "0", "--model", "farstep/tiny", *flags).start()


@pytest.fixture(scope="session")
def tinker_url(tinker_server):
    return tinker_server.url


@pytest.fixture(scope="session")
def tinker_key():
    return f"tml-{KEY}"


@pytest.fixture
def tinker_service(tinker_url, tinker_key):
    """A `tinker.ServiceClient` of its own session on the shared server."""
    import tinker

    service = tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key)
    try:
        yield service
    finally:
        service.close("success")


@pytest.fixture
def farstep_service(tinker_url):
    """Farstep's own client of the same control plane."""
    from farstep import ServiceClient

    with ServiceClient(base_url=tinker_url, api_key=KEY) as service:
        yield service


@pytest.fixture
def model(tinker_service):
    """A small model of its own."""
    return tinker_service.create_lora_training_client("farstep/tiny", rank=4, seed=1).result()


@pytest.fixture
def raw(tinker_url, tinker_key):
    """The wire without the SDK."""
    import httpx

    with httpx.Client(
        base_url=f"{tinker_url}/api/v1", headers={"X-API-Key": tinker_key}, timeout=60, trust_env=False
    ) as client:
        yield client
