"""What a promise says that does not end: a gap that nobody fills, or those before it. Without the long hold."""

from types import SimpleNamespace

import httpx
import pytest

from farstep_infra.gateway import training
from farstep_infra.gateway.channel import Channel
from farstep_infra.gateway.gateway import Gateway
from farstep_infra.gateway.refusals import Refusals
from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Pending
from farstep_infra.gateway.seqs import RunLine, SeqMap
from farstep_infra.gateway.server_http import make_client
from farstep_infra.gateway.whereabouts import RunPlace
from farstep_serving.keys import OPERATOR
from tests.contract.tinker.examples import farstep_datum
from tests.support.processes import KEY

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def asked(tinker_url):
    """What a gateway in this process says of an operation of the trainer behind the real one."""

    async def result(model_id, seq, *, seqs=SeqMap()):  # noqa: B008 - frozen
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=tinker_url, headers=headers, trust_env=False) as control:
            run = (await control.get(f"/v1/runs/{model_id}")).json()
        url = run["trainer_url"]
        place = RunPlace(model_id, run["session_id"], run["project"], run["base_model"], url, "")

        async def of_run(*args, **kwargs):
            return place

        async def line(run_id):
            return RunLine(seqs)

        async with make_client(KEY) as client:
            channel = Channel(url, client)
            reached = {
                "whereabouts": SimpleNamespace(run=of_run),
                "refusals": Refusals(),
                "seqs": SimpleNamespace(of=line),
                "channels": SimpleNamespace(of=lambda url: channel),
            }
            gateway = Gateway(**{**dict.fromkeys(Gateway.__dataclass_fields__), **reached})
            return await training.result_of(gateway, RequestId.of_model(model_id, seq), caller=OPERATOR, wait_s=0.05)

    return result


def submit(raw, model, *seqs):
    for seq in seqs:
        body = {"model_id": model.model_id, "seq_id": seq, "adam_params": {"learning_rate": 0.01}}
        assert raw.post("optim_step", json=body).is_success


async def test_numbers_that_never_came_are_named(raw, model, asked):
    submit(raw, model, 3, 5)
    behind_two = await asked(model.model_id, 3)
    assert isinstance(behind_two, Pending)
    assert behind_two.state == "paused_capacity"  # with another the SDK prints no reason, or another one
    assert behind_two.reason.startswith("2 earlier operations of this model (seq_id 1, 2) never came")
    submit(raw, model, 1)
    assert "1 earlier operation of this model (seq_id 2) never" in (await asked(model.model_id, 3)).reason
    assert "(seq_id 2, 4) never came" in (await asked(model.model_id, 5)).reason
    submit(raw, model, 2)
    assert raw.post("retrieve_future", json={"request_id": f"{model.model_id}:3"}).status_code == 200


async def test_a_gap_of_another_client_has_no_number_of_ours(raw, model, asked):
    submit(raw, model, 9)
    moved = SeqMap().shifted(1, 10)  # as if another client had taken the trainer's 2 to 9
    told = await asked(model.model_id, 1, seqs=moved)
    assert told.reason.startswith("8 earlier operations of this model (another client's) never came")
    assert "(seq_id 1, 2, 3, 4, 5 and 3 more)" in (await asked(model.model_id, 9)).reason


def test_farsteps_client_gives_up_what_never_came(raw, model, farstep_service):
    submit(raw, model, 3)
    with farstep_service.resume_run(model.model_id) as ours:
        ours.forward([farstep_datum()]).result()  # whoever submits next says first what will not come
    told = raw.post("retrieve_future", json={"request_id": f"{model.model_id}:3"})
    assert told.status_code == 200
    assert "no gradient" in told.json()["error"]  # it ran
