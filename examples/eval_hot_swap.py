"""An evaluation loop beside the training loop: each new policy is measured, exactly that one, while training goes on.

farstep up                  # in another terminal, or set FARSTEP_BASE_URL and FARSTEP_API_KEY
python examples/eval_hot_swap.py
"""

import argparse
import queue
import random
import threading

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
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--publish-every", type=int, default=10)
arguments = parser.parse_args()

service = ServiceClient()
trainer = service.create_lora_training_client(arguments.model, rank=16, seed=0)
tokenizer = trainer.get_tokenizer()
published = queue.Queue()


def prompt(word):
    messages = [{"role": "user", "content": f"vowels {word}"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def vowels(word):
    return "".join(letter for letter in word if letter in "aeiou")


def evaluate():
    """`pin="exact"`: the version that was published at that step answers, though newer ones are there."""
    while (item := published.get()) is not None:
        step, sampler = item
        params = SamplingParams(max_tokens=12, temperature=0)
        futures = [sampler.sample(ModelInput.from_ints(prompt(word)), 1, params) for word in WORDS]
        results = [future.result() for future in futures]
        answers = [tokenizer.decode(result.sequences[0].tokens, skip_special_tokens=True) for result in results]
        right = sum(answer == vowels(word) for answer, word in zip(answers, WORDS)) / len(WORDS)
        served = {result.policy_version for result in results}
        assert served == {sampler.policy_version}, served
        print(f"step {step:3}  policy v{sampler.policy_version}  right {right:.2f}")


evaluator = threading.Thread(target=evaluate)
evaluator.start()
rng = random.Random(0)
for step in range(1, arguments.steps + 1):
    words = [rng.choice(WORDS) for _ in range(16)]
    completions = [tokenizer.encode(f"{vowels(word)}<|im_end|>", add_special_tokens=False) for word in words]
    batch = [Datum.from_prompt_completion(prompt(word), done) for word, done in zip(words, completions)]
    trainer.forward_backward(batch)
    trainer.optim_step(AdamParams(learning_rate=4e-3))
    if step % arguments.publish_every == 0:
        published.put((step, trainer.save_weights_and_get_sampling_client(pin="exact")))
published.put(None)
evaluator.join()
service.close()
