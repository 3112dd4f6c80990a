"""Supervised fine-tuning: teach the model to count the vowels of a word, and ask it afterwards.

farstep up                  # in another terminal, or set FARSTEP_BASE_URL and FARSTEP_API_KEY
python examples/sft.py
"""

import argparse
import random

from farstep import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient

WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "tiger",
    "lemon",
    "piano",
    "garden",
    "window",
    "silver",
    "rocket",
    "forest",
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="farstep/tiny")
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()

service = ServiceClient()
trainer = service.create_lora_training_client(arguments.model, rank=16, seed=0)
tokenizer = trainer.get_tokenizer()
rng = random.Random(0)


def prompt(word: str) -> list[int]:
    messages = [{"role": "user", "content": f"vowels {word}"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def example(word: str) -> Datum:
    answer = "".join(letter for letter in word if letter in "aeiou")
    completion = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    return Datum.from_prompt_completion(prompt(word), completion)


for step in range(arguments.steps):
    batch = [example(rng.choice(WORDS)) for _ in range(16)]
    gradients = trainer.forward_backward(batch)  # both are under way …
    update = trainer.optim_step(AdamParams(learning_rate=4e-3))
    loss = gradients.result().loss  # … before the first is waited for
    if step % 10 == 0:
        print(f"step {step:3}  loss {loss:.3f}  grad norm {update.result().metrics['grad_norm']:.3f}")

sampler = trainer.save_weights_and_get_sampling_client(name="vowels")
for word in ("apple", "window", "forest"):
    answer = sampler.sample(
        ModelInput.from_ints(prompt(word)), 1, SamplingParams(max_tokens=12, temperature=0)
    ).result()
    print(f"vowels {word} → {tokenizer.decode(answer.sequences[0].tokens, skip_special_tokens=True)}")
print("saved as", trainer.save_state("vowels").result().path)
service.close()
