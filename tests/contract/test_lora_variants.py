"""Rank-stabilised LoRA and DoRA through the real SDK: trainer, sampler and checkpoints agree on what an adapter is."""

import numpy as np
import pytest

from farstep import AdamParams, Datum, ModelInput, RemoteOpError

PROMPT, ANSWER = [1, 40, 41, 42], [50, 51, 52, 2]
DATA = [Datum.from_prompt_completion(PROMPT, ANSWER)]
VARIANTS = [{"use_rslora": True}, {"use_dora": True}, {"use_dora": True, "use_rslora": True, "train_unembed": True}]


def logprobs_of(client):
    return client.forward(DATA).result().loss_fn_outputs[0]["logprobs"].to_numpy()[-len(ANSWER) :]


def train(client, steps=3):
    for _ in range(steps):
        client.forward_backward(DATA)
        client.optim_step(AdamParams(learning_rate=5e-3)).result()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("settings", VARIANTS)
def test_it_trains_samples_and_is_kept(service, settings):
    client = service.create_lora_training_client("farstep/tiny", rank=4, seed=1, dropout=0.1, **settings)
    before = logprobs_of(client)
    train(client)
    trained = logprobs_of(client)
    assert trained.sum() > before.sum() + 1
    sampler = client.save_weights_and_get_sampling_client("policy")
    sampled = sampler.compute_logprobs(ModelInput.from_ints(PROMPT + ANSWER)).result()
    np.testing.assert_allclose(sampled[len(PROMPT) :], trained, atol=1e-4)
    path = client.save_state("mid").result().path
    copy = service.create_training_client_from_state_with_optimizer(path)
    np.testing.assert_array_equal(logprobs_of(copy), trained)
    for one in (client, copy):
        train(one)
    np.testing.assert_array_equal(logprobs_of(copy), logprobs_of(client))
    again = client.forward(DATA, adapter="start").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    np.testing.assert_array_equal(again[-len(ANSWER) :], before)


def test_rank_stabilised_scaling_is_larger_by_the_root_of_the_rank(service):
    norms = []
    for use in (False, True):
        client = service.create_lora_training_client("farstep/tiny", rank=4, seed=1, use_rslora=use)
        client.forward_backward(DATA)
        norms.append(client.optim_step(AdamParams(learning_rate=1e-3)).result().metrics["grad_norm"])
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4)  # B is 0 still: the gradient is that of B alone


def test_weights_of_another_variant_are_refused_by_name(service, trainer):
    client = service.create_lora_training_client("farstep/tiny", rank=4, use_dora=True)
    path = client.save_state("dora").result().path
    with pytest.raises(RemoteOpError, match="LoRA use_dora True, the run has False"):
        trainer.load_state(path).result()
