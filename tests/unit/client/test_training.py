"""Every call of the TrainingClient, sync and async, against a fake trainer over real HTTP."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import farstep
from farstep import AdamParams, Datum, ModelInput
from farstep._split import split
from farstep_proto.paths import Verb
from farstep_proto.tensors import model_input_ids
from farstep_proto.v1 import common_pb2, training_pb2
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, MAX_SEQ_LEN, VOCAB_SIZE
from tests.unit.client.fake_trainer import Trainer


def datum(length: int = 4, **inputs: object) -> Datum:
    tokens = np.arange(1, length + 1) % VOCAB_SIZE
    return Datum(ModelInput.from_ints(tokens), {"target_tokens": tokens, **inputs})


def test_the_loop_of_supervised_training(client: farstep.TrainingClient) -> None:
    output = client.forward_backward([datum(4), datum(6)]).result()
    assert output.loss == 2.5
    assert output.metrics["loss:sum"] == 10
    assert output.loss_fn_outputs[1]["logprobs"].tolist() == [-1.0] * 6
    step = client.optim_step(AdamParams(learning_rate=0.25)).result()
    assert step.metrics == {"grad_norm": 0.5, "learning_rate": 0.25, "step": 1.0}
    assert client.step == 1


async def test_the_same_loop_awaited(client: farstep.TrainingClient) -> None:
    future = await client.forward_backward_async([datum(4)])
    step = await client.optim_step_async()
    assert (await future).loss == 2.5
    assert (await step).metrics["step"] == 1
    saved = await (await client.save_state_async("a"))
    assert (await (await client.load_state_async(saved.path))).step == 0
    assert (await (await client.load_state_with_optimizer_async(saved.path))).path == saved.path
    assert (await (await client.save_weights_for_sampler_async("s"))).policy_version == 1
    assert await (await client.reset_async(4)) is None
    assert (await (await client.forward_async([datum()]))).loss == 2.5
    async with await client.save_weights_and_get_sampling_client_async() as sampler:
        assert sampler.policy_version == 2
    async with await client.create_sampling_client_async(saved.path.replace("/weights/", "/sampler_weights/")) as other:
        assert other.policy_version == 4
    assert await client.queue_async() == []


def test_forward_leaves_the_gradient_alone(client: farstep.TrainingClient) -> None:
    client.forward([datum()]).result()
    error = client.optim_step().exception()
    assert isinstance(error, farstep.RemoteOpError)
    assert error.error_class == "NoGradientError"
    assert error.hint == "first …"
    assert error.operation_id == f"{client.run_id}:2"
    assert "no gradient" in str(error)


def test_adam_params_and_loss_config_arrive(client: farstep.TrainingClient, trainer: Trainer) -> None:
    inputs = {"logprobs": [-1.0] * 4, "advantages": [1, 2, 3, 4]}
    client.forward_backward([datum(4, **inputs)], "ppo", {"clip_high_threshold": 1.3}).result()
    client.optim_step(AdamParams(1e-3, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.1, grad_clip_norm=2.0)).result()
    sent, adam = trainer.executed[0][3][0], trainer.executed[1][3][0]
    assert sent.loss_fn == "ppo"
    assert dict(sent.loss_fn_config) == {"clip_high_threshold": 1.3}
    assert np.frombuffer(sent.data[0].loss_fn_inputs["advantages"].data, "<f4").tolist() == [1, 2, 3, 4]
    values = (adam.learning_rate, adam.beta1, adam.beta2, adam.eps, adam.weight_decay, adam.grad_clip_norm)
    assert values == (1e-3, 0.8, 0.9, 1e-8, 0.1, 2.0)


def test_checkpoints_of_both_kinds(client: farstep.TrainingClient, trainer: Trainer) -> None:
    client.forward_backward([datum()])
    client.optim_step()
    saved = client.save_state("first", metadata={"note": "x"}, ttl_seconds=60, overwrite=True).result()
    assert saved == farstep.SaveWeightsResponse(f"bt://loops:{client.run_id}/weights/first", None)
    message = trainer.executed[-1][3][0]
    assert (dict(message.metadata), message.ttl_seconds, message.overwrite) == ({"note": "x"}, 60, True)
    assert client.load_state(saved.path).result().step == 0
    assert client.step == 0
    assert client.load_state_with_optimizer(saved.path).result().step == 1
    assert client.step == 1
    published = client.save_weights_for_sampler("s", ttl_seconds=5).result()
    assert published.policy_version == client.policy_version == 1
    assert published.path.endswith("/sampler_weights/s")


def test_the_tinker_form_of_a_path_is_the_same_path(client: farstep.TrainingClient) -> None:
    client.save_state("a").result()
    assert client.load_state(f"tinker://{client.run_id}/weights/a").result().path.startswith("bt://loops:")


def test_a_failed_operation_says_what_failed(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.fail_next = ZeroDivisionError("the model divided by zero")
    future = client.forward_backward([datum()])
    with pytest.raises(farstep.RemoteOpError, match="ZeroDivisionError: the model divided by zero") as caught:
        future.result()
    assert caught.value.error_class == "ZeroDivisionError"
    with pytest.raises(farstep.RemoteOpError):
        future.result()
    missing = client.load_state(f"bt://loops:{client.run_id}/weights/nothing").exception()
    assert isinstance(missing, farstep.RemoteOpError)
    assert (missing.error_class, missing.field) == ("NotFoundError", "path")
    client.forward_backward([datum()]).result()


def test_reset_and_info(client: farstep.TrainingClient) -> None:
    info = client.get_info()
    assert info == farstep.TrainingInfo(client.run_id, BASE_MODEL, 8, MAX_SEQ_LEN, VOCAB_SIZE)
    client.forward_backward([datum()])
    client.optim_step().result()
    assert client.reset(4).result() is None
    assert client.get_info().lora_rank == 4
    assert client.step == 0
    with pytest.raises(farstep.InvalidInputError, match="lora_rank"):
        client.reset(0)


def test_publish_and_sample_through_the_gate(client: farstep.TrainingClient, sampler: Sampler) -> None:
    with client.save_weights_and_get_sampling_client() as pinned:
        assert pinned.policy_version == 1
        assert pinned.sample([1, 2]).result().policy_version == 1
    request, headers = sampler.requests[-1]
    assert request.run_id == client.run_id
    assert headers["x-min-policy-version"] == "1"
    with client.save_weights_and_get_sampling_client("kept", pin="exact") as exact:
        exact.sample([1, 2]).result()
        exact.ensure_ready()
    assert sampler.requests[-1][1]["x-policy-version"] == "2"
    assert "x-min-policy-version" not in sampler.requests[-1][1]
    with pytest.raises(farstep.InvalidInputError, match="pin"):
        client.save_weights_and_get_sampling_client(pin="newest")  # type: ignore[arg-type]


def test_a_policy_that_no_sampler_serves(
    client: farstep.TrainingClient, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farstep._freshness.SERVED_WITHIN_S", 0.3)
    trainer.publish_to = None
    with pytest.raises(RuntimeError, match=r"version 1 of .* is published") as caught:
        client.save_weights_and_get_sampling_client()
    assert isinstance(caught.value, farstep.PublishTimeoutError)
    assert client.policy_version == 1


def test_a_checkpoint_on_the_paired_sampler(client: farstep.TrainingClient, sampler: Sampler) -> None:
    path = client.save_weights_for_sampler("s").result().path
    with client.create_sampling_client(path) as other:
        other.sample([1]).result()
        assert other.policy_version == 4
    assert sampler.loaded == [path]
    assert sampler.requests[-1][0].model_path == path
    with pytest.raises(farstep.InvalidInputError, match="no sampler's checkpoint"):
        client.create_sampling_client(f"bt://loops:{client.run_id}/weights/s")
    with pytest.raises(farstep.NotFoundError):
        client.create_sampling_client(f"bt://loops:{client.run_id}/sampler_weights/missing")


def test_without_a_sampler(local: farstep.ServiceClient) -> None:
    with local.create_lora_training_client(BASE_MODEL, with_sampler=False) as client:
        with pytest.raises(farstep.NotFoundError, match="with_sampler=True"):
            client.save_weights_and_get_sampling_client()
        assert client.forward([datum()]).result().loss == 2.5


def test_a_large_batch_travels_in_parts(local: farstep.ServiceClient, trainer: Trainer) -> None:
    trainer.max_request_bytes = 2000
    with local.create_lora_training_client(BASE_MODEL) as client:
        check_parts(client, trainer)


def check_parts(client: farstep.TrainingClient, trainer: Trainer) -> None:
    data = [datum(1 + index % 50) for index in range(40)]
    output = client.forward_backward(data).result()
    lengths = [len(model_input_ids(sent.model_input)) for part in trainer.executed[0][3] for sent in part.data]
    assert lengths == [1 + index % 50 for index in range(40)]
    assert [len(one["logprobs"]) for one in output.loss_fn_outputs] == lengths
    parts = [seen for seen in trainer.seen if seen.path.endswith(Verb.FORWARD_BACKWARD)]
    assert len(parts) > 5
    assert {seen.query["parts"] for seen in parts} == {str(len(parts))}
    assert max(seen.num_bytes for seen in parts) <= 2000
    too_large = Datum(ModelInput.from_ints([1] * 60), {"target_tokens": np.ones((60, 9), dtype=int)})
    with pytest.raises(farstep.InvalidInputError, match=r"data\[1\].* takes \d+ bytes, .* takes at most 2000"):
        client.forward_backward([datum(1), too_large])


def test_a_datum_that_is_large_by_itself_travels_alone() -> None:
    def parts(*sizes: int, most: int = 5000) -> list[list[int]]:
        data = [common_pb2.Datum(model_input={"chunks": [{"encoded_text": {"tokens": bytes(size)}}]}) for size in sizes]
        request = training_pb2.ForwardRequest(data=data, loss_fn="cross_entropy")
        bodies = split(request, max_request_bytes=1000, max_datum_bytes=most)
        read = [training_pb2.ForwardRequest.FromString(body) for body in bodies]
        assert {each.loss_fn for each in read} == {"cross_entropy"}
        return [[len(each.model_input.chunks[0].encoded_text.tokens) for each in part.data] for part in read]

    assert parts(4000) == [[4000]]
    assert parts(4000, 300, 300, 300, 300) == [[4000], [300, 300, 300], [300]]
    assert parts(300, 300, 4000, 300) == [[300, 300], [4000], [300]]
    for most in (3000, 0):  # an older server tells no such limit
        with pytest.raises(farstep.InvalidInputError, match=rf"data\[1\].* takes at most {max(most, 1000)}"):
            parts(300, 4000, most=most)


def test_operations_run_in_the_order_of_the_calls(client: farstep.TrainingClient, trainer: Trainer) -> None:
    futures = [client.forward([datum(1 + index % 9)]) for index in range(30)]
    assert [future.result().metrics["loss:sum"] for future in futures] == [1 + index % 9 for index in range(30)]
    assert [seq for _, seq, _, _ in trainer.executed] == list(range(1, 31))


async def test_gathered_submissions_keep_their_order(client: farstep.TrainingClient, trainer: Trainer) -> None:
    await asyncio.gather(
        client.forward_backward_async([datum()]),
        client.save_weights_and_get_sampling_client_async(),
        client.optim_step_async(),
        client.save_state_async("after"),
    )
    await (await client.forward_async([datum()]))
    verbs = [verb for _, _, verb, _ in trainer.executed]
    assert verbs == ["forward_backward", "publish", "optim_step", "save_state", "forward"]


def test_two_threads_submit_at_once(client: farstep.TrainingClient, trainer: Trainer) -> None:
    results: list[float] = []

    def work() -> None:
        futures = [client.forward_backward([datum()]) for _ in range(20)]
        results.extend(future.result().loss for future in futures)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [2.5] * 40
    assert sorted(seq for _, seq, _, _ in trainer.executed) == list(range(1, 41))


def test_the_queue_shows_what_waits(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    futures = [client.forward_backward([datum()]), client.optim_step()]
    queue = client.queue()
    assert [(one.operation_id, one.verb, one.state, one.place) for one in queue] == [
        (futures[0].operation_id, "forward_backward", "queued", 3),
        (futures[1].operation_id, "optim_step", "queued", 3),
    ]
    trainer.release()
    futures[1].result()
    assert client.queue() == []


def test_health_and_the_end(local: farstep.ServiceClient, trainer: Trainer) -> None:
    client = local.create_lora_training_client(BASE_MODEL)
    assert client.health() is True
    client.ensure_ready(timeout=1.0)
    assert client.run_id in repr(client)
    client.close()
    client.close()
    with pytest.raises(farstep.ClientClosedError):
        client.forward([datum()])


@pytest.mark.parametrize(
    ("data", "loss_fn", "config", "field"),
    [
        ([], "cross_entropy", None, "data"),
        ([datum()], "unknown_loss", None, "loss_fn"),
        ([datum()], "cross_entropy", {"beta": 1.0}, "loss_fn_config.beta"),
        ([datum(), datum(4, weights=[1.0])], "cross_entropy", None, "data[1].loss_fn_inputs.weights"),
        ([datum(4, weights=[1.0, np.nan, 1.0, 1.0])], "cross_entropy", None, "data[0].loss_fn_inputs.weights"),
        ([Datum(ModelInput.from_ints([1]), {})], "cross_entropy", None, "data[0].loss_fn_inputs"),
        (
            [Datum(ModelInput.from_ints([VOCAB_SIZE]), {"target_tokens": [1]})],
            "cross_entropy",
            None,
            "data[0].model_input",
        ),
        ([datum(MAX_SEQ_LEN + 1)], "cross_entropy", None, "data[0].model_input"),
        ([Datum(ModelInput.from_ints([1]), {"returns": [1.0], "values": [0.0]})], "value", None, "loss_fn"),
        ([Datum(ModelInput.from_ints([]), {"target_tokens": []})], "cross_entropy", None, "data[0].model_input"),
    ],
)
def test_bad_data_is_refused_at_the_call(
    client: farstep.TrainingClient, trainer: Trainer, data: list[Datum], loss_fn: str, config: object, field: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        client.forward_backward(data, loss_fn, config)  # type: ignore[arg-type]
    assert isinstance(caught.value, farstep.InvalidInputError)
    assert caught.value.field == field
    client.forward([datum()]).result()
    assert [seq for _, seq, _, _ in trainer.executed] == [1]


def test_bad_arguments_are_refused_at_the_call(client: farstep.TrainingClient, trainer: Trainer) -> None:
    for name in ("a/b", "", "..", "x" * 129):
        with pytest.raises(farstep.InvalidInputError, match="name"):
            client.save_state(name)
        with pytest.raises(farstep.InvalidInputError, match="name"):
            client.save_weights_for_sampler(name)
    with pytest.raises(farstep.InvalidInputError, match="ttl_seconds"):
        client.save_state("a", ttl_seconds=0)
    with pytest.raises(TypeError, match=r"metadata\.n"):
        client.save_state("a", metadata={"n": 1})  # type: ignore[dict-item]
    with pytest.raises(farstep.InvalidInputError, match="path"):
        client.load_state("no path")
    with pytest.raises(TypeError, match="AdamParams"):
        client.optim_step({"learning_rate": 1.0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"data\[0\]"):
        client.forward_backward([[1, 2]])  # type: ignore[list-item]
    assert trainer.executed == []


def test_weights_are_published_where_they_may_have_changed(client: farstep.TrainingClient) -> None:
    datum = farstep.Datum.from_prompt_completion([1, 2], [3])
    with client.fresh_sampling_client() as first:
        assert (first.policy_version, first.get_openai_endpoint().model) == (1, f"{client.run_id}@1")
    client.forward([datum]).result()
    client.forward_backward([datum])
    with client.fresh_sampling_client(pin="min") as again:
        endpoint = again.get_openai_endpoint()
        assert (again.policy_version, endpoint.model) == (1, client.run_id)
        assert endpoint.headers == {"X-Min-Policy-Version": "1"}
        assert endpoint.api_key not in repr(endpoint)
    client.optim_step()  # whose result nobody has waited for
    with client.fresh_sampling_client() as changed:
        assert changed.policy_version == 2
    client.save_weights_for_sampler("kept").result()
    with client.fresh_sampling_client() as kept:
        assert kept.policy_version == 3
    client.reset(4).result()
    with client.fresh_sampling_client() as reset:
        assert reset.policy_version == 4
    with pytest.raises(ValueError, match="pin"):
        client.fresh_sampling_client(pin="newest")  # type: ignore[arg-type]
