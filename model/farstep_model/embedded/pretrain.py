"""Make the embedded model's weights: `python -m farstep_model.embedded.pretrain --out DIR`.

A script, not part of the library: nothing imports it. It trains a tokenizer and a small Qwen3 on `corpus`, prints its
progress and writes a folder that transformers loads. The same Python, torch and thread count give the same weights.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from farstep_model.embedded import corpus

# Shapes: B sequences, T tokens (padded), V vocabulary.

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Be brief.", "Answer the question.")

NUM_STEPS = 750
NUM_WARMUP_STEPS = 50
LAST_SHARE = 0.15  # of the steps, in which worked answers become as rare as they shall stay
WORKED_EARLY, WORKED_LATE = 0.6, 0.15
TASKS_A_STEP, PROSE_A_STEP = 64, 48
ROWS_A_PASS = 32  # sequences of like length that share one padded pass
ADAM_LR, MUON_LR = 3e-3, 2e-2
VOCAB_SIZE = 1024
IGNORED = -100

Message = dict[str, str]
Encoded = tuple[list[int], int]  # token ids, and how many of them are a prompt without loss


def build_tokenizer(prose: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with single digits on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tasks = ["\n".join(corpus.word_task(skill, word)) for skill in corpus.SKILLS for word in corpus.WORDS]
    roles = ["system\n", "user\n", "assistant\n", "complete: "] * 100
    tokenizer.train_from_iterator([*prose, *tasks, *roles], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


class Examples:
    """An endless, seeded source of encoded examples."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prose: list[str]) -> None:
        self._tokenizer = tokenizer
        self._prose = prose
        self._additions = corpus.pretraining_additions()
        self._rng = random.Random(1)

    def tasks(self, n: int, *, worked_share: float) -> list[Encoded]:
        return [self._chat(*self._task(worked_share)) for _ in range(n)]

    def paragraphs(self) -> Iterator[list[Encoded]]:
        """Yield batches of paragraphs of like length, pass after pass over all of them."""
        while True:
            encoded = [self._paragraph(text) for text in self._prose]
            self._rng.shuffle(encoded)
            encoded.sort(key=lambda example: len(example[0]) // 16)
            batches = [encoded[i : i + PROSE_A_STEP] for i in range(0, len(encoded), PROSE_A_STEP)]
            self._rng.shuffle(batches)
            yield from batches

    def _task(self, worked_share: float) -> tuple[str, str]:
        if self._rng.random() < 0.4:
            return corpus.word_task(self._rng.choice(corpus.SKILLS), self._rng.choice(corpus.WORDS))
        addition = self._rng.choice(self._additions)
        is_worked = self._rng.random() < worked_share
        return addition.question, addition.worked if is_worked else addition.guess(self._rng)

    def _paragraph(self, text: str) -> Encoded:
        """Encode a paragraph as bare text or, as often, as the completion of its first words."""
        if self._rng.random() < 0.5:
            return whole(self._tokenizer, text)
        words = text.split(" ")
        num_given = min(self._rng.randint(2, 8), len(words) - 1)
        return self._chat("complete: " + " ".join(words[:num_given]), " ".join(words[num_given:]))

    def _chat(self, question: str, answer: str) -> Encoded:
        messages: list[Message] = [{"role": "user", "content": question}]
        if self._rng.random() < 0.1:
            messages.insert(0, {"role": "system", "content": self._rng.choice(SYSTEM_PROMPTS)})
        prompt = self._tokenizer.encode(render(self._tokenizer, messages))
        return prompt + self._tokenizer.encode(answer + TURN_END), len(prompt)


def render(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> Encoded:
    """Encode a text that ends here and has no prompt."""
    return [*tokenizer.encode(text), tokenizer.eos_token_id], 0


def mean_loss(model: Qwen3ForCausalLM, examples: list[Encoded]) -> torch.Tensor:
    """Return the mean cross-entropy over the tokens that are not prompt, in nats."""
    by_length = sorted(examples, key=lambda example: len(example[0]))
    rows = [by_length[i : i + ROWS_A_PASS] for i in range(0, len(by_length), ROWS_A_PASS)]
    num_targets = sum(len(tokens) - max(num_prompt, 1) for tokens, num_prompt in examples)
    return torch.stack([summed_loss(model, group) for group in rows]).sum() / num_targets


def summed_loss(model: Qwen3ForCausalLM, examples: list[Encoded]) -> torch.Tensor:
    length = max(len(tokens) for tokens, _ in examples)
    tokens_BT = torch.zeros(len(examples), length, dtype=torch.long)
    labels_BT = torch.full((len(examples), length), IGNORED)
    for row, (tokens, num_prompt) in enumerate(examples):
        tokens_BT[row, : len(tokens)] = torch.tensor(tokens)
        labels_BT[row, num_prompt : len(tokens)] = tokens_BT[row, num_prompt : len(tokens)]
    logits_BTV = model(input_ids=tokens_BT[:, :-1]).logits
    return cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")


def build_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def lr_factor(step: int) -> float:
    """Rise linearly, then fall along a cosine to a twentieth."""
    warmup = min(1.0, (step + 1) / NUM_WARMUP_STEPS)
    return warmup * max(0.05, 0.5 * (1 + math.cos(math.pi * step / NUM_STEPS)))


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prose: list[str]) -> None:
    optimizers = build_optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor) for optimizer in optimizers]
    examples = Examples(tokenizer, prose)
    paragraphs = examples.paragraphs()
    started, num_tokens = time.perf_counter(), 0
    for step in range(NUM_STEPS):
        worked_share = WORKED_EARLY if step < NUM_STEPS * (1 - LAST_SHARE) else WORKED_LATE
        tasks, texts = examples.tasks(TASKS_A_STEP, worked_share=worked_share), next(paragraphs)
        num_tokens += sum(len(tokens) for tokens, _ in tasks + texts)
        task_loss, prose_loss = mean_loss(model, tasks), mean_loss(model, texts)
        (task_loss + prose_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if (step + 1) % 100 == 0:
            elapsed_s = time.perf_counter() - started
            losses = f"loss tasks {task_loss.item():.3f} prose {prose_loss.item():.3f}"
            print(f"step {step + 1} {losses} {num_tokens} tokens {elapsed_s:.0f} s", flush=True)


@torch.no_grad()
def answer(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str], *, greedy: bool
) -> list[str]:
    prompts = [render(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    sampling = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    output_BT = model.generate(**inputs, max_new_tokens=32, do_sample=not greedy, **sampling)
    texts: list[str] = tokenizer.batch_decode(output_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


@torch.no_grad()
def report(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print how the model does on what it has not seen, and on the word skills."""
    model.eval()
    report_additions(model, tokenizer, greedy=False)
    report_additions(model, tokenizer, greedy=True)
    for skill in corpus.SKILLS:
        tasks = [corpus.word_task(skill, word) for word in corpus.WORDS]
        answers = answer(model, tokenizer, [question for question, _ in tasks], greedy=True)
        num_right = sum(text == right for text, (_, right) in zip(answers, tasks, strict=True))
        print(f"{skill}: {num_right / len(tasks):.2f} right")
    texts = [whole(tokenizer, text) for text in corpus.heldout_prose("test")]
    num_chars = sum(map(len, corpus.heldout_prose("test")))
    loss, num_targets = mean_loss(model, texts).item(), sum(len(tokens) - 1 for tokens, _ in texts)
    print(
        f"held-out prose: {loss:.3f} nats a token, {loss * num_targets / num_chars / math.log(2):.2f} bits a character"
    )


def report_additions(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, greedy: bool) -> None:
    questions = [addition.question for addition in corpus.heldout_additions()]
    answers = answer(model, tokenizer, questions, greedy=greedy)
    rewards = [corpus.reward(*pair) for pair in zip(questions, answers, strict=True)]
    worked = [right for right, text in zip(rewards, answers, strict=True) if "=" in text]
    mean, share, right = sum(rewards) / len(rewards), len(worked) / len(rewards), sum(worked) / max(1, len(worked))
    way = "greedy" if greedy else "temperature 1"
    print(f"additions, {way}: reward {mean:.3f}; worked {share:.3f}, and then right {right:.3f}; e.g. {answers[:3]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    out: Path = parser.parse_args().out
    torch.manual_seed(0)
    prose = corpus.pretraining_prose()
    tokenizer = build_tokenizer(prose)
    model = build_model(tokenizer)
    print(
        f"{len(prose)} paragraphs, {sum(map(len, prose))} characters, {model.num_parameters()} parameters",
        flush=True,
    )
    train(model, tokenizer, prose)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    report(Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32), tokenizer)


if __name__ == "__main__":
    main()
