"""Calls that are written in tags of their own rather than as JSON.

qwen3_coder  <tool_call><function=name><parameter=key>value</parameter></function></tool_call>   Qwen3-Coder, Qwen3.5
minicpm      <function name="name"><param name="key">value</param></function>                    MiniCPM
gemma        <|tool_call>call:name{key:<|"|>text<|"|>,n:3,xs:[1,2]}<tool_call|>                   Gemma 4

Values have the types that the tool's schema gives them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection

from farstep_sampler.openai_api.tools.parsing import Call, Tagged, ToolParser, call_of
from farstep_sampler.openai_api.tools.schemas import properties_of, typed

_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>)?\s*\Z", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>]+)>(.*?)</parameter>", re.DOTALL)
_MINICPM_HEAD = re.compile(r"\s*\"([^\"]+)\"\s*>", re.DOTALL)
_MINICPM_PARAM = re.compile(r"\s*<param\s+name=\"([^\"]+)\"\s*>(.*?)</param>", re.DOTALL)
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*\Z", re.DOTALL)

GEMMA_BEGIN, GEMMA_END = "<|tool_call>", "<tool_call|>"
_QUOTE = '<|"|>'
_GEMMA_HEAD = re.compile(r"\s*call:([A-Za-z0-9_.-]+)\s*(?=\{)")
_GEMMA_KEY = re.compile(r"\s*(?:<\|\"\|>(.*?)<\|\"\|>|\"([^\"]*)\"|([^:,{}\[\]\s]+))\s*:", re.DOTALL)
_GEMMA_BARE = re.compile(r"[^,{}\[\]]+")
_MOST_NESTED = 64


def qwen3_coder(names: Collection[str]) -> ToolParser:
    def read(text: str) -> list[Call] | None:
        function = _FUNCTION.match(text)
        if function is None:
            return None
        return _call(function[1], function[2], _PARAMETER, names)

    return Tagged("<tool_call>", "</tool_call>", read)


def minicpm(names: Collection[str]) -> ToolParser:
    def read(text: str) -> list[Call] | None:
        head = _MINICPM_HEAD.match(text)
        return None if head is None else _call(head[1], text[head.end() :], _MINICPM_PARAM, names, is_xml=True)

    return Tagged("<function name=", "</function>", read)


def gemma(names: Collection[str]) -> ToolParser:
    def read(text: str) -> list[Call] | None:
        head = _GEMMA_HEAD.match(text)
        if head is None:
            return None
        try:
            value, end = _gemma_value(text, head.end(), 0)
        except ValueError:
            return None
        call = call_of({"name": head[1], "arguments": value}, names)
        return None if call is None or text[end:].strip() else [call]

    return Tagged(GEMMA_BEGIN, GEMMA_END, read)


def _call(
    name: str, body: str, parameter: re.Pattern[str], names: Collection[str], *, is_xml: bool = False
) -> list[Call] | None:
    """The call, where its body is nothing but parameters."""
    properties = properties_of(names, name)
    arguments: dict[str, object] = {}
    at = 0
    while (match := parameter.match(body, at)) is not None:
        at = match.end()
        key = match[1].strip()
        text = _xml_text(match[2]) if is_xml else match[2].removeprefix("\n").removesuffix("\n")
        arguments[key] = typed(text, properties.get(key))
    call = call_of({"name": name, "arguments": arguments}, names)
    return None if call is None or body[at:].strip() else [call]


def _xml_text(text: str) -> str:
    if (match := _CDATA.match(text)) is not None:
        return match[1]
    return html.unescape(text)


def _gemma_value(text: str, at: int, depth: int) -> tuple[object, int]:
    """The value that begins here, and where it ends. Raises ValueError where there is none."""
    at = _skip(text, at)
    if depth > _MOST_NESTED:
        raise ValueError("nests too deep")
    if text.startswith(_QUOTE, at):
        end = text.index(_QUOTE, at + len(_QUOTE))
        return text[at + len(_QUOTE) : end], end + len(_QUOTE)
    if text.startswith("{", at):
        return _gemma_object(text, at + 1, depth)
    if text.startswith("[", at):
        return _gemma_list(text, at + 1, depth)
    bare = _GEMMA_BARE.match(text, at)
    if bare is None:
        raise ValueError("no value")
    return typed(bare[0].strip(), None), bare.end()


def _gemma_object(text: str, at: int, depth: int) -> tuple[object, int]:
    found: dict[str, object] = {}
    while not text.startswith("}", at := _skip(text, at)):
        key = _GEMMA_KEY.match(text, at)
        if key is None:
            raise ValueError("no key")
        name = next(each for each in key.groups() if each is not None)
        found[name], at = _gemma_value(text, key.end(), depth + 1)
        at = _after_comma(text, at, "}")
    return found, at + 1


def _gemma_list(text: str, at: int, depth: int) -> tuple[object, int]:
    found: list[object] = []
    while not text.startswith("]", at := _skip(text, at)):
        value, at = _gemma_value(text, at, depth + 1)
        found.append(value)
        at = _after_comma(text, at, "]")
    return found, at + 1


def _after_comma(text: str, at: int, closing: str) -> int:
    at = _skip(text, at)
    if text.startswith(",", at):
        return at + 1
    if not text.startswith(closing, at):
        raise ValueError("neither a comma nor an end")
    return at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
