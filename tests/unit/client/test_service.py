"""The ServiceClient with a control plane and without one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

import farstep
from farstep_proto import errors
from tests.unit.client.fake_control import ControlPlane
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, Fault
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_training import datum


def test_constructing_opens_a_session(control: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARSTEP_REUSE_FROM_SESSION_ID", "from-the-environment")
    with farstep.ServiceClient(base_url=control.url, api_key=KEY, project="p", user_metadata={"a": "b"}) as client:
        assert client.session_id == "session-1"
    sent = control.sessions[0]
    assert (sent.project, dict(sent.user_metadata), sent.reuse_from_session_id) == (
        "p",
        {"a": "b"},
        "from-the-environment",
    )
    assert sent.sdk_version
    with farstep.ServiceClient(base_url=control.url, api_key=KEY, reuse_from_session_id="by-argument"):
        assert control.sessions[1].reuse_from_session_id == "by-argument"


async def test_an_async_with_block_closes_it(control: ControlPlane) -> None:
    async with farstep.ServiceClient(base_url=control.url, api_key=KEY) as client:
        assert (await client.get_server_capabilities_async()).max_lora_rank == 64
    with pytest.raises(farstep.ClientClosedError):
        await client.get_server_capabilities_async()


def test_provisioning_passes_everything_on(
    service: farstep.ServiceClient, control: ControlPlane, trainer: Trainer
) -> None:
    with service.create_lora_training_client(
        BASE_MODEL,
        16,
        alpha=32,
        target_modules=["q_proj"],
        dropout=0.1,
        train_unembed=True,
        use_rslora=True,
        value_head=True,
        seed=5,
        max_seq_len=32,
        replicas=2,
        sampler_replicas=3,
        name="first",
        user_metadata={"k": "v"},
    ) as client:
        assert [run.created.project for run in trainer.runs.values()] == ["team"]  # as the control plane says
        assert client.get_info().max_seq_len == 32
        assert client.get_info().value_head
        assert client.forward([datum()]).result().loss == 2.5
    sent = control.provisioned[0]
    lora = sent.lora
    assert (lora.rank, lora.alpha, lora.dropout, list(lora.target_modules)) == (16, 32, 0.1, ["q_proj"])
    assert (lora.train_attn, lora.train_mlp, lora.train_unembed) == (True, True, True)
    assert (lora.use_rslora, lora.use_dora, lora.value_head) == (True, False, True)
    assert (sent.seed, sent.max_seq_len, sent.replicas, sent.with_sampler, sent.sampler_replicas) == (5, 32, 2, True, 3)
    assert (sent.name, dict(sent.user_metadata)) == ("first", {"k": "v"})
    assert trainer.runs[client.run_id].created.lora == lora
    assert trainer.runs[client.run_id].created.seed == 5


def test_runs_and_checkpoints(service: farstep.ServiceClient) -> None:
    with service.create_lora_training_client(BASE_MODEL, 8, name="n") as client:
        path = client.save_state("a").result().path
        (run,) = service.list_runs()
        assert run == service.get_run(client.run_id)
        assert (run.run_id, run.state, run.name, run.lora.rank) == (client.run_id, "ready", "n", 8)
        (checkpoint,) = service.list_checkpoints(client.run_id)
        assert client.list_checkpoints() == [checkpoint]
        assert (checkpoint.path, checkpoint.target, checkpoint.step) == (path, "trainer", 0)
        assert checkpoint.created_at == datetime.fromtimestamp(1e9, UTC)
        assert (checkpoint.policy_version, checkpoint.expires_at) == (None, None)
        assert checkpoint.lora_adapter_config.rank == 8
        archive = service.get_checkpoint_archive_url(checkpoint.id)
        assert [file.name for file in archive.files] == ["adapter_config.json", "adapter_model.safetensors"]
        assert archive == client.get_checkpoint_archive_url(path)
        assert "sig=" not in repr(archive)
    with pytest.raises(farstep.NotFoundError):
        service.get_run("run_unknown")
    with pytest.raises(farstep.InvalidInputError, match="checkpoint_id"):
        service.get_checkpoint_archive_url("nonsense")


async def test_everything_awaited(service: farstep.ServiceClient) -> None:
    async with await service.create_lora_training_client_async(BASE_MODEL, 4) as client:
        path = (await (await client.save_state_async("a"))).path
        assert [one.path for one in await service.list_checkpoints_async(client.run_id)] == [path]
        assert [one.path for one in await client.list_checkpoints_async()] == [path]
        assert len((await service.get_checkpoint_archive_url_async(path)).files) == 2
        assert len((await client.get_checkpoint_archive_url_async(path)).files) == 2
        assert len(await service.list_runs_async()) == 1
        assert (await service.get_run_async(client.run_id)).state == "ready"
        async with await service.resume_run_async(client.run_id) as again:
            assert again.run_id == client.run_id
        await service.delete_run_async((await service.create_lora_training_client_async(BASE_MODEL, 4)).run_id)
        for create in (
            service.create_training_client_from_state_async,
            service.create_training_client_from_state_with_optimizer_async,
        ):
            async with await create(path) as other:
                assert other.run_id != client.run_id
    async with await service.create_sampling_client_async(BASE_MODEL) as sampling:
        assert (await (await sampling.sample_async([1]))).policy_version == 0


def test_going_on_from_a_checkpoint(service: farstep.ServiceClient, trainer: Trainer) -> None:
    with service.create_lora_training_client(BASE_MODEL, 8, alpha=4) as client:
        client.forward_backward([datum()])
        client.optim_step()
        path = client.save_state("a").result().path
    with service.create_training_client_from_state_with_optimizer(path, seed=1, with_sampler=False) as other:
        assert other.step == 1
        assert other.get_info().lora_rank == 8
        assert trainer.runs[other.run_id].created.lora.alpha == 4
        assert trainer.executed[-1][3][0].optimizer is True
    with service.create_training_client_from_state(path) as other:
        assert other.step == 0
        assert trainer.executed[-1][3][0].optimizer is False
    with service.create_training_client_from_state(path, value_head=True) as other:
        assert other.get_info().value_head
    before = len(trainer.runs)
    with pytest.raises(farstep.InvalidInputError, match="exactly where the checkpoint has one") as caught:
        service.create_training_client_from_state_with_optimizer(path, value_head=True)
    assert caught.value.field == "value_head"
    assert len(trainer.runs) == before
    with pytest.raises(farstep.NotFoundError):
        service.create_training_client_from_state(path + "x")
    with pytest.raises(farstep.InvalidInputError, match="not a training checkpoint"):
        service.create_training_client_from_state(path.replace("/weights/", "/sampler_weights/"))
    with pytest.raises(TypeError, match="base_model"):
        service.create_training_client_from_state(path, base_model="other")  # type: ignore[call-arg]


def test_going_on_from_a_checkpoint_without_a_control_plane(
    local: farstep.ServiceClient, client: farstep.TrainingClient, trainer: Trainer
) -> None:
    path = client.save_state("a").result().path
    with local.create_training_client_from_state(path) as other:
        assert other.get_info().lora_rank == 8
    trainer.runs.pop(client.run_id)
    with local.create_training_client_from_state(path) as other:
        assert other.get_info().lora_rank == 8
    with pytest.raises(farstep.NotFoundError):
        local.create_training_client_from_state(path + "x")


def test_resuming_a_run_goes_on_with_its_numbers(
    local: farstep.ServiceClient, client: farstep.TrainingClient, trainer: Trainer
) -> None:
    client.forward_backward([datum()])
    client.optim_step().result()
    with local.resume_run(client.run_id) as again:
        assert (again.run_id, again.step) == (client.run_id, 1)
        again.forward([datum()]).result(timeout=5)
    assert [seq for _, seq, _, _ in trainer.executed] == [1, 2, 3]
    with pytest.raises(farstep.NotFoundError):
        local.resume_run("run_unknown")


@pytest.mark.parametrize("kind", ["service", "local"])
def test_a_deleted_run_is_gone(kind: str, request: pytest.FixtureRequest) -> None:
    service: farstep.ServiceClient = request.getfixturevalue(kind)
    with service.create_lora_training_client(BASE_MODEL, 8) as client:
        service.delete_run(client.run_id)
        with pytest.raises(farstep.NotFoundError):
            service.resume_run(client.run_id)
    with pytest.raises(farstep.NotFoundError):
        service.delete_run("run_unknown")
    with pytest.raises(farstep.InvalidInputError, match="run_id"):
        service.delete_run("../run")


def test_servers_that_do_not_start(service: farstep.ServiceClient, control: ControlPlane) -> None:
    control.is_stuck = True
    with pytest.raises(farstep.ResultTimeout, match="not ready after"):
        service.create_lora_training_client(BASE_MODEL, ready_timeout=0.2)
    control.fails_with = "out of memory"
    with pytest.raises(farstep.ProvisioningError, match="out of memory"):
        service.create_lora_training_client(BASE_MODEL)


def test_provisioning_is_not_asked_for_twice(service: farstep.ServiceClient, control: ControlPlane) -> None:
    control.faults.append(Fault("/v1/sessions/session-1/runs", drop=True))
    service.create_lora_training_client(BASE_MODEL).close()
    assert len(control.provisioned) == 1
    control.faults.append(Fault("/v1/sessions/session-1/runs", error=errors.TooManyRequests("full")))
    service.create_lora_training_client(BASE_MODEL).close()
    assert len(control.provisioned) == 2


def test_fresh_samplers(service: farstep.ServiceClient, local: farstep.ServiceClient, sampler: Sampler) -> None:
    path = "bt://loops:run_1/sampler_weights/a"
    for client in (service, local):
        with client.create_sampling_client(BASE_MODEL) as sampling:
            assert sampling.sample([1]).result().policy_version == sampling.policy_version == 0
            assert sampling.get_base_model() == BASE_MODEL
        assert (sampler.requests[-1][0].run_id, sampler.requests[-1][0].model_path) == ("", "")
        with client.create_sampling_client(model_path="tinker://run_1/sampler_weights/a") as sampling:
            sampling.sample([1]).result()
        assert sampler.requests[-1][0].model_path == path
        with pytest.raises(farstep.InvalidInputError, match="either"):
            client.create_sampling_client()
        with pytest.raises(farstep.InvalidInputError, match="model_path"):
            client.create_sampling_client(model_path="bt://loops:run_1/weights/a")
    with pytest.raises(farstep.InvalidInputError, match="serves"):
        local.create_sampling_client("another/model")


def test_capabilities(service: farstep.ServiceClient, local: farstep.ServiceClient) -> None:
    for client in (service, local):
        (model,) = client.get_server_capabilities().supported_models
        assert model == farstep.SupportedModel(BASE_MODEL, 64, True)
    assert local.get_server_capabilities().engines == ("fake",)


def test_without_a_control_plane(local: farstep.ServiceClient) -> None:
    assert local.session_id is None
    for call in (local.list_runs, lambda: local.get_run("run_1")):
        with pytest.raises(farstep.FarstepError, match="control plane"):
            call()
    with pytest.raises(farstep.InvalidInputError, match="this worker serves"):
        local.create_lora_training_client("another/model")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 1.5}, "rank"),
        ({"alpha": -1}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"target_modules": "q_proj"}, "target_modules"),
        ({"train_attn": False, "train_mlp": False}, "nothing to train"),
        ({"replicas": 0}, "replicas"),
        ({"sampler_replicas": 0}, "sampler_replicas"),
        ({"max_seq_len": 0}, "max_seq_len"),
        ({"seed": "x"}, "seed"),
        ({"name": "a/b"}, "name"),
        ({"user_metadata": {"a": 1}}, "user_metadata.a"),
        ({"timeout": "soon"}, "timeout"),
    ],
)
def test_bad_arguments_ask_for_nothing(
    service: farstep.ServiceClient, control: ControlPlane, arguments: dict[str, object], named: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        service.create_lora_training_client(BASE_MODEL, **arguments)  # type: ignore[arg-type]
    assert control.provisioned == []


async def test_creating_a_client_does_not_block_the_event_loop(
    service: farstep.ServiceClient, control: ControlPlane
) -> None:
    control.is_stuck = True
    creating = asyncio.ensure_future(service.create_lora_training_client_async(BASE_MODEL, ready_timeout=0.3))
    for _ in range(10):
        await asyncio.sleep(0.005)
    assert not creating.done()
    with pytest.raises(farstep.ResultTimeout):
        await creating


def test_closing_ends_the_session(control: ControlPlane, service: farstep.ServiceClient) -> None:
    with service:
        assert control.closed_sessions == []
    assert control.closed_sessions == [service.session_id]
    service.close()
    assert len(control.closed_sessions) == 1
