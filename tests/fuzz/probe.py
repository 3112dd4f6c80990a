"""A training step and a sample whose numbers must not depend on what a server went through before."""

from __future__ import annotations

import itertools

import farstep
from farstep import AdamParams, Datum, ModelInput, SamplingParams

_NUMBERS = itertools.count()


def numbers_of(trainer_url: str, sampler_url: str) -> dict[str, object]:
    """Of a fresh run with a fixed seed; the key is taken from the environment."""
    data = [Datum(ModelInput.from_ints([1, 40, 41, 42]), {"target_tokens": [40, 41, 42, 43]})]
    with farstep.ServiceClient.local(trainer_url=trainer_url, sampler_url=sampler_url) as service:
        trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=5)
        first = trainer.forward_backward(data, "cross_entropy").result().loss
        trainer.optim_step(AdamParams(learning_rate=0.01)).result()
        second = trainer.forward(data, "cross_entropy").result().loss
        sampler = trainer.save_weights_and_get_sampling_client()
        params = SamplingParams(max_tokens=8, temperature=1.0, seed=3)
        sequence = sampler.sample(ModelInput.from_ints([1, 40, 41]), 1, params).result().sequences[0]
        return {
            "losses": (first, second),
            "tokens": tuple(sequence.tokens),
            "logprobs": tuple(float(each) for each in sequence.logprobs),
        }
