"""What is said of an operation that waits, by what its trainer answers."""

import httpx
import pytest

from farstep_infra.gateway import waits
from farstep_infra.gateway.channel import Channel
from farstep_infra.gateway.results import Pending
from farstep_infra.gateway.seqs import SeqMap
from farstep_proto.v1 import common_pb2, training_pb2
from farstep_proto.v1 import operations_pb2 as pb

RUN = "s:train:0"
QUEUED, RUNNING = pb.OPERATION_STATE_QUEUED, pb.OPERATION_STATE_RUNNING


async def said(state=QUEUED, *, place=0, missing=(), status=200, trouble="", seq=9):
    """With how often the trainer was asked."""
    asked = []

    def handle(request):
        asked.append(request.url.path)
        if status != 200:
            return httpx.Response(status, content=common_pb2.Error(message="no").SerializeToString())
        if request.url.path.endswith(f"/{RUN}"):
            return httpx.Response(200, content=training_pb2.Run(missing_seqs=missing).SerializeToString())
        return httpx.Response(200, content=pb.Operation(state=state, queue_place=place).SerializeToString())

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
        channel = Channel("http://trainer", client)
        channel.trouble = trouble
        return await waits.looked_at(channel, f"{RUN}:{seq}", SeqMap(), project="p"), len(asked)


async def test_what_runs_waits_for_nothing():
    assert await said(RUNNING) == (Pending(), 1)
    assert await said(QUEUED) == (Pending(), 2)  # it is next


@pytest.mark.parametrize(("place", "reason"), [(1, "1 operation will run before it"), (7, "7 operations will run")])
async def test_a_place_in_the_queue_is_told(place, reason):
    pending, _ = await said(place=place)
    assert pending.state == "paused_capacity"
    assert pending.reason.startswith(reason)


async def test_what_is_missing_behind_it_is_nothing_to_it():
    pending, _ = await said(place=2, missing=[10, 11])
    assert pending.reason == "2 operations will run before it"
    pending, _ = await said(place=2, missing=[4, 8, 10])
    assert "2 earlier operations of this model (seq_id 3, 7) never came" in pending.reason


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_a_trainer_that_does_not_say_leaves_it_open(status):
    assert (await said(status=status))[0] == Pending()


async def test_a_trainer_that_is_away_is_not_asked():
    assert await said(trouble="connection refused") == (Pending("paused_capacity", "connection refused"), 0)
