"""The openai client against a run's newest policy: a chat, a stream, and the token ids that training wants.

farstep up                  # in another terminal, or set FARSTEP_BASE_URL and FARSTEP_API_KEY
pip install openai
python examples/openai_client.py
"""

import argparse
import os
from pathlib import Path

from openai import OpenAI

from farstep import AdamParams, Datum, ServiceClient

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="farstep/tiny")
parser.add_argument("--steps", type=int, default=3)
arguments = parser.parse_args()
key = os.environ.get("FARSTEP_API_KEY") or Path("~/.farstep/api_key").expanduser().read_text().strip()

with ServiceClient() as service:
    trainer = service.create_lora_training_client(arguments.model, rank=8, seed=0)
    sampler = trainer.save_weights_and_get_sampling_client()
    client = OpenAI(base_url=f"{sampler.url}/v1", api_key=key)
    messages = [{"role": "user", "content": "12+30?"}]
    for _ in range(arguments.steps):
        answer = client.chat.completions.create(
            model=trainer.run_id,  # its newest policy; f"{run_id}@3" is exactly version 3
            messages=messages,
            max_tokens=24,
            logprobs=True,
            extra_headers={"X-Min-Policy-Version": str(sampler.policy_version)},
            extra_body={"return_token_ids": True},
        )
        choice = answer.choices[0].model_dump()
        logprobs = [token.logprob for token in answer.choices[0].logprobs.content]
        reward = 1.0 if "42" in choice["message"]["content"] else -1.0
        print(
            f"policy v{answer.model_dump()['policy_version']}  reward {reward:+.0f}  {choice['message']['content']!r}"
        )
        given = answer.model_dump()["prompt_token_ids"]
        datum = Datum.from_prompt_completion(given, choice["token_ids"], logprobs=logprobs, advantages=reward)
        trainer.forward_backward([datum], "importance_sampling")
        trainer.optim_step(AdamParams(learning_rate=1e-3)).result()
        sampler = trainer.save_weights_and_get_sampling_client()

    stream = client.chat.completions.create(
        model=f"{trainer.run_id}@{sampler.policy_version}", messages=messages, max_tokens=24, stream=True
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()
