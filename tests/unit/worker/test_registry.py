"""Runs come and go beside the operations of others: made at once, bounded in number, deleted with all that waits."""

import asyncio
import time

from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from tests.unit.worker.wire import ADAM, PROTO, error_of, serving, until

SUCCEEDED = operations_pb2.OPERATION_STATE_SUCCEEDED


async def test_a_run_is_created_while_another_runs_operation_is_computed(trainer, gated, request_of):
    gated.gate.clear()
    await trainer.submit("forward", request_of(), 1)
    await until(lambda: trainer.dispatcher.is_computing)
    created = await asyncio.wait_for(trainer.create("late"), 10)
    assert created.status_code == 200
    assert trainer.dispatcher.is_computing
    gated.gate.set()
    await trainer.submit("forward_backward", request_of(), 1, run_id="late")
    assert (await trainer.outcome("late:1")).state == SUCCEEDED


async def test_two_clients_that_create_the_same_run_get_one(trainer):
    twice = await asyncio.gather(trainer.create("twin"), trainer.create("twin"), trainer.create("twin", rank=8))
    assert sorted(response.status_code for response in twice) == [200, 200, 409]


async def test_more_runs_than_there_may_be_are_refused_until_one_is_deleted(gated):
    async with serving(gated, max_runs=2) as trainer:
        assert [(await trainer.create(f"run-{i}")).status_code for i in range(2)] == [200, 200]
        refused = await trainer.create("run-2")
        error = error_of(refused)
        assert (refused.status_code, error.error_class, error.field) == (409, "ConflictError", "run_id")
        assert "2 runs" in error.message
        assert "delete_run" in error.hint
        assert "--max-runs" in error.hint
        assert (await trainer.create("run-1")).status_code == 200  # it is there
        assert (await trainer.http.delete("/v1/runs/run-0")).status_code == 200
        assert (await trainer.create("run-2")).status_code == 200


async def test_what_waits_of_a_deleted_run_fails_and_other_runs_go_on(trainer, gated, request_of):
    await trainer.create("other")
    gated.gate.clear()
    await trainer.submit("forward_backward", request_of(), 1)
    await until(lambda: trainer.dispatcher.is_computing)
    await trainer.submit("optim_step", ADAM, 2)
    await trainer.submit("publish", pb.PublishRequest(), 3)
    await trainer.submit("forward", request_of(), 5)  # behind a gap
    await trainer.submit("forward", request_of(), 4, part=0, parts=2)
    await trainer.submit("forward", request_of(), 1, run_id="other")
    started = time.monotonic()
    assert (await trainer.http.delete("/v1/runs/run")).status_code == 200
    for seq in (1, 2, 3, 5):
        error = (await trainer.outcome(f"run:{seq}", wait_s=5)).error
        assert (error.error_class, "run run was deleted" in error.message) == ("RunDeletedError", True)
    assert time.monotonic() - started < 5  # also that of the operation that is still computed
    assert trainer.dispatcher.is_computing
    gated.gate.set()
    assert (await trainer.outcome("other:1")).state == SUCCEEDED
    assert gated.runs.keys() == {"other"}
    assert trainer.dispatcher.telemetry.last("run", 9) == []


async def test_a_deleted_run_is_gone_for_good_and_its_checkpoints_stay(trainer, request_of):
    await trainer.submit("save_state", pb.SaveStateRequest(name="a"), 1)
    await trainer.submit("publish", pb.PublishRequest(), 2)
    await trainer.outcome("run:2")
    assert (await trainer.http.delete("/v1/runs/run")).status_code == 200
    assert (await trainer.http.delete("/v1/runs/run")).status_code == 200  # the answer may have been lost
    for response in (
        await trainer.http.get("/v1/runs/run"),
        await trainer.http.get("/v1/runs/run/trace"),
        await trainer.submit("forward", request_of(), 3),
    ):
        assert response.status_code == 404
    assert (await trainer.http.get("/v1/runs")).json() == {}
    assert (await trainer.http.get("/policy_version")).json() == {}
    assert (await trainer.http.get("/v1/checkpoints/run/weights/a")).status_code == 200
    again = await trainer.create("run")
    assert (again.status_code, error_of(again).message) == (409, "run run was deleted")
    await trainer.create("next")
    load = pb.LoadStateRequest(path="bt://loops:run/weights/a", optimizer=True)
    await trainer.submit("load_state", load, 1, run_id="next")
    assert (await trainer.outcome("next:1")).state == SUCCEEDED


async def test_the_policy_of_a_deleted_run_is_offered_to_nobody(trainer, gated, request_of):
    feed = trainer.dispatcher._feed
    await trainer.submit("publish", pb.PublishRequest(), 1)
    await trainer.outcome("run:1")
    gated.gate.clear()
    await trainer.submit("publish", pb.PublishRequest(), 2)
    await until(lambda: trainer.dispatcher.is_computing)
    await trainer.http.delete("/v1/runs/run")
    gated.gate.set()
    await until(lambda: not trainer.dispatcher.is_computing)
    assert feed._newest == {}


async def test_a_run_that_never_was_cannot_be_deleted(trainer):
    response = await trainer.http.delete("/v1/runs/none", headers=PROTO)
    assert (response.status_code, error_of(response).field) == (404, "run_id")
