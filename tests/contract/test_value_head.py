"""A critic through the real SDK: values, returns, the clipped value loss, and what a run with a value head promises."""

import numpy as np
import pytest
import torch

from farstep import AdamParams, Datum, InvalidInputError, ModelInput

ADAM = AdamParams(learning_rate=2e-2)
TOKENS = [[1, 40, 41, 42, 50, 51, 2], [1, 43, 44, 52, 2], [1, 45, 46, 47, 48, 53, 54, 55, 2]]


def asking():
    return [Datum(ModelInput.from_ints(tokens), {}) for tokens in TOKENS]


def values_of(output):
    return [fields["values"].to_numpy() for fields in output.loss_fn_outputs]


def with_returns(values):
    """What is to be learnt: the share of the sequence that is still to come."""
    return [
        Datum(ModelInput.from_ints(tokens), {"returns": np.linspace(1, 0, len(tokens)), "values": old})
        for tokens, old in zip(TOKENS, values, strict=True)
    ]


def train(critic, steps):
    for _ in range(steps):
        data = with_returns(values_of(critic.forward(asking(), "value").result()))
        output = critic.forward_backward(data, "value")
        critic.optim_step(ADAM)
    return output.result()


@pytest.fixture
def critic(service):
    return service.create_lora_training_client("farstep/tiny", rank=4, seed=1, value_head=True)


def test_a_critic_learns(critic):
    first = critic.forward(with_returns([np.zeros(len(tokens)) for tokens in TOKENS]), "value").result()
    assert [values.tolist() for values in values_of(first)] == [[0.0] * len(tokens) for tokens in TOKENS]
    squares = np.concatenate([np.linspace(1, 0, len(tokens)) ** 2 for tokens in TOKENS])
    assert first.metrics["loss:sum"] == pytest.approx(0.5 * 0.5 * squares.sum(), rel=1e-5)
    assert first.metrics["value:explained_variance"] == pytest.approx(0, abs=1e-5)
    last = train(critic, 25)
    assert last.loss < first.loss / 10
    assert last.metrics["value:explained_variance"] > 0.8


def test_the_loss_is_that_of_plain_torch(critic):
    train(critic, 5)
    now = values_of(critic.forward(asking(), "value").result())
    old = [values + 0.3 * np.sin(np.arange(len(values))) for values in now]
    config = {"clip": 0.1, "coef": 2.0, "normalizer": 4.0}
    output = critic.forward(with_returns(old), "value", config).result()
    v, q = (torch.tensor(np.concatenate(arrays)).double() for arrays in (now, old))
    returns = torch.cat([torch.linspace(1, 0, len(tokens), dtype=torch.float64) for tokens in TOKENS])
    clipped = q + (v - q).clamp(-0.1, 0.1)
    squares = torch.stack([(v - returns) ** 2, (clipped - returns) ** 2])
    assert output.metrics["loss:sum"] == pytest.approx(2.0 * 0.5 * squares.amax(0).sum().item() / 4, rel=1e-5)
    assert output.metrics["clip_fraction:mean"] == pytest.approx((squares[1] > squares[0]).double().mean().item())
    assert 0 < output.metrics["clip_fraction:mean"] < 1


def test_actor_and_critic_can_share_an_adapter(critic):
    """One step from a policy loss and a value loss; each is also there alone, and steps between touch the other not."""
    plain = Datum.from_prompt_completion([1, 40, 41, 42], [50, 51, 2])
    logprobs = critic.forward([plain]).result().loss_fn_outputs[0]["logprobs"].to_numpy()
    policy = Datum.from_prompt_completion([1, 40, 41, 42], [50, 51, 2], logprobs=logprobs[-3:], advantages=1.0)
    data = with_returns(values_of(critic.forward(asking(), "value").result()))
    critic.forward_backward([policy], "ppo")
    critic.forward_backward(data, "value")
    critic.optim_step(ADAM).result()
    assert any(values.any() for values in values_of(critic.forward(asking(), "value").result()))
    better = critic.forward([plain]).result().loss_fn_outputs[0]["logprobs"].to_numpy()
    assert better.sum() > logprobs.sum()
    critic.save_weights_and_get_sampling_client().sample([1, 40]).result()


def test_it_survives_with_the_run(service, critic):
    train(critic, 3)
    trained = values_of(critic.forward(asking(), "value").result())
    path = critic.save_state("critic").result().path
    again = service.resume_run(critic.run_id)
    assert again.get_info().value_head
    np.testing.assert_array_equal(values_of(again.forward(asking(), "value").result())[0], trained[0])
    copy = service.create_training_client_from_state_with_optimizer(path)
    for one, other in zip(values_of(copy.forward(asking(), "value").result()), trained, strict=True):
        np.testing.assert_array_equal(one, other)
    same = [train(client, 3).metrics["loss:sum"] for client in (again, copy)]
    assert same[0] == same[1]
    copy.reset(2).result()
    assert not values_of(copy.forward(asking(), "value").result())[0].any()


async def test_a_critic_from_a_policys_checkpoint_and_a_policy_from_a_critics(service, critic):
    policy = await service.create_lora_training_client_async("farstep/tiny", rank=4, seed=2)
    policy.forward_backward([Datum.from_prompt_completion([1, 40], [50, 2])])
    policy.optim_step(ADAM)
    path = policy.save_state("sft").result().path
    assert not service.create_training_client_from_state(path).get_info().value_head
    other = await service.create_training_client_from_state_async(path, value_head=True)
    assert train(other, 2).metrics["tokens:sum"] == sum(map(len, TOKENS))
    back = other.save_state("critic").result().path
    bare = await service.create_training_client_from_state_async(back, value_head=False)
    with pytest.raises(InvalidInputError, match="no value head"):
        bare.forward(asking(), "value")
    with pytest.raises(InvalidInputError) as caught:
        service.create_training_client_from_state_with_optimizer(back, value_head=False)
    assert caught.value.field == "value_head"


def test_a_run_without_one_refuses_the_loss_and_loses_nothing(trainer):
    for call in (trainer.forward, trainer.forward_backward):
        with pytest.raises(InvalidInputError, match="no value head") as caught:
            call(with_returns([np.zeros(len(tokens)) for tokens in TOKENS]), "value")
        assert caught.value.field == "loss_fn"
        assert "value_head=True" in str(caught.value)
    assert trainer.forward([Datum.from_prompt_completion([1, 40], [50, 2])]).result().loss > 0


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "missing 'returns'"),
        ({"returns": [0.0] * 7}, "missing 'values'"),
        ({"returns": [0.0] * 7, "values": [np.nan] * 7}, "not a finite number"),
        ({"returns": [0.0] * 6, "values": [0.0] * 7}, "length 6 differs"),
        ({"returns": [0.0] * 7, "values": [0.0] * 7, "mask": [1.0] * 7}, "unknown input 'mask'"),
    ],
)
def test_bad_data_are_refused_by_name(critic, inputs, says):
    with pytest.raises(InvalidInputError, match=says) as caught:
        critic.forward_backward([Datum(ModelInput.from_ints(TOKENS[0]), inputs)], "value")
    assert caught.value.field.startswith("data[0].loss_fn_inputs")
