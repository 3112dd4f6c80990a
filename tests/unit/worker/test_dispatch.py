"""Operations from submission to outcome: once, in order, in parts, cancelled, given up, drained."""

import asyncio

import pytest

from farstep_proto.tensors import tensor_from_proto
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.operations import QueueLimits
from tests.unit.worker.wire import ADAM, error_of, serving, until


async def test_one_round_of_training(trainer, request_of):
    assert (await trainer.submit("forward_backward", request_of(), 1)).status_code == 202
    await trainer.submit("optim_step", ADAM, 2)
    await trainer.submit("save_state", pb.SaveStateRequest(name="a"), 3)
    await trainer.submit("publish", pb.PublishRequest(), 4)
    await trainer.submit("load_state", pb.LoadStateRequest(path="bt://loops:run/weights/a", optimizer=True), 5)
    await trainer.submit("reset", pb.ResetRequest(lora_rank=2), 6)
    outcomes = [await trainer.outcome(f"run:{seq}") for seq in range(1, 7)]
    assert {o.state for o in outcomes} == {operations_pb2.OPERATION_STATE_SUCCEEDED}, outcomes
    kinds = [o.WhichOneof("outcome") for o in outcomes]
    assert kinds == ["forward_backward", "optim_step", "save_weights", "save_weights", "load_weights", "empty"]
    assert outcomes[4].load_weights.step == 1
    logprobs = [tensor_from_proto(o.fields["logprobs"]) for o in outcomes[0].forward_backward.loss_fn_outputs]
    assert [len(array) for array in logprobs] == [5, 12, 3, 9]
    assert (await trainer.http.get("/policy_version")).json() == {"versions": {"run": "1"}}
    run = (await trainer.http.get("/v1/runs/run")).json()
    assert (run["policy_version"], run["next_seq"], run["lora"]["rank"]) == ("1", "7", 2)


async def test_json_by_hand(trainer):
    body = {
        "loss_fn": "cross_entropy",
        "data": [
            {
                "model_input": {"chunks": [{"encoded_text": {"ids": [5, 6, 7]}}]},
                "loss_fn_inputs": {"target_tokens": {"dtype": "DTYPE_INT64", "values": [6, 7, -100]}},
            }
        ],
    }
    accepted = await trainer.http.post("/v1/runs/run/forward?seq=1", json=body)
    assert accepted.status_code == 202
    outcome = (await trainer.http.get(f"/v1/operations/{accepted.json()['operation_id']}?wait_s=20")).json()
    assert outcome["forward_backward"]["metrics"]["tokens:sum"] == 2


async def test_operations_run_in_seq_order_whatever_the_order_of_arrival(trainer, gated, request_of):
    await trainer.submit("optim_step", ADAM, 3)
    await trainer.submit("forward_backward", request_of(), 2)
    await trainer.submit("forward", request_of(), 4)
    assert gated.order == []
    await trainer.submit("reset", pb.ResetRequest(lora_rank=4), 1)
    assert (await trainer.outcome("run:4")).state == operations_pb2.OPERATION_STATE_SUCCEEDED
    assert [name for _, name in gated.order] == ["Reset", "Pass", "AdamSettings", "Pass"]


async def test_a_submission_that_arrives_often_runs_once(trainer, gated, request_of):
    message = request_of()
    responses = await asyncio.gather(*(trainer.submit("forward_backward", message, 1) for _ in range(5)))
    assert {response.status_code for response in responses} == {202}
    await trainer.outcome("run:1")
    assert (await trainer.submit("forward_backward", message, 1)).status_code == 202
    assert len(gated.order) == 1
    other = await trainer.submit("forward_backward", request_of(seed=5), 1)
    assert (other.status_code, error_of(other).error_class, error_of(other).field) == (409, "ConflictError", "seq")
    assert (await trainer.submit("forward", message, 1)).status_code == 409


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 0, 1, 1)])
async def test_an_operation_in_parts_is_one_operation(trainer, gated, request_of, order):
    whole = request_of(lengths=(5, 12, 3, 9))
    pieces = [pb.ForwardRequest(loss_fn=whole.loss_fn, data=whole.data[a:b]) for a, b in ((0, 1), (1, 3), (3, 4))]
    for part in order:
        response = await trainer.submit("forward_backward", pieces[part], 1, part=part, parts=3)
        assert response.status_code == 202
    in_parts = (await trainer.outcome("run:1")).forward_backward
    assert (await trainer.submit("forward_backward", pieces[1], 1, part=1, parts=3)).status_code == 202  # late
    assert (await trainer.submit("forward_backward", pieces[0], 1, part=1, parts=3)).status_code == 409
    await trainer.submit("forward_backward", whole, 2)
    assert (await trainer.outcome("run:2")).forward_backward == in_parts
    assert len(gated.order) == 2


async def test_a_missing_part_keeps_the_operation_waiting_and_skip_gives_it_up(trainer, gated, request_of):
    piece = request_of()
    await trainer.submit("forward_backward", piece, 1, part=0, parts=2)
    await trainer.submit("forward", request_of(), 2)
    bad = await trainer.submit("forward_backward", pb.ForwardRequest(loss_fn="cross_entropy"), 1, part=1, parts=2)
    assert (bad.status_code, error_of(bad).field) == (400, "part[1].data")
    assert gated.order == []
    assert (await trainer.submit("skip", pb.SkipRequest(), 1)).status_code == 202
    assert (await trainer.outcome("run:2")).state == operations_pb2.OPERATION_STATE_SUCCEEDED
    assert (await trainer.outcome("run:1")).WhichOneof("outcome") == "empty"


async def test_skip_of_what_arrived_is_a_conflict(trainer, request_of):
    await trainer.submit("forward", request_of(), 1)
    assert (await trainer.submit("skip", pb.SkipRequest(), 1)).status_code == 409


async def test_a_queued_operation_can_be_cancelled(trainer, gated, request_of):
    gated.gate.clear()
    for seq in (1, 2, 3):
        accepted = await trainer.submit("forward", request_of(), seq)
    assert operations_pb2.Accepted.FromString(accepted.content).queue_place >= 2
    await until(lambda: trainer.dispatcher.is_computing)
    assert (await trainer.http.post("/v1/operations/run:2/cancel")).json() == {"cancelled": True}
    assert (await trainer.http.post("/v1/operations/run:2/cancel")).json() == {}  # no, not again
    assert (await trainer.http.post("/v1/operations/run:1/cancel")).json() == {}  # it runs
    assert (await trainer.http.post("/v1/operations/run:9/cancel")).status_code == 404
    gated.gate.set()
    states = [(await trainer.outcome(f"run:{seq}")).state for seq in (1, 2, 3)]
    succeeded, cancelled = operations_pb2.OPERATION_STATE_SUCCEEDED, operations_pb2.OPERATION_STATE_CANCELLED
    assert states == [succeeded, cancelled, succeeded]


async def test_one_poll_brings_all_and_again_until_acknowledged(trainer, request_of):
    for seq in range(1, 21):
        await trainer.submit("forward", request_of(lengths=(2,)), seq)
    await trainer.outcome("run:20")
    for _ in range(2):
        response = await trainer.poll()
        assert [operation.operation_id for operation in response.finished] == [f"run:{seq}" for seq in range(1, 21)]
    last = await trainer.poll(ack=[operation.operation_id for operation in response.finished], wait_s=0)
    assert not last.finished


async def test_a_failed_operation_is_an_outcome_and_the_run_goes_on(trainer, request_of):
    await trainer.submit("optim_step", ADAM, 1)
    await trainer.submit("forward", request_of(), 2)
    failed = await trainer.outcome("run:1")
    assert failed.state == operations_pb2.OPERATION_STATE_FAILED
    assert failed.error.error_class == "NoGradientError"
    assert (await trainer.outcome("run:2")).state == operations_pb2.OPERATION_STATE_SUCCEEDED


async def test_runs_take_turns(trainer, gated, request_of):
    await trainer.create("other")
    gated.gate.clear()
    message = request_of(lengths=(4, 4))
    for run_id in ("run", "other"):
        for seq in range(1, 5):
            await trainer.submit("forward", message, seq, run_id=run_id)
    gated.gate.set()
    await asyncio.gather(trainer.outcome("run:4"), trainer.outcome("other:4"))
    assert {run_id for run_id, _ in gated.order[:3]} == {"run", "other"}
    assert {run_id for run_id, _ in gated.order[5:]} == {"run", "other"}


async def test_a_gap_is_given_up_in_the_end(gated, request_of):
    async with serving(gated, gap_wait_s=0.05) as trainer:
        await trainer.create()
        await trainer.submit("forward", request_of(), 2)
        outcome = await trainer.outcome("run:2")
        assert outcome.error.error_class == "MissingOperationError"
        assert "seq 1 of run run never came" in outcome.error.message
        assert (await trainer.submit("forward", request_of(), 1)).status_code == 409
        await trainer.submit("forward", request_of(), 3)
        assert (await trainer.outcome("run:3")).state == operations_pb2.OPERATION_STATE_SUCCEEDED


async def test_overload_is_refused_for_now(gated, request_of):
    async with serving(gated, limits=QueueLimits(max_operations=3)) as trainer:
        await trainer.create()
        gated.gate.clear()
        statuses = [(await trainer.submit("forward", request_of(), seq)).status_code for seq in range(1, 7)]
        refused = await trainer.submit("forward", request_of(), 7)
        assert statuses[0] == 202
        assert (refused.status_code, error_of(refused).error_class) == (429, "RateLimitError")
        assert float(refused.headers["retry-after"]) >= 1
        gated.gate.set()
        first_refused = statuses.index(429) + 1
        await trainer.outcome(f"run:{first_refused - 1}")
        assert (await trainer.submit("forward", request_of(), first_refused)).status_code == 202


async def test_large_bodies_are_read_beside_the_loop(trainer, request_of):
    message = request_of(lengths=(40,) * 100)
    assert message.ByteSize() > 64 << 10
    await trainer.submit("forward", message, 1)
    outcome = await trainer.outcome("run:1")
    assert len(outcome.forward_backward.loss_fn_outputs) == 100


async def test_draining_lets_the_running_one_finish_and_tells_the_rest(trainer, gated, request_of):
    gated.gate.clear()
    for seq in (1, 2, 4):
        await trainer.submit("forward", request_of(), seq)
    await until(lambda: trainer.dispatcher.is_computing)
    parked = asyncio.create_task(trainer.poll())
    drained = trainer.dispatcher.drain()
    await asyncio.sleep(0.05)
    assert not parked.done()  # it waits for the outcome of what still runs
    refused = await trainer.submit("forward", request_of(), 3)
    assert (refused.status_code, error_of(refused).error_class) == (503, "ServerShutdownError")
    assert (await trainer.create("new")).status_code == 503
    assert (await trainer.http.get("/health")).json() == {"status": "draining"}
    gated.gate.set()
    await drained
    finished = {operation.operation_id: operation for operation in (await parked).finished}  # all in one answer
    assert finished["run:1"].state == operations_pb2.OPERATION_STATE_SUCCEEDED
    assert {finished[f"run:{seq}"].error.error_class for seq in (2, 4)} == {"ServerShutdownError"}


async def test_what_does_not_finish_in_time_is_reported_too(trainer, gated, request_of, monkeypatch):
    monkeypatch.setattr("farstep_worker.dispatch.DRAIN_S", 0.05)
    gated.gate.clear()
    await trainer.submit("forward", request_of(), 1)
    await until(lambda: trainer.dispatcher.is_computing)
    await trainer.dispatcher.drain()
    assert (await trainer.outcome("run:1", wait_s=0)).error.error_class == "ServerShutdownError"
    assert trainer.dispatcher.is_computing
    gated.gate.set()
    await until(lambda: not trainer.dispatcher.is_computing)
