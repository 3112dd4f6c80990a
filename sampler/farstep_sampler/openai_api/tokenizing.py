"""The model's tokenizer: texts and messages to tokens, tokens to text.

It is loaded from the files that the backend hands out, so that a router, which has no model, tokenizes as its replicas
do. Texts are tokenized on one thread of their own: a long one holds up others, but never the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from farstep_proto.errors import InvalidInput
from farstep_proto.names import check_name
from farstep_proto.v1 import training_pb2
from farstep_proto.validation import check_tokens
from farstep_sampler.openai_api.text import Decode

T = TypeVar("T")

_RESERVED = frozenset({"messages", "conversation", "tools", "documents", "chat_template", "tokenize", "return_tensors",
                       "add_generation_prompt", "continue_final_message", "return_dict", "padding", "truncation",
                       "max_length", "tokenizer_kwargs", "return_assistant_tokens_mask"})  # fmt: skip


class Tokenizer:
    """Args:
    max_seq_len: texts that certainly have more tokens are refused before they are tokenized.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_seq_len: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._max_seq_len = max_seq_len
        self._vocab_size = vocab_size
        self._most_chars = max_seq_len * max(map(len, tokenizer.get_vocab()), default=1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        template = tokenizer.chat_template
        self.chat_template = template if isinstance(template, str) else "\n".join((template or {}).values())
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self.text_of_token = functools.lru_cache(1 << 16)(self._text_of_token)

    @classmethod
    async def load(cls, files: training_pb2.TokenizerFiles, *, max_seq_len: int, vocab_size: int) -> Tokenizer:
        return await asyncio.to_thread(lambda: cls(_load(files), max_seq_len=max_seq_len, vocab_size=vocab_size))

    def decoder(self, *, skip_special_tokens: bool) -> Decode:
        return functools.partial(
            self._tokenizer.decode, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    async def encode(self, text: str, *, field: str, add_special_tokens: bool) -> list[int]:
        """Raises InvalidInput for a text that cannot fit into the context."""
        return await self._on_thread(lambda: self._encode(text, field=field, add_special_tokens=add_special_tokens))

    def checked(self, tokens: list[int], *, field: str) -> list[int]:
        """Token ids as they are; raises InvalidInput where they are none of the model's, or too many."""
        check_tokens(
            np.clip(tokens, -1, 2**31 - 1).astype(np.int32),
            vocab_size=self._vocab_size,
            max_seq_len=self._max_seq_len,
            field=field,
        )
        return tokens

    async def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None,
        settings: dict[str, Any],
        prefix: Sequence[int] = (),
    ) -> list[int]:
        """The tokens of messages in the form that the model's chat template gives them.

        Args:
            prefix: tokens of an earlier turn. Where the text begins with theirs they stay as they are, though the text
                may have other tokens when it is tokenized anew; where it does not they do not matter.

        Raises:
            InvalidInput: the model has no template, or the template refuses the messages.
        """
        return await self._on_thread(lambda: self._render(messages, tools, settings, prefix))

    def _render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        settings: dict[str, Any],
        prefix: Sequence[int],
    ) -> list[int]:
        if not self.chat_template:
            raise InvalidInput(
                "this model has no chat template", field="messages", hint="use /v1/completions, with a prompt"
            )
        if reserved := sorted(_RESERVED & settings.get("chat_template_kwargs", {}).keys()):
            raise InvalidInput("is not the template's own", field=f"chat_template_kwargs.{reserved[0]}")
        variables = {**settings, **settings.get("chat_template_kwargs", {})}
        variables.pop("chat_template_kwargs", None)
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tools=list(tools) if tools else None, tokenize=False, **variables
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidInput(f"the model's chat template refuses this: {error}", field="messages") from error
        said = self.decoder(skip_special_tokens=False)(prefix) if prefix else ""
        if not said or not text.startswith(said):
            return self._encode(text, field="messages", add_special_tokens=False)
        rest = self._encode(text[len(said) :], field="messages", add_special_tokens=False)
        return self._fitting([*prefix, *rest], field="messages")

    def _encode(self, text: str, *, field: str, add_special_tokens: bool) -> list[int]:
        if len(text) > self._most_chars:
            raise InvalidInput(
                f"{len(text)} characters are more than the context of {self._max_seq_len} tokens", field=field
            )
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return self._fitting(ids, field=field)

    def _fitting(self, ids: list[int], *, field: str) -> list[int]:
        if len(ids) > self._max_seq_len:
            raise InvalidInput(f"{len(ids)} tokens are over the context of {self._max_seq_len}", field=field)
        return ids

    def _text_of_token(self, token: int) -> str:
        """What a token says inside a text; in a text of its own some tokenizers would drop its space."""
        decode = self.decoder(skip_special_tokens=False)
        return decode([*self._anchor, token])[len(decode(self._anchor)) :]

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _load(files: training_pb2.TokenizerFiles) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory(prefix="farstep-tokenizer-") as folder:
        for name, content in files.files.items():
            (Path(folder) / check_name(name, field="files")).write_bytes(content)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return tokenizer
