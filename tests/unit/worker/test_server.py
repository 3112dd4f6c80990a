"""The trainer's routes: what it says of itself, runs, and refusals at the door."""

import asyncio
import json

import pytest

from farstep_proto import paths
from farstep_proto.v1 import training_pb2 as pb
from tests.unit.worker.wire import LIMIT, PROTO, error_of


async def test_what_a_trainer_says_of_itself(trainer):
    info = pb.ServerInfo.FromString((await trainer.http.get("/v1/info", headers=PROTO)).content)
    assert (info.role, info.base_model, info.device, info.dtype) == ("trainer", "farstep/tiny", "cpu", "float32")
    assert info.max_request_bytes == LIMIT
    assert "cispo" in info.loss_fns
    assert info.feed.startswith("127.0.0.1:")
    assert info.instance_id == (await trainer.poll(wait_s=0)).instance_id
    assert (await trainer.http.get("/health", headers={"authorization": ""})).json() == {"status": "ok"}
    files = pb.TokenizerFiles.FromString((await trainer.http.get("/v1/tokenizer", headers=PROTO)).content)
    assert json.loads(files.files["tokenizer.json"])
    assert len(files.sha256) == 64


async def test_keys(trainer):
    for key in ("", "Bearer wrong"):
        response = await trainer.http.get("/v1/info", headers={**PROTO, "authorization": key})
        assert (response.status_code, error_of(response).error_class) == (401, "AuthenticationError")


# Runs


async def test_a_run_is_created_once(trainer):
    first, again = await trainer.create("r1", seed=7), await trainer.create("r1", seed=7)
    assert first.content == again.content
    run = pb.Run.FromString(first.content)
    assert (run.run_id, run.seed, run.lora.rank, run.lora.alpha, run.next_seq) == ("r1", 7, 4, 4.0, 1)
    assert run.max_seq_len == (await trainer.http.get("/v1/info")).json()["max_seq_len"]
    other = await trainer.create("r1", seed=8)
    assert (other.status_code, error_of(other).field) == (409, "seed")
    listed = (await trainer.http.get("/v1/runs")).json()["runs"]
    assert [run["run_id"] for run in listed] == ["run", "r1"]
    assert (await trainer.http.get("/v1/runs/r1")).json()["run_id"] == "r1"


async def test_many_creations_at_once_make_one_run(trainer):
    responses = await asyncio.gather(*(trainer.create("r1") for _ in range(5)))
    assert len({response.content for response in responses}) == 1


async def test_a_run_without_id_and_seed_gets_both(trainer):
    runs = [pb.Run.FromString((await trainer.create("", seed=None)).content) for _ in range(2)]
    assert runs[0].run_id != runs[1].run_id
    assert runs[0].seed != runs[1].seed
    again = pb.Run.FromString((await trainer.create(runs[0].run_id, seed=None)).content)
    assert again.seed == runs[0].seed


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"base_model": "gpt-17"}, "base_model"),
        ({"base_model": ""}, "base_model"),
        ({"rank": 0}, "lora.rank"),
        ({"max_seq_len": 1 << 20}, "max_seq_len"),
        ({"max_seq_len": -1}, "max_seq_len"),
        ({"seed": -1}, "seed"),
        ({"run_id": "a/b"}, "run_id"),
    ],
)
async def test_bad_runs(trainer, fields, field):
    response = await trainer.create(**{"run_id": "bad", **fields})
    assert (response.status_code, error_of(response).field) == (400, field)


# Refusals


@pytest.mark.parametrize("query", ["", "?seq=0", "?seq=-1", "?seq=x", "?seq=1&parts=0", "?seq=1&part=2&parts=2"])
async def test_bad_addresses(trainer, query):
    response = await trainer.http.post(f"/v1/runs/run/skip{query}", headers=PROTO)
    assert response.status_code == 400
    assert error_of(response).field in ("seq", "part", "parts")


async def test_unknown_runs_verbs_and_routes(trainer):
    for path in ("/v1/runs/none/skip?seq=1", "/v1/runs/run/explode?seq=1", "/v1/nothing"):
        assert (await trainer.http.post(path, headers=PROTO)).status_code == 404
    assert (await trainer.http.get("/v1/runs/none")).status_code == 404


@pytest.mark.parametrize("kind", [paths.PROTOBUF, paths.JSON])
async def test_malformed_bodies(trainer, kind):
    headers = {"content-type": kind, "accept": paths.PROTOBUF}
    response = await trainer.http.post("/v1/runs/run/forward?seq=1", content=b"{\xff", headers=headers)
    assert (response.status_code, error_of(response).field) == (400, "body")


async def test_a_refused_submission_leaves_its_seq_open(trainer, request_of):
    assert (await trainer.submit("forward", pb.ForwardRequest(loss_fn="mse"), 1)).status_code == 400
    assert (await trainer.submit("forward", request_of(), 1)).status_code == 202


@pytest.mark.parametrize("declared", [True, False])
async def test_an_oversized_body_is_refused_without_being_read(trainer, declared):
    num_read = 0

    async def endless():
        nonlocal num_read
        while True:
            num_read += 1
            yield bytes(LIMIT // 4)

    headers = {"accept": paths.PROTOBUF, **({"content-length": str(LIMIT + 1)} if declared else {})}
    response = await trainer.http.post("/v1/runs/run/forward?seq=1", content=endless(), headers=headers)
    assert response.status_code == 413
    assert str(LIMIT) in error_of(response).message
    assert error_of(response).hint
    assert num_read == (0 if declared else 5)
