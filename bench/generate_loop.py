"""What sampling is compared with: `transformers.generate` with its KV cache on one padded batch, in its own process.

LoRA is peft's, with the adapter that the sampler serves. Everything is sampled to the same number of tokens; prompts
of unequal lengths are padded on the left, as one must. Tokenizing and the making of tensors are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.child import answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("adapter")
    flags = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32).eval()
    again = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32)
    models = {"base": base, "lora": PeftModel.from_pretrained(again, flags.adapter).eval()}
    answer(ready=True)
    for line in sys.stdin:
        question = json.loads(line)
        ids_BT, mask_BT = left_padded(question["prompts"])
        started = time.perf_counter()
        generate(models[question["kind"]], ids_BT, mask_BT, question["num_samples"], question["max_tokens"])
        answer(seconds=time.perf_counter() - started)


def left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [B, T]."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@torch.inference_mode()
def generate(
    model: PreTrainedModel | PeftModel, ids_BT: Tensor, mask_BT: Tensor, num_samples: int, length: int
) -> Tensor:
    return model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        do_sample=True,
        top_k=0,
        num_return_sequences=num_samples,
        max_new_tokens=length,
        min_new_tokens=length,
        pad_token_id=0,
    )


if __name__ == "__main__":
    main()
