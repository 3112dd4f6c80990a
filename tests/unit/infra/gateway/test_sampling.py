"""A sampler that takes no more: the SDK is told so, and takes its time."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest

from farstep_infra.control.tables import SamplingSessionRow
from farstep_infra.gateway import sampling
from farstep_infra.gateway.channel import Channel
from farstep_infra.gateway.failures import respond_failure
from farstep_infra.gateway.gateway import Gateway
from farstep_infra.gateway.refusals import Refusals
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import operations_pb2 as pb
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing

SESSION = "s:sample:0"
ROW = SamplingSessionRow(
    sampling_session_id=SESSION, session_id="s", project="p", base_model="m", model_path="", run_id="", kind="snapshot"
)
SAMPLE = {
    "sampling_session_id": SESSION,
    "seq_id": 3,
    "num_samples": 2,
    "prompt": {"chunks": [{"tokens": [5]}]},
    "sampling_params": {"max_tokens": 1},
}


class Sampler:
    """Answers submissions with these statuses, and takes what comes after them."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.keys = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        if self.statuses:
            status = self.statuses.pop(0)
            refusal = common_pb2.Error(message="4096 samples are in flight already", field="num_samples", status=status)
            return httpx.Response(status, content=refusal.SerializeToString())
        self.keys.append(request.url.params["key"])
        return httpx.Response(202, content=pb.Accepted(operation_id=self.keys[-1]).SerializeToString())


@asynccontextmanager
async def asking(sampler):
    """Posts samples to a gateway before that sampler."""

    async def row(sampling_session_id, *, caller):
        return ROW

    async def url_of(row):
        return "http://sampler"

    async def wake(row):
        pass

    async with httpx.AsyncClient(transport=httpx.MockTransport(sampler.handle)) as client:
        channel = Channel("http://sampler", client)
        others = dict.fromkeys(Gateway.__dataclass_fields__)
        reached = {
            "channels": SimpleNamespace(of=lambda url: channel),
            "refusals": Refusals(),
            "sampling_sessions": SimpleNamespace(get=row),
            "samplers": SimpleNamespace(url_of=url_of, wake=wake),
        }
        app = make_app(sampling.ROUTES, keys=KeyRing.of("fsk-x"), error_response=respond_failure)
        app.state.gateway = Gateway(**{**others, **reached})
        headers = {"Authorization": "Bearer fsk-x"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://gateway", headers=headers
        ) as asked:
            yield lambda **changes: asked.post("/api/v1/asample", json=SAMPLE | changes)


@pytest.mark.parametrize("status", [429, 503])
async def test_what_is_not_taken_now_is_asked_for_again_later(status):
    sampler = Sampler(status)
    async with asking(sampler) as ask:
        refused = await ask()
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert "in flight" in refused.json()["error"]
        taken = await ask()
    assert taken.json() == {
        "request_id": f"{SESSION}:3",
        "sample_sequence_ids": [f"{SESSION}:3:0", f"{SESSION}:3:1"],
    }
    assert sampler.keys == [f"{SESSION}:3"]


async def test_what_is_refused_has_no_sequences():
    """However many it says that it wants: nobody makes a list of them."""
    async with asking(Sampler(422)) as ask:
        for number, num_samples in enumerate((5_000_000, 10**30, -1)):
            answer = await ask(seq_id=number, num_samples=num_samples)
            assert answer.json() == {"request_id": f"{SESSION}:{number}", "sample_sequence_ids": []}, num_samples


async def test_a_number_that_belongs_to_another_sample_is_refused():
    async with asking(Sampler(409)) as ask:
        refused = await ask()
    assert (refused.status_code, refused.json()["field"]) == (400, "seq_id")
