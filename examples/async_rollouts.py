"""Hundreds of rollouts in flight on one event loop, while the trainer steps as groups come in.

farstep up                  # in another terminal, or set FARSTEP_BASE_URL and FARSTEP_API_KEY
python examples/async_rollouts.py
"""

import argparse
import asyncio
import random
import re
import time

from farstep import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="farstep/tiny")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--rollouts", type=int, default=200, help="in flight at once, a round")
arguments = parser.parse_args()


async def rollout(sampler, tokenizer, a, b, samples=4):
    """One question, a few answers, one group of data with its mean reward."""
    messages = [{"role": "user", "content": f"{a}+{b}?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    given = tokenizer.encode(text, add_special_tokens=False)
    result = await (await sampler.sample_async(ModelInput.from_ints(given), samples, SamplingParams(max_tokens=40)))

    rewards = []
    for answer in result.sequences:
        numbers = re.findall(r"\d+", tokenizer.decode(answer.tokens, skip_special_tokens=True))
        rewards.append(float(bool(numbers) and int(numbers[-1]) == a + b))
    mean = sum(rewards) / len(rewards)
    data = [
        Datum.from_prompt_completion(given, answer.tokens, logprobs=answer.logprobs, advantages=reward - mean)
        for answer, reward in zip(result.sequences, rewards)
        if reward != mean
    ]
    return data, mean


async def main():
    async with ServiceClient() as service:
        trainer = await service.create_lora_training_client_async(arguments.model, rank=16, seed=0)
        tokenizer = trainer.get_tokenizer()
        rng = random.Random(0)
        for _ in range(arguments.rounds):
            sampler = await trainer.save_weights_and_get_sampling_client_async()
            started = time.perf_counter()
            rollouts = [
                rollout(sampler, tokenizer, rng.randint(10, 99), rng.randint(10, 99)) for _ in range(arguments.rollouts)
            ]
            means, gradients, batch = [], [], []
            for finished in asyncio.as_completed(rollouts):  # train on what is there, not on the slowest
                data, mean = await finished
                means.append(mean)
                batch += data
                if len(batch) >= 64:
                    gradients.append(await trainer.forward_backward_async(batch, "importance_sampling"))
                    batch = []
            if batch:
                gradients.append(await trainer.forward_backward_async(batch, "importance_sampling"))
            if gradients:
                await (await trainer.optim_step_async(AdamParams(learning_rate=4e-3)))
            print(
                f"policy v{sampler.policy_version}  reward {sum(means) / len(means):.3f}  "
                f"{len(rollouts)} rollouts in {time.perf_counter() - started:.1f} s, "
                f"gradients in {len(gradients)} operations"
            )


asyncio.run(main())
