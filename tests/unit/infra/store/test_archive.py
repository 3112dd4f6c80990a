"""Checkpoints as callers see them: their own, as they are; others', not at all."""

import pytest

from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.errors import NotFound
from farstep_proto.names import CheckpointPath
from farstep_serving.keys import OPERATOR, Caller

ANNE = Caller("1", "anne")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def checkpoints(tmp_path, clock):
    store = CheckpointStore(tmp_path / "store", clock=clock)
    for name, meta in (("anne", {"project": "anne"}), ("bob", {"project": "bob"}), ("unmarked", {})):
        store.write(path_of(name), {"file": b"1"}, meta, ttl_seconds=50)
    return Checkpoints(store, secret="s", clock=clock)


def path_of(name):
    return CheckpointPath("run", "weights", name)


async def names(checkpoints):
    return [each.checkpoint_id.rpartition("/")[2] for each in (await checkpoints.list("run")).checkpoints]


@pytest.mark.parametrize(
    ("caller", "owns_unmarked", "seen"),
    [
        (OPERATOR, False, ["anne", "bob", "unmarked"]),
        (ANNE, False, ["anne"]),
        (ANNE, True, ["anne", "unmarked"]),
        (Caller("2", "carl"), False, []),
        (Caller("3", ""), False, []),
    ],
)
async def test_everybody_sees_what_is_his(checkpoints, caller, owns_unmarked, seen):
    view = checkpoints.seen_by(caller, owns_unmarked=owns_unmarked)
    assert await names(view) == seen
    for name in ("anne", "bob", "unmarked"):
        calls = [
            lambda path: view.get(path),
            lambda path: view.set_ttl(path, 50),
            lambda path: view.archive(path, base_url="http://here", page=""),
        ]
        for call in calls:
            if name in seen:
                await call(path_of(name))
            else:
                with pytest.raises(NotFound) as theirs:
                    await call(path_of(name))
                with pytest.raises(NotFound) as nobodys:
                    await call(path_of("nothing"))
                assert theirs.value.message.replace(name, "nothing") == nobodys.value.message
        if name not in seen:
            with pytest.raises(NotFound):
                await view.delete(path_of(name))
    assert await names(checkpoints) == ["anne", "bob", "unmarked"]


async def test_of_others_it_is_not_said_that_they_have_expired(checkpoints, clock):
    clock.now += 100
    view = checkpoints.seen_by(ANNE, owns_unmarked=False)
    with pytest.raises(NotFound, match="has expired"):
        await view.get(path_of("anne"))
    with pytest.raises(NotFound, match=r"no checkpoint bt://loops:run/weights/bob$"):
        await view.get(path_of("bob"))
