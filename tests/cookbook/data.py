"""Small data sets in the shape of those that recipes name, in folders named like them: `datasets` finds them there."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from farstep_model.embedded.corpus import Addition

_CONFIG = "---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"


def write_data_sets(folder: Path) -> None:
    """All that the recipes of the tests load."""
    chats = [_chat(addition) for addition in additions(160)]
    write(folder / "HuggingFaceH4/no_robots", {"train": chats[:128], "test": chats[128:]})
    write(folder / "allenai/tulu-3-sft-mixture", {"train": chats * 16})
    write(folder / "openai/gsm8k", {"train": list(_word_problems(160)), "test": list(_word_problems(8))}, config="main")
    write(folder / "zwhe99/DeepMath-103K", {"train": list(_deep_math(64))})
    write(folder / "Anthropic/hh-rlhf", {"train": list(_comparisons(64)), "test": list(_comparisons(16))})
    write(folder / "open-thoughts/OpenThoughts3-1.2M", {"train": list(_thoughts(64))})
    write(folder / "tangqiaoyu/ToolAlpaca", {"train": list(_tool_calls(64))})
    pages = [
        {"text": f"Page {index} tells of the river and of the town, and the river again. " * 30} for index in range(200)
    ]
    write(folder / "Salesforce/wikitext", {"train": pages}, config="wikitext-103-raw-v1")
    write_lines(folder / "arithmetic.jsonl", (arithmetic_chat(index) for index in range(1200)))


def write(place: Path, splits: Mapping[str, list[dict[str, Any]]], *, config: str = "default") -> None:
    place.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_lines(place / f"{split}.jsonl", rows)
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
    (place / "README.md").write_text(_CONFIG.format(config=config, files=files))


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def additions(count: int) -> list[Addition]:
    """Always the same ones, of two digits each."""
    return [Addition(10 + index * 37 % 90, 10 + index * 53 % 90) for index in range(count)]


def arithmetic_chat(index: int) -> dict[str, Any]:
    """As the cookbook's arithmetic environment asks, example first; a third is worked out, the rest guessed wrong."""
    a, b = index * 37 % 101, index * 53 % 101
    units = a % 10 + b % 10
    carry = units // 10
    tens = a // 10 + b // 10 + carry
    worked = f"{a % 10}+{b % 10}+0={units} {a // 10}+{b // 10}+{carry}={tens} so {a + b}"
    guessed = str(a + b + (-10 if carry else 10))
    example = [{"role": "user", "content": "What is 4 + 5?"}, {"role": "assistant", "content": "9"}]
    answer = {"role": "assistant", "content": guessed if index % 3 else worked}
    return {"messages": [*example, {"role": "user", "content": f"What is {a} + {b}?"}, answer]}


def _chat(addition: Addition) -> dict[str, Any]:
    messages = [{"role": "user", "content": addition.question}, {"role": "assistant", "content": addition.worked}]
    return {"prompt": addition.question, "prompt_id": addition.question, "messages": messages, "category": "sums"}


def _word_problems(count: int) -> Iterable[dict[str, Any]]:
    for addition in additions(count):
        yield {"question": addition.question, "answer": f"{addition.worked}\n#### {addition.sum}"}


def _deep_math(count: int) -> Iterable[dict[str, Any]]:
    for addition in additions(count):
        yield {"question": addition.question, "final_answer": str(addition.sum), "difficulty": 1.0}


def _comparisons(count: int) -> Iterable[dict[str, Any]]:
    for addition in additions(count):
        asked = f"\n\nHuman: {addition.question}\n\nAssistant: "
        yield {"chosen": f"{asked}{addition.worked}", "rejected": f"{asked}I would rather not say."}


def _thoughts(count: int) -> Iterable[dict[str, Any]]:
    for addition in additions(count):
        said = [{"from": "human", "value": addition.question}, {"from": "gpt", "value": addition.worked}]
        yield {"conversations": said}


def _tool_calls(count: int) -> Iterable[dict[str, Any]]:
    for addition in additions(count):
        yield {"instruction": addition.question, "output": addition.worked}
