"""What a promise is said to be when looking for it goes wrong: the SDK repeats a 5xx at once and for ever."""

import pytest

from farstep_infra.gateway import models
from farstep_infra.gateway.promises import calm_result_of
from farstep_infra.gateway.results import Failed, Pending
from farstep_proto.errors import Internal, NotFound, Unavailable
from farstep_serving.keys import OPERATOR


@pytest.fixture
def come_to(monkeypatch):
    async def result(error):
        async def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(models, "result_of", fail)
        return await calm_result_of(None, "S:train:0:0", caller=OPERATOR, pause_s=0.0)

    return result


async def test_what_is_away_is_waited_for(come_to):
    assert await come_to(Unavailable("the database is away")) == Pending("paused_capacity", "the database is away")


@pytest.mark.parametrize("error", [Internal("broken"), RuntimeError("broken")])
async def test_a_mistake_of_ours_fails_the_promise(come_to, error):
    result = await come_to(error)
    assert isinstance(result, Failed)
    assert result.failure.category == "server"


async def test_what_is_not_there_is_said(come_to):
    with pytest.raises(NotFound):
        await come_to(NotFound("no such model"))
