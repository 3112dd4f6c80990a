"""Conversations and plain texts as `TrainSequence`s: what the row adapters share.

Shapes: T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.adapters.base import NothingToTrain
from farstep.trainers.data.chat import Rendered, Template, rendered
from farstep.trainers.data.conversation import bare, messages_of
from farstep.trainers.data.tokens import Masked, masked, token_ids
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_of(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> Template:
    return Template(tokenizer, config.chat_template, dict(config.chat_template_kwargs))


def as_chat(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> bool:
    """Whether plain prompts and answers are put into the chat template."""
    return (
        config.apply_chat_template if config.apply_chat_template is not None else template_of(tokenizer, config).exists
    )


def of_conversation(
    messages: Sequence[Mapping[str, Any]],
    trained: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    tools: Sequence[Any] | None = None,
) -> list[TrainSequence]:
    """One sequence, or several where the template changes earlier turns and `config` says to split.

    Raises:
        DataError: the template refuses it.
        NothingToTrain: none of its tokens is to be learnt.
    """
    texts = rendered(
        template_of(tokenizer, config),
        bare(messages),
        trained,
        tools=tools,
        split=config.on_rewritten_turns == "split" and config.mask_inputs,
        ignore_empty_think=config.ignore_empty_think,
    )
    return [_sequence(masked(tokenizer, text), config, split=len(texts) > 1) for text in texts]


def of_plain(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> TrainSequence:
    """[BOS] prompt answer [EOS], the answer and EOS to be learnt."""
    text = masked(tokenizer, Rendered(prompt + answer, ((len(prompt), len(prompt + answer)),)))
    before, after = ends(tokenizer, config)
    tokens = [*before, *text.tokens, *after]
    mask = [0.0] * len(before) + text.mask + [1.0] * len(after)
    return _sequence(Masked(tokens, mask, text.retokenized), config)


def ends(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> tuple[list[int], list[int]]:
    """What stands before and after a plain text."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return ([bos] if config.add_bos and bos is not None else []), ([eos] if config.add_eos and eos is not None else [])


def _sequence(text: Masked, config: DataConfig, *, split: bool = False) -> TrainSequence:
    if len(text.tokens) < 2 or (config.mask_inputs and not any(text.mask[1:])):
        raise NothingToTrain(f"{len(text.tokens)} tokens, none of them to be learnt")
    loss_mask = text.mask if config.mask_inputs else [1.0] * len(text.tokens)
    given = [int(weight == 0) for weight in text.mask]
    metadata = {key: True for key, so in (("retokenized", text.retokenized), ("split", split)) if so}
    return TrainSequence(text.tokens, loss_mask, given, metadata=metadata)


def prompt_messages(prompt: object, field: str) -> list[dict[str, Any]]:
    """A prompt as messages: text is what a user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages_of(prompt, field)


def prompt_tokens(
    prompt: object,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    field: str,
    tools: Sequence[Any] | None = None,
) -> list[int]:
    """What the model is asked with: the template's, or [BOS] and the text.

    Raises:
        DataError: neither text nor messages.
    """
    if isinstance(prompt, str) and not as_chat(tokenizer, config):
        return [*ends(tokenizer, config)[0], *token_ids(tokenizer, prompt)]
    messages = bare(prompt_messages(prompt, field))
    return token_ids(tokenizer, template_of(tokenizer, config).render(messages, tools, ask=True))


def text_of(row: Mapping[str, Any], key: str) -> str:
    """
    Raises:
        DataError: it is no text.
    """
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{type(value).__name__}, not text", field=key)
    return value
