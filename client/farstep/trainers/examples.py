"""Rows as the model will see them, for whoever wants to look at masks and templates before a run. Decides nothing.

What is learnt stands between ⟦ and ⟧.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from farstep.trainers.data.dataset import Dataset
    from farstep.trainers.rl.prompt_rows import PromptRows

_PAIR = ("chosen", "rejected")


def marked(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], loss_mask: Sequence[float]) -> str:
    """The text of tokens, what has a weight between ⟦ and ⟧."""
    told = ""
    for is_trained, places in groupby(range(len(tokens)), key=lambda place: loss_mask[place] != 0):
        text = str(tokenizer.decode([tokens[place] for place in places]))
        told += f"⟦{text}⟧" if is_trained else text
    return told


def of_sequences(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """One text for each example, with all of its sequences."""
    for index in range(len(dataset)):
        group, told = dataset[index], []
        for part, row in enumerate(group):
            which = f", {_PAIR[part]}" if len(group) == len(_PAIR) else ""
            num_trained = sum(weight != 0 for weight in row.loss_mask)
            text = marked(tokenizer, row.tokens, row.loss_mask)
            told.append(f"example {index + 1}{which}: {len(row):,} tokens, {num_trained:,} trained\n{text}")
        yield "\n".join(told)


def of_prompts(rows: PromptRows, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """One text for each prompt, with what the reward will be given beside it."""
    for index in range(len(rows.loader)):
        item = rows.loader.item(index)
        note = ", too long: skipped" if rows.loader.is_too_long(item) else ""
        beside = f"; solutions: {item.solutions!r}" if item.solutions is not None else ""
        yield f"example {index + 1}: {len(item.tokens):,} tokens{note}{beside}\n{tokenizer.decode(list(item.tokens))}"


def prompt_lengths(rows: PromptRows) -> str:
    """How many prompts there are, how long, and how many are skipped as training will skip them."""
    lengths, most = rows.lengths, rows.loader.max_prompt_tokens
    told = f"{len(rows):,} of {len(lengths):,} prompts"
    if most is not None:
        told += f", {len(lengths) - len(rows):,} skipped: over {most:,} tokens"
    return f"{told}; shortest {lengths.min():,}, median {np.median(lengths):,.0f}, longest {lengths.max():,} tokens"
