"""Calls in the formats of several families, however the text is cut; what is no call is text, to the letter."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_sampler.openai_api.tools.formats import FORMATS, detect
from farstep_sampler.openai_api.tools.guided import GuidedArguments, GuidedList, schema_of
from farstep_sampler.openai_api.tools.messages import Function
from farstep_sampler.openai_api.tools.parsing import Call, ToolParser

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "on": {}}}
NAMES = {"weather": CITY, "time": {}}
W = Call("weather", '{"city": "Zürich"}')
T = Call("time", "{}")
N = Call("weather", '{"city": "12", "days": 3, "on": {"a": [1, null, true], "b": "x, {y}"}}')


def parsed(parser: ToolParser, text: str, size: int) -> tuple[str, list[Call]]:
    """What it says and what it calls, its text coming in pieces of so many characters."""
    parts = [part for at in range(0, len(text), size) for part in parser.push(text[at : at + size])]
    parts += parser.finish()
    return "".join(p for p in parts if isinstance(p, str)), [p for p in parts if isinstance(p, Call)]


HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
GOOD = [
    ("hermes", HERMES, "", [W]),
    ("hermes", f"I look. {HERMES}{HERMES} Then", "I look.  Then", [W, W]),
    ("hermes", HERMES.removesuffix("</tool_call>"), "", [W]),  # the end token came first
    ("hermes", '<tool_call>{"name": "time"}</tool_call>', "", [T]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Zürich\\"}"}</tool_call>', "", [W]),
    ("llama3_json", '{"name": "weather", "parameters": {"city": "Zürich"}}', "", [W]),
    (
        "llama3_json",
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Zürich"}}; {"name": "time"}',
        "",
        [W, T],
    ),
    ("llama3_json", 'Well. <|python_tag|>{"name": "time", "parameters": {}}', "Well. ", [T]),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich"}}, {"name": "time"}]', "", [W, T]),
    ("mistral", 'So: [TOOL_CALLS]weather[ARGS]{"city": "Zürich"}[TOOL_CALLS]time{}', "So: ", [W, T]),
    ("pythonic", '[weather(city="Zürich"), time()]', "", [W, T]),
    ("json", '{"name": "weather", "arguments": {"city": "Zürich"}}', "", [W]),
    ("json", 'So {this}: {"tool": "weather", "args": {"city": "Zürich"}} ok', "So {this}:  ok", [W]),
    (
        "json",
        'See\n```json\n[{"name": "weather", "parameters": {"city": "Zürich"}}, {"name": "time"}]\n```',
        "See\n",
        [W, T],
    ),
    ("json", '{"function": {"name": "time", "arguments": "{}"}}', "", [T]),
    (
        "qwen3_coder",
        "Now <tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        '<parameter=on>\n{"a": [1, null, true], "b": "x, {y}"}\n</parameter>\n</function>\n</tool_call>',
        "Now ",
        [N],
    ),
    ("qwen3_coder", "<tool_call><function=time></function></tool_call>" * 2, "", [T, T]),
    (
        "minicpm",
        'I. <function name="weather"><param name="city">12</param><param name="days">3</param><param name="on">'
        '<![CDATA[{"a": [1, null, true], "b": "x, {y}"}]]></param></function> So',
        "I.  So",
        [N],
    ),
    ("minicpm", '<function name="weather"><param name="city">Z&#252;rich</param></function>', "", [W]),
    (
        "gemma",
        'Hm <|tool_call>call:weather{city:<|"|>12<|"|>,days:3,on:{a:[1,null,true],b:<|"|>x, {y}<|"|>}}<tool_call|>',
        "Hm ",
        [N],
    ),
    ("gemma", "<|tool_call>call:time{}<tool_call|><|tool_call>call:time{}<tool_call|>", "", [T, T]),
]
BAD = [
    ("hermes", "no call at all"),
    ("hermes", "<tool_call>{oh</tool_call> and <tool_ more"),
    ("hermes", '<tool_call>{"name": "launch", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    ("hermes", "<tool_call>" + "[" * 5000),
    ("llama3_json", '{"name": "weather", "parameters": {"ci'),
    ("llama3_json", '{"answer": 42}'),
    ("llama3_json", "plain <|python"),
    ("mistral", "[TOOL_CALLS]weather"),
    ("mistral", "[TOOL_CALLS][{]"),
    ("pythonic", '[weather("Zürich")]'),
    ("json", '{"name": "launch", "arguments": {}} and ["weather"'),
    ("json", '{"name": "weather", "arguments": {"city": '),
    ("json", "[" * 3000),
    ("qwen3_coder", "<tool_call><function=weather><parameter=city>Z</function></tool_call>"),
    ("qwen3_coder", "<tool_call><function=launch></function></tool_call>"),
    ("minicpm", '<function name="weather"><param name="city">'),
    ("minicpm", "<function name=weather></function>"),
    ("gemma", "<|tool_call>call:weather{city:<tool_call|>"),
    ("gemma", '<|tool_call>call:weather{city:<|"|>x}<tool_call|>'),
    ("gemma", "<|tool_call>call:weather" + "{a:" * 300 + "<tool_call|>"),
    ("pythonic", "[1, 2]"),
    ("pythonic", "[" * 3000),
    ("pythonic", "[weather(city=__import__('os').getcwd())]"),
]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("name", "text", "said", "calls"), GOOD)
def test_calls(name: str, text: str, said: str, calls: list[Call], size: int) -> None:
    assert parsed(FORMATS[name](NAMES), text, size) == (said, calls)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("name", "text"), BAD)
def test_what_is_no_call_is_text(name: str, text: str, size: int) -> None:
    assert parsed(FORMATS[name](NAMES), text, size) == (text, [])


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    '{"name": "time"}',
    "[",
    "]",
    "{",
    "time()",
    "a ",
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(PIECES), max_size=8), st.integers(1, 9))
def test_how_a_text_is_cut_changes_nothing(name: str, pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    assert parsed(FORMATS[name](NAMES), text, size) == parsed(FORMATS[name](NAMES), text, max(1, len(text)))


def test_the_only_tool_is_meant_where_a_call_names_none() -> None:
    only = {"weather": CITY}
    for text in ('{"arguments": {"city": "Zürich"}}', 'So {"city": "Zürich"}'):
        assert parsed(FORMATS["json"](only), text, 1000)[1] == [W]
    assert parsed(FORMATS["json"](only), '{"town": "Zürich"}', 1000)[1] == []
    assert parsed(FORMATS["json"](NAMES), '{"city": "Zürich"}', 1000)[1] == []


@pytest.mark.parametrize(("name", "text"), [case for case in BAD if "{" in case[1] and "[weather" not in case[1]])
def test_what_looked_like_a_call_is_told(name: str, text: str) -> None:
    parser = FORMATS[name](NAMES)
    said, _ = parsed(parser, text, 1000)
    looked_like = name != "json" or '"name"' in text
    assert [error in said for error in parser.errors] == [True] * len(parser.errors)
    assert bool(parser.errors) == looked_like


def test_text_before_a_call_is_not_held_back() -> None:
    parser = FORMATS["hermes"](NAMES)
    assert parser.push("Hello <too") == ["Hello "]
    assert parser.push("l_box>") == ["<tool_box>"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% if tools %}<tool_call>", "hermes"),
        ("{% if tools %}[TOOL_CALLS]", "mistral"),
        ("{% if tools %}<|python_tag|>", "llama3_json"),
        ("{% if tools %}[func_name1(params_name1=params_value1)]", "pythonic"),
        ("{% if tools %}something else", None),
        ("<tool_call> is never mentioned", None),
        ("{% if tools %}<tool_call>\\n<function=example>", "qwen3_coder"),
        ('{% if tools %}<function name="x"><param name="y">', "minicpm"),
        ("{% if tools %}<|tool_call>call:", "gemma"),
    ],
)
def test_formats_are_known_by_their_templates(template: str, name: str | None) -> None:
    assert detect(template) == name


def test_guided_calls() -> None:
    tools = [Function(name="weather", parameters={"type": "object", "$defs": {"c": {}}}), Function(name="time")]
    schema = schema_of(tools, named=None, at_most=1)
    assert (schema["maxItems"], list(schema["$defs"])) == (1, ["c"])
    assert schema_of(tools, named="time", at_most=None) == {"type": "object"}
    text = json.dumps([{"name": "weather", "parameters": {"city": "Zürich"}}, {"name": "time", "parameters": {}}])
    assert parsed(GuidedList(NAMES), text, 5) == ("", [W, T])
    assert parsed(GuidedArguments("weather"), '{"city": "Zürich"}', 5) == ("", [W])
    assert parsed(GuidedArguments("weather"), '{"city": "Zü', 5) == ('{"city": "Zü', [])
