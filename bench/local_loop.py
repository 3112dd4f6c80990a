"""What the worker is compared with: a plain torch + peft training loop in a process of its own.

It does what such loops do: one padded batch, the model's own logits, torch's cross-entropy summed over tokens, AdamW.
The adapter is the remote run's first one, read from its checkpoint, so that both sides train the same weights in the
same dtype. Padding and the making of tensors are not timed.
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
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from bench.batches import draw_batch
from bench.child import answer
from bench.settings import ADAM

_IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("--num-sequences", type=int, required=True)
    flags = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32)
    vocab_size = base.config.vocab_size
    model = PeftModel.from_pretrained(base, flags.adapter, is_trainable=True).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas, eps, weight_decay = (ADAM.beta1, ADAM.beta2), ADAM.eps, ADAM.weight_decay
    optimizer = torch.optim.AdamW(trained, ADAM.learning_rate, betas, eps, weight_decay, fused=True)
    answer(num_trained=sum(parameter.numel() for parameter in trained))
    for line in sys.stdin:
        question = json.loads(line)
        batch = draw_batch(**question, num_sequences=flags.num_sequences, vocab_size=vocab_size)
        tensors = [torch.from_numpy(sequence) for sequence in batch]
        ids_BT = pad_sequence([tokens[:-1] for tokens in tensors], batch_first=True)
        labels_BT = pad_sequence([tokens[1:] for tokens in tensors], batch_first=True, padding_value=_IGNORED)
        is_padded = bool((labels_BT == _IGNORED).any())
        started = time.perf_counter()
        loss = train_step(model, optimizer, ids_BT, labels_BT, mask=(labels_BT != _IGNORED) if is_padded else None)
        answer(seconds=time.perf_counter() - started, loss_sum=loss)


def train_step(
    model: PeftModel, optimizer: torch.optim.Optimizer, ids_BT: Tensor, labels_BT: Tensor, *, mask: Tensor | None
) -> float:
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask, use_cache=False).logits
    loss = functional.cross_entropy(
        logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=_IGNORED, reduction="sum"
    )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


if __name__ == "__main__":
    main()
