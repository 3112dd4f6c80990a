"""How families of models write calls, and which of them a chat template stands for.

hermes       <tool_call>{"name": …, "arguments": {…}}</tool_call>       Qwen, Hermes
llama3_json  {"name": …, "parameters": {…}}; {…}                        Llama 3.1 and later
mistral      [TOOL_CALLS][{"name": …, "arguments": {…}}, …], or name[ARGS]{…} or name{…} each after a mark
pythonic     [first(a=1), second(b="x")]                                Llama 3.2 and 4, ToolACE
json         {"name": …, "arguments": {…}} with prose around            models that were taught no format of their own

Those with tags of their own are in `tagged_formats`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection

from farstep_sampler.openai_api.tools.loose_json import LooseJson
from farstep_sampler.openai_api.tools.parsing import (
    Call,
    Tagged,
    ToolParser,
    Trailing,
    call_of,
    calls_of,
    parse_json,
)
from farstep_sampler.openai_api.tools.tagged_formats import GEMMA_BEGIN, gemma, minicpm, qwen3_coder

_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(\{.*\})\s*\Z", re.DOTALL)
_LLAMA = "<|python_tag|>"


def _hermes(names: Collection[str]) -> ToolParser:
    def read(text: str) -> list[Call] | None:
        call = call_of(parse_json(text), names)
        return None if call is None else [call]

    return Tagged("<tool_call>", "</tool_call>", read)


def _llama3_json(names: Collection[str]) -> ToolParser:
    def read(text: str) -> list[Call] | None:
        values: list[object] = []
        decoder = json.JSONDecoder()
        rest = text.strip()
        while rest:
            try:
                value, end = decoder.raw_decode(rest)
            except (ValueError, RecursionError):
                return None
            values.append(value)
            rest = rest[end:].lstrip().removeprefix(";").lstrip()
        return calls_of(values, names)

    return Trailing(read, marks=[_LLAMA], opening="{")


def _mistral(names: Collection[str]) -> ToolParser:
    def read(text: str) -> list[Call] | None:
        listed = parse_json(text)
        if isinstance(listed, list):
            return calls_of(listed, names)
        values: list[object] = []
        for each in text.split(_MISTRAL):
            match = _MISTRAL_NAMED.match(each)
            if match is None:
                return None
            values.append({"name": match[1], "arguments": parse_json(match[2])})
        return calls_of(values, names)

    return Trailing(read, marks=[_MISTRAL])


def _pythonic(names: Collection[str]) -> ToolParser:
    def read(text: str) -> list[Call] | None:
        try:
            body = ast.parse(text.strip(), mode="eval").body
            calls = body.elts if isinstance(body, ast.List) else []
            return calls_of([_python_call(call) for call in calls], names)
        except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
            return None

    return Trailing(read, opening="[")


def _python_call(node: ast.expr) -> object:
    """Raises ValueError for what is no call with literals as named arguments."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call")
    arguments = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in node.keywords}
    json.dumps(arguments, allow_nan=False)
    return {"name": ast.unparse(node.func), "arguments": arguments}


# Each takes the tools' names, with the schemas of their parameters where untyped arguments are to get their types.
FORMATS: dict[str, Callable[[Collection[str]], ToolParser]] = {
    "gemma": gemma,
    "hermes": _hermes,
    "json": LooseJson,
    "llama3_json": _llama3_json,
    "minicpm": minicpm,
    "mistral": _mistral,
    "pythonic": _pythonic,
    "qwen3_coder": qwen3_coder,
}
# Marks that are special tokens of their models, and so no part of the text unless they are asked for.
SPECIAL_MARKS = frozenset({"gemma", "llama3_json", "minicpm", "mistral"})


def detect(chat_template: str) -> str | None:
    """The format that a chat template teaches its model; None where it knows no tools, or none of ours."""
    if "tools" not in chat_template:
        return None
    if "<function=" in chat_template:
        return "qwen3_coder"
    if '<function name="' in chat_template and "<param name=" in chat_template:
        return "minicpm"
    if GEMMA_BEGIN in chat_template:
        return "gemma"
    if "<tool_call>" in chat_template:
        return "hermes"
    if _MISTRAL in chat_template:
        return "mistral"
    if _LLAMA in chat_template or '"parameters": dictionary' in chat_template:
        return "llama3_json"
    if "[func_name1(" in chat_template:
        return "pythonic"
    return None
