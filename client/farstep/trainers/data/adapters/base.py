"""`RowAdapter`: what a row of one form means. Chosen by the row's keys, or by name (`data.format`).

    class Qa(RowAdapter):
        name = "qa"
        keys = ("q", "a")

        def to_sequences(self, row, tokenizer, config):
            return [TrainSequence.from_prompt_completion(tokenizer.encode(row["q"]), tokenizer.encode(row["a"]))]

Invariant: an adapter looks at one row alone, and the same row gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.report import DataReport
from farstep.trainers.errors import DataError
from farstep.trainers.registry import Registered
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
Keys = tuple[str | tuple[str, ...], ...]
_HERE = "farstep.trainers.data.adapters"

# In the order in which they are tried: what has more keys comes first.
CHOSEN_BY_KEYS = ("preference", "messages", "prompt_response", "instruction", "input_output", "text", "prompt", "input")


class NothingToTrain(DataError):
    """A row with fewer than two tokens, or none to learn: counted, not an error."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens of a row and of a prompt; None is no limit."""

    max_length: int | None = None
    max_prompt_length: int | None = None


class RowAdapter(Registered):
    """One form of row.

    Args:
        keys: the row must have all of them; of a tuple among them, one.
        rows_per_group: sequences that belong together (2 for pairs), and are never parted.
    """

    homes: ClassVar[Mapping[str, str]] = {
        "preference": f"{_HERE}.preference:Preference",
        "messages": f"{_HERE}.messages:Messages",
        "prompt_response": f"{_HERE}.prompt_response:PromptResponse",
        "instruction": f"{_HERE}.prompt_response:Instruction",
        "input_output": f"{_HERE}.prompt_response:InputOutput",
        "text": f"{_HERE}.text:Text",
        "prompt": f"{_HERE}.prompt:Prompt",
        "input": f"{_HERE}.prompt:Input",
    }
    entry_point_group = "farstep.row_adapters"
    keys: ClassVar[Keys] = ()
    rows_per_group: ClassVar[int] = 1

    def matches(self, row: Row) -> bool:
        """Whether the row has the keys."""
        return all(any(key in row for key in _alternatives(key)) for key in self.keys)

    def check(self, row: Row) -> None:
        """
        Raises:
            DataError: a key is missing (the message has those that are there) or has the wrong type.
        """
        for key in self.keys:
            if not any(one in row for one in _alternatives(key)):
                raise DataError(f"no {' or '.join(map(repr, _alternatives(key)))}", hint=keys_of(row))

    def to_sequences(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[TrainSequence]:
        """The row's sequences, groups of `rows_per_group` one after another, however long they are.

        Raises:
            DataError: the row cannot be understood.
            NothingToTrain: it has nothing to learn.
        """
        raise DataError(f"rows of the form {self.name!r} have a prompt alone, and nothing to learn",
                        hint=f"add 'response', or train with rewards (type: grpo); {keys_of(row)}")  # fmt: skip

    def to_prompt(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[int]:
        """The tokens that the model is asked with.

        Raises:
            DataError: the row has no prompt.
        """
        raise DataError(f"rows of the form {self.name!r} have no prompt", hint=keys_of(row))

    def fitted(
        self, sequences: Sequence[TrainSequence], limits: Limits, config: DataConfig, report: DataReport
    ) -> list[TrainSequence]:
        """The same within the limits: cut at the end, dropped or refused as `config.on_too_long` says."""
        from farstep.trainers.data.fitting import cut_at_end

        return cut_at_end(sequences, limits, config, report, rows_per_group=self.rows_per_group)


def _alternatives(key: str | tuple[str, ...]) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def keys_of(row: Row) -> str:
    """For messages."""
    return f"its keys are {', '.join(map(repr, row)) or 'none'}"


def adapter_for(row: Row, name: str | None = None) -> RowAdapter:
    """The adapter of that name, or the first whose keys the row has.

    Raises:
        RegistryError: no such name.
        DataError: no adapter knows these keys.
    """
    if name is not None:
        return RowAdapter.get(name)()
    for candidate in CHOSEN_BY_KEYS:
        adapter = RowAdapter.get(candidate)()
        if adapter.matches(row):
            return adapter
    raise DataError(
        f"no known form of row; {keys_of(row)}",
        hint="known are messages, prompt/response, prompt/chosen/rejected, text, prompt, input/output; else set "
        "columns, role_mapping or data.format",
    )
