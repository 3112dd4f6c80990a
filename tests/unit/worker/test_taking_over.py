"""What a new client of a run can learn and have of what another left: gaps, halves, outcomes nobody fetched."""

from farstep_proto import paths
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker import operations
from farstep_worker.operations import OperationQueue, QueueLimits
from tests.unit.worker.wire import PROTO, error_of, serving


async def described(trainer):
    return pb.Run.FromString((await trainer.http.get("/v1/runs/run", headers=PROTO)).content)


async def listed(trainer, **params):
    response = await trainer.http.get(paths.RUN_OPERATIONS.format(run_id="run"), headers=PROTO, params=params)
    found = operations_pb2.ListOperationsResponse.FromString(response.content)
    return [operation.operation_id for operation in found.operations], found.next_page


async def claim(trainer, *ids, ack=(), client="new"):
    request = operations_pb2.PollRequest(client_id=client, check=ids, ack=ack, wait_s=20 if ids else 0)
    response = operations_pb2.PollResponse.FromString((await trainer.post(paths.POLL, request)).content)
    return [operation.operation_id for operation in response.finished], list(response.unknown)


async def test_a_run_tells_which_seqs_others_wait_for(trainer, request_of):
    await trainer.submit("forward", request_of(), 2)
    await trainer.submit("forward", request_of(), 4, part=0, parts=2)
    run = await described(trainer)
    assert (run.next_seq, list(run.missing_seqs)) == (5, [1, 3, 4])
    for seq in run.missing_seqs:
        assert (await trainer.submit("skip", pb.SkipRequest(), seq)).status_code == 202
    assert (await trainer.outcome("run:2")).state == operations_pb2.OPERATION_STATE_SUCCEEDED
    run = await described(trainer)
    assert (run.next_seq, list(run.missing_seqs)) == (5, [])
    assert (await trainer.submit("forward", request_of(), 5)).status_code == 202


def test_a_hostile_gap_is_told_in_part():
    queue = OperationQueue()
    missing = queue.missing_seqs("r", below=10**17)
    assert missing == list(range(1, operations.MAX_MISSING + 1))


async def test_the_last_part_that_is_here_says_that_others_are_not(trainer, request_of):
    async def awaits(part):
        response = await trainer.submit("forward", request_of(), 1, part=part, parts=2)
        return operations_pb2.Accepted.FromString(response.content).awaits_parts

    assert [await awaits(0), await awaits(0), await awaits(1), await awaits(1)] == [True, True, False, False]


async def test_outcomes_that_nobody_fetched_are_listed_and_go_to_whoever_waits_for_them(trainer, gated, request_of):
    for seq in (1, 2, 3):
        await trainer.submit("forward", request_of(), seq, client="dead")
        await trainer.outcome(f"run:{seq}")
    await trainer.poll("dead", wait_s=0, ack=["run:1"])
    gated.gate.clear()
    await trainer.submit("forward", request_of(), 4, client="dead")
    assert await listed(trainer) == (["run:2", "run:3", "run:4"], "")
    assert await listed(trainer, state="all") == (["run:1", "run:2", "run:3", "run:4"], "")
    assert await listed(trainer, page="3") == (["run:4"], "")
    assert await claim(trainer, "run:2", "run:3", "run:4", "run:9") == (["run:2", "run:3"], ["run:9"])
    assert await claim(trainer, ack=["run:2", "run:3"]) == ([], [])
    assert await listed(trainer) == (["run:4"], "")
    gated.gate.set()
    assert await claim(trainer, "run:4") == (["run:4"], [])
    assert "run:2" in [operation.operation_id for operation in (await trainer.poll("dead")).finished]


async def test_a_long_list_has_pages(trainer, request_of, monkeypatch):
    monkeypatch.setattr("farstep_worker.dispatch.LIST_PAGE", 2)
    for seq in range(1, 6):
        await trainer.submit("skip", pb.SkipRequest(), seq)
    ids, next_page = await listed(trainer)
    assert (ids, next_page) == (["run:1", "run:2"], "2")
    assert await listed(trainer, page="4") == (["run:5"], "")


async def test_what_cannot_be_listed(trainer):
    for params, field in (({"state": "odd"}, "state"), ({"page": "x"}, "page")):
        response = await trainer.http.get("/v1/runs/run/operations", headers=PROTO, params=params)
        assert (response.status_code, error_of(response).field) == (400, field)
    assert (await trainer.http.get("/v1/runs/nobody/operations")).status_code == 404


async def test_a_gap_is_given_up_soon_where_others_need_the_room(gated, request_of, monkeypatch):
    monkeypatch.setattr(operations, "CROWDED_GAP_WAIT_S", 0.0)
    async with serving(gated, limits=QueueLimits(max_operations=2)) as trainer:
        await trainer.create()
        await trainer.create("other")
        await trainer.submit("forward", request_of(), 2)
        await trainer.submit("forward", request_of(), 3)
        assert (await trainer.submit("forward", request_of(), 2, run_id="other")).status_code == 202
        assert (await trainer.outcome("run:2")).error.error_class == "MissingOperationError"
