"""Reinforcement learning: sample from each new policy, reward the right sums, step, publish, repeat.

farstep up                  # in another terminal, or set FARSTEP_BASE_URL and FARSTEP_API_KEY
python examples/rl_loop.py
"""

import argparse
import random
import re

from farstep import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="farstep/tiny")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--prompts", type=int, default=32, help="a step")
parser.add_argument("--samples", type=int, default=8, help="a prompt")
arguments = parser.parse_args()

service = ServiceClient()
trainer = service.create_lora_training_client(arguments.model, rank=16, seed=0)
tokenizer = trainer.get_tokenizer()
rng = random.Random(0)


def prompt(a: int, b: int) -> ModelInput:
    messages = [{"role": "user", "content": f"{a}+{b}?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return ModelInput.from_ints(tokenizer.encode(text, add_special_tokens=False))


def is_right(answer: str, a: int, b: int) -> float:
    numbers = re.findall(r"\d+", answer)
    return float(bool(numbers) and int(numbers[-1]) == a + b)


for _ in range(arguments.steps):
    sampler = trainer.save_weights_and_get_sampling_client()  # version v; only v or newer will answer
    sums = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(arguments.prompts)]
    params = SamplingParams(max_tokens=40)
    futures = [sampler.sample(prompt(a, b), arguments.samples, params) for a, b in sums]

    data, rewards = [], []
    for (a, b), future in zip(sums, futures):
        answers = future.result().sequences
        group = [is_right(tokenizer.decode(answer.tokens, skip_special_tokens=True), a, b) for answer in answers]
        rewards += group
        given = prompt(a, b).to_ints()
        for answer, reward in zip(answers, group):
            advantage = reward - sum(group) / len(group)
            if advantage:
                data.append(
                    Datum.from_prompt_completion(given, answer.tokens, logprobs=answer.logprobs, advantages=advantage)
                )
    if data:
        trainer.forward_backward(data, "importance_sampling")
        trainer.optim_step(AdamParams(learning_rate=4e-3)).result()
    print(f"policy v{sampler.policy_version:<3} reward {sum(rewards) / len(rewards):.3f}")

print("saved as", trainer.save_state("rl").result().path)
service.close()
