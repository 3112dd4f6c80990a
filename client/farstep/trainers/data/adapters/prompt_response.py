"""A question and its answer, under the names that people give them. The answer is learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.adapters.base import Keys, Row, RowAdapter
from farstep.trainers.data.conversation import messages_of, tools_of, trained_turns
from farstep.trainers.data.sequences import as_chat, of_conversation, of_plain, prompt_messages, prompt_tokens, text_of
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptResponse(RowAdapter):
    """`prompt` (text or messages) and `response` or `completion` (text or messages); `system` if there is one.

    Texts are put into the chat template where the tokenizer has one, or else joined as they are.
    """

    name = "prompt_response"
    keys: ClassVar[Keys] = ("prompt", ("response", "completion"))

    def question(self, row: Row) -> object:
        return row["prompt"]

    def answer(self, row: Row) -> tuple[str, object]:
        key = "response" if "response" in row else "completion"
        return key, row[key]

    def check(self, row: Row) -> None:
        super().check(row)
        prompt_messages(self.question(row), "prompt")
        self._answer_messages(row)

    def to_sequences(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[TrainSequence]:
        question, (_, answer) = self.question(row), self.answer(row)
        if isinstance(question, str) and isinstance(answer, str) and not as_chat(tokenizer, config):
            return [of_plain(_with_system(row, question), answer, tokenizer, config)]
        asked = self._asked(row)
        messages = asked + self._answer_messages(row)
        turns = [turn for turn in trained_turns(messages, config.train_on) if turn >= len(asked)]
        return of_conversation(messages, turns, tokenizer, config, tools=tools_of(row))

    def to_prompt(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[int]:
        question = self.question(row)
        if isinstance(question, str) and not as_chat(tokenizer, config):
            return prompt_tokens(_with_system(row, question), tokenizer, config, field="prompt")
        return prompt_tokens(self._asked(row), tokenizer, config, field="prompt", tools=tools_of(row))

    def _asked(self, row: Row) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": text_of(row, "system")}] if row.get("system") else []
        return system + prompt_messages(self.question(row), "prompt")

    def _answer_messages(self, row: Row) -> list[dict[str, Any]]:
        key, answer = self.answer(row)
        if isinstance(answer, str):
            return [{"role": "assistant", "content": answer}]
        return messages_of([answer] if isinstance(answer, dict) else answer, key)


class InputOutput(PromptResponse):
    """`input` and `output`."""

    name = "input_output"
    keys = ("input", "output")

    def question(self, row: Row) -> object:
        return row["input"]

    def answer(self, row: Row) -> tuple[str, object]:
        return "output", row["output"]


class Instruction(InputOutput):
    """`instruction`, `input` where there is one, and `output`."""

    name = "instruction"
    keys = ("instruction", "output")

    def question(self, row: Row) -> object:
        instruction = text_of(row, "instruction")
        given = row.get("input")
        if given is not None and not isinstance(given, str):
            raise DataError(f"{type(given).__name__}, not text", field="input")
        return f"{instruction}\n\n{given}" if given else instruction


def _with_system(row: Row, question: str) -> str:
    return f"{text_of(row, 'system')}\n\n{question}" if row.get("system") else question
