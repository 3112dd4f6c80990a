"""The real SDK against a real dp_worker: every call of `TrainingClient`, and what it promises."""

import asyncio

import numpy as np
import pytest

import farstep
from farstep import AdamParams, Datum, ModelInput, RemoteOpError
from farstep_proto.loss_table import LOSS_TABLE

PROMPT, ANSWER = [1, 40, 41, 42], [50, 51, 52, 53, 2]


def datum(shift=0, *, policy=False):
    answer = [token + shift for token in ANSWER]
    if policy:
        return Datum.from_prompt_completion(PROMPT, answer, logprobs=[-1.0] * 5, advantages=[0.5, -0.5, 1, -1, 0.25])
    return Datum.from_prompt_completion(PROMPT, answer)


def logprobs_of(output):
    return np.concatenate([fields["logprobs"].to_numpy() for fields in output.loss_fn_outputs])


def test_a_loop_lowers_the_loss(trainer):
    losses = []
    for _ in range(8):
        gradients = trainer.forward_backward([datum(0), datum(3)])
        update = trainer.optim_step(AdamParams(learning_rate=1e-2))
        losses.append(gradients.result().loss)
        metrics = update.result().metrics
    assert losses[-1] < losses[0] * 0.8
    assert metrics["step"] == 8
    assert metrics["learning_rate"] == pytest.approx(1e-2)
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("loss_fn", sorted(LOSS_TABLE))
def test_every_loss(service, loss_fn):
    trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=1, value_head=loss_fn == "value")
    required, output_name = LOSS_TABLE[loss_fn].required, LOSS_TABLE[loss_fn].output
    inputs = {"logprobs": -1.0, "advantages": [0.5, -0.5, 1, -1, 0.25], "ref_logprobs": -1.0}
    inputs |= {"returns": [0.1, 0.2, 0.3, 0.4, 0.5], "values": 0.0}
    inputs = {key: value for key, value in inputs.items() if key in required}
    data = [Datum.from_prompt_completion(PROMPT, [token + k for token in ANSWER], **inputs) for k in range(2)]
    output = trainer.forward_backward(data, loss_fn).result()
    assert np.isfinite(output.loss)
    assert np.isfinite(output.metrics["loss:sum"])
    assert [len(fields[output_name].to_numpy()) for fields in output.loss_fn_outputs] == [8, 8]
    assert trainer.optim_step().result().metrics["grad_norm"] > 0


def test_loss_settings_reach_the_server(trainer):
    near = trainer.forward([datum(policy=True)], "dro", {"beta": 0.0}).result().metrics["loss:sum"]
    far = trainer.forward([datum(policy=True)], "dro", {"beta": 2.0}).result().metrics["loss:sum"]
    assert near != far


def test_gradients_accumulate_over_calls_and_forward_leaves_them_alone(service):
    whole, parts = (service.create_lora_training_client("farstep/tiny", rank=4, seed=7) for _ in range(2))
    data = [datum(shift) for shift in range(6)]
    whole.forward_backward(data)
    for start in (0, 2, 4):
        parts.forward_backward(data[start : start + 2])
        parts.forward(data)
    params = AdamParams(learning_rate=1e-3)
    norms = [client.optim_step(params).result().metrics["grad_norm"] for client in (whole, parts)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    after = [logprobs_of(client.forward(data).result()) for client in (whole, parts)]
    np.testing.assert_allclose(*after, atol=1e-5)


def test_topk_targets(trainer):
    tokens = [1, 40, 41]
    targets = np.array([[40, 50], [41, 51], [42, -100]])
    weights = np.array([[0.7, 0.3], [0.6, 0.4], [1.0, 0.0]], dtype=np.float32)
    inputs = {"target_tokens": targets, "weights": weights}
    output = trainer.forward_backward([Datum(ModelInput.from_ints(tokens), inputs)]).result()
    logprobs = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    assert logprobs.shape == (3, 2)
    active = targets != -100
    assert output.metrics["loss:sum"] == pytest.approx(-(logprobs * weights)[active].sum(), rel=1e-5)


def test_a_call_above_the_size_limit_is_one_operation(tmp_path, monkeypatch):
    from tests.support.processes import KEY, running

    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    limit = ("--max-request-bytes", 4000, "--max-datum-bytes", 20_000)
    with running("farstep_worker", "--model", "farstep/tiny", "--store", tmp_path, *limit) as small:
        service = farstep.ServiceClient.local(trainer_url=small.url, sampler_url=small.url)
        trainer = service.create_lora_training_client("farstep/tiny", rank=4)
        output = trainer.forward_backward([datum(shift) for shift in range(100)]).result()
        assert len(output.loss_fn_outputs) == 100
        assert trainer.optim_step().result().metrics["step"] == 1
        large = Datum.from_prompt_completion([5] * 400, [6] * 500)
        output = trainer.forward([datum(), large, datum(1)]).result()
        assert [len(each["logprobs"]) for each in output.loss_fn_outputs[:2]] == [
            len(output.loss_fn_outputs[2]["logprobs"]),
            899,
        ]
        with pytest.raises(ValueError, match=r"data\[1\].*at most 20000"):
            trainer.forward_backward([datum(), Datum.from_prompt_completion([5] * 1000, [6] * 1000)])
        assert trainer.forward([datum()]).result().loss > 0
        service.close()


def test_optim_step_without_gradients_says_so(trainer):
    with pytest.raises(RemoteOpError, match="gradient"):
        trainer.optim_step().result()
    trainer.forward_backward([datum()]).result()
    trainer.optim_step().result()
    with pytest.raises(RemoteOpError, match="gradient"):
        trainer.optim_step().result()


def test_save_and_load(trainer):
    def train(steps):
        for _ in range(steps):
            trainer.forward_backward([datum(), datum(2)])
            trainer.optim_step(AdamParams(learning_rate=3e-3))
        return logprobs_of(trainer.forward([datum(), datum(2)]).result())

    train(3)
    saved = trainer.save_state("three", metadata={"note": "x"}).result()
    assert saved.path == f"bt://loops:{trainer.run_id}/weights/three"
    straight = train(3)
    assert trainer.load_state_with_optimizer(saved.path).result().path == saved.path
    np.testing.assert_array_equal(train(3), straight)
    trainer.load_state(saved.path).result()
    assert not np.array_equal(train(3), straight)  # the moments began anew


def test_names_are_taken_once_unless_overwritten(trainer):
    trainer.save_state("same").result()
    with pytest.raises(RemoteOpError, match="same"):
        trainer.save_state("same").result()
    trainer.save_state("same", overwrite=True).result()


def test_reset_begins_anew(trainer):
    before = trainer.forward([datum()]).result().loss
    trainer.forward_backward([datum()])
    trainer.optim_step(AdamParams(learning_rate=1e-2)).result()
    trainer.reset(2).result()
    assert trainer.forward([datum()]).result().loss == pytest.approx(before, abs=1e-6)
    assert trainer.get_info().lora_rank == 2


def test_create_from_state(service, trainer):
    trainer.forward_backward([datum()])
    trainer.optim_step(AdamParams(learning_rate=1e-2)).result()
    path = trainer.save_state("origin").result().path
    expected = trainer.forward([datum()]).result().loss
    for create in (service.create_training_client_from_state, service.create_training_client_from_state_with_optimizer):
        copy = create(path)
        assert copy.run_id != trainer.run_id
        assert copy.forward([datum()]).result().loss == expected


def test_two_hundred_operations_in_flight_keep_their_order(trainer):
    futures = [trainer.forward_backward([datum(index % 5)]) for index in range(200)]
    last = trainer.optim_step()
    assert last.result(timeout=100).metrics["step"] == 1
    assert all(future.done() or future.result() for future in futures)


async def test_two_hundred_operations_in_flight_async(trainer):
    futures = [await trainer.forward_async([datum(index % 5)]) for index in range(200)]
    outputs = await asyncio.gather(*futures)
    assert len(outputs) == 200
    assert outputs[0].loss == outputs[5].loss


async def test_async_is_the_same_as_sync(trainer):
    data = [datum(), datum(1)]
    synchronous = trainer.forward(data).result()
    asynchronous = await (await trainer.forward_async(data))
    assert asynchronous.loss == synchronous.loss
    np.testing.assert_array_equal(logprobs_of(asynchronous), logprobs_of(synchronous))
    await (await trainer.forward_backward_async(data))
    assert (await (await trainer.optim_step_async())).metrics["step"] == 1
    saved = await (await trainer.save_state_async("async"))
    await (await trainer.load_state_async(saved.path))
    await (await trainer.load_state_with_optimizer_async(saved.path))
    await (await trainer.reset_async(4))


def test_a_timeout_ends_the_wait_and_nothing_else(trainer):
    blocked = [trainer.forward_backward([datum()] * 200) for _ in range(3)]
    with pytest.raises(farstep.ResultTimeout):
        blocked[-1].result(timeout=0.001)
    assert blocked[-1].result(timeout=60).loss > 0


async def test_cancelling_the_waiter_does_not_cancel_the_operation(trainer):
    future = await trainer.forward_backward_async([datum()] * 200)
    waiter = asyncio.ensure_future(asyncio.wait_for(future, 0.001))
    with pytest.raises(asyncio.TimeoutError):
        await waiter
    assert (await future).loss > 0


def test_cancel_drops_what_has_not_started(trainer):
    trainer.forward_backward([datum()] * 300)
    second = trainer.forward_backward([datum()] * 300)
    third = trainer.forward_backward([datum()])
    assert third.cancel()
    with pytest.raises(farstep.FarstepError, match="cancel"):
        third.result()
    assert second.result().loss > 0
    assert trainer.optim_step().result().metrics["step"] == 1


def test_runs_do_not_see_each_other(service, trainer):
    other = service.create_lora_training_client("farstep/tiny", rank=8, seed=2)
    before = other.forward([datum()]).result().loss
    trainer.forward_backward([datum()])
    trainer.optim_step(AdamParams(learning_rate=1e-2)).result()
    assert other.forward([datum()]).result().loss == before
    with pytest.raises(RemoteOpError, match="gradient"):
        other.optim_step().result()


def test_info_health_and_tokenizer(trainer):
    trainer.ensure_ready(timeout=10)
    trainer.health()
    info = trainer.get_info()
    assert (info.base_model, info.lora_rank) == ("farstep/tiny", 4)
    tokenizer = trainer.get_tokenizer()
    assert tokenizer is trainer.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_trace_tells_where_the_time_went(trainer):
    trainer.forward_backward([datum()] * 20)
    trainer.optim_step().result()
    passed, stepped = trainer.trace()
    assert (passed.verb, stepped.verb) == ("forward_backward", "optim_step")
    assert passed.num_tokens == 20 * 8
    assert passed.phases_s["forward"] > 0
    assert passed.phases_s["backward"] > 0
    assert stepped.phases_s["optimizer"] > 0
    assert passed.total_s >= passed.queued_s + passed.phases_s["forward"] + passed.phases_s["backward"]
    assert passed.submitted_at <= stepped.submitted_at
    assert trainer.trace(1) == [stepped]
    with pytest.raises(ValueError, match="last"):
        trainer.trace(0)
