"""Stores of both kinds: a directory of its own for each test, and a bucket of a server that all of them share."""

import pytest

from farstep_infra.store.checkpoints import open_store
from tests.support.s3 import new_bucket, s3_server


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def s3():
    with s3_server() as url:
        yield url


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["directory", "s3"])
def place(request, tmp_path):
    """Where a store is, as `--store` takes it."""
    if request.param == "directory":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://{new_bucket()}/some/prefix"


@pytest.fixture
def any_store(place, clock):
    return open_store(place, clock=clock)


@pytest.fixture
def bucket(s3):
    return new_bucket()
