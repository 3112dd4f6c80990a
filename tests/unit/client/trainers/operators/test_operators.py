"""Operators: what they do, what of them can be tuned, and what is remembered."""

import asyncio

import pytest

from farstep.trainers import DataError, TrainerError
from farstep.trainers.chat import FunctionChat, Reply, as_chat
from farstep.trainers.operators import (
    LLMCallOperator,
    MemoryCallOperator,
    OperatorAgent,
    ToolCallOperator,
    TunableSpec,
)
from farstep.trainers.operators.operator import load_states, states_of
from farstep.trainers.operators.template import filled, placeholders


def run(coroutine):
    return asyncio.run(coroutine)


def test_placeholders_are_names_in_braces_and_json_is_text():
    text = 'Answer {question} as {"a": 1} for {{ who }}; {not one} {}.'
    assert placeholders(text) == {"question", "who"}
    assert filled(text, {"question": "1+1", "who": "me"}) == 'Answer 1+1 as {"a": 1} for me; {not one} {}.'
    with pytest.raises(DataError, match="who: is missing"):
        filled(text, {"question": 1})


def test_what_is_filled_in_is_not_filled_again():
    assert filled("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x"


def test_an_llm_call_asks_with_both_prompts():
    asked = []

    async def model(messages):
        asked.append(messages)
        return "fine"

    operator = LLMCallOperator("answer", model, system_prompt="Be {style}.", user_prompt="Q: {question}")
    assert run(operator.execute(style="kind", question="how?", unused=1)) == "fine"
    assert asked == [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Q: how?"}]]
    bare = LLMCallOperator("bare", lambda messages: f"{len(messages)} message")
    assert run(bare.execute(input="x")) == "1 message"


def test_tunables_say_what_may_become_of_them():
    operator = LLMCallOperator("answer", str, system_prompt="Be {style}.")
    system, user = operator.get_tunables()
    assert (system.name, system.kind, system.value) == ("system_prompt", "prompt", "Be {style}.")
    assert system.constraints["placeholders"] == ["style"]
    for value, reason in [
        ("Be kind.", r"the placeholder \{style\} is lost"),
        ("Be {style} and {new}.", "nobody fills"),
        (3, "int is no text"),
        ("{style}" + "x" * 20_001, "characters are more than"),
    ]:
        with pytest.raises(TrainerError, match=rf"answer.system_prompt: .*{reason}"):
            operator.set("system_prompt", value)
    assert operator["system_prompt"] == "Be {style}."
    operator.set("system_prompt", "{{ style }} is how you are.")
    assert operator.get_state() == {"system_prompt": "{{ style }} is how you are.", "user_prompt": "{input}"}
    with pytest.raises(TrainerError, match=r"no tunable 'prompt'.*system_prompt, user_prompt"):
        operator.set("prompt", "x")
    assert user.value == "{input}"


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (TunableSpec("n", "integer", 1, {"minimum": 0, "maximum": 3}), [0, 3], [-1, 4, 1.0, True, "1"]),
        (TunableSpec("x", "number", 0.5, {"minimum": 0}), [0, 7.5], [-0.1, float("nan"), False]),
        (TunableSpec("b", "boolean", True), [False], [0, "true", None]),
        (TunableSpec("c", "choice", "a", {"choices": ["a", "b"]}), ["b"], ["c", None]),
        (TunableSpec("t", "text", "a", {"max_chars": 2}), ["", "{}"], ["abc", None]),
    ],
)
def test_kinds(spec, good, bad):
    for value in good:
        assert spec.changed(value).value == value
    for value in bad:
        with pytest.raises(TrainerError, match=spec.name):
            spec.changed(value)


def test_a_spec_that_cannot_be_is_refused_when_it_is_made():
    with pytest.raises(TrainerError, match="is no kind"):
        TunableSpec("a", "tensor", 1)
    with pytest.raises(TrainerError, match="boolean has no constraint 'minimum'"):
        TunableSpec("a", "boolean", True, {"minimum": 0})
    with pytest.raises(TrainerError, match="9 is more than 3"):
        TunableSpec("a", "integer", 9, {"maximum": 3})


def test_a_tool_is_called_and_described():
    def add(a, b):
        return a + b

    numbers = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    operator = ToolCallOperator("add", add, description="Adds", parameters=numbers)
    assert run(operator.execute(a=2, b=3)) == 5
    operator.set("description", "Adds two whole numbers")
    about = operator.schema()["function"]
    assert (about["name"], about["description"], about["parameters"]) == ("add", "Adds two whole numbers", numbers)


def test_a_memory_is_tried_as_often_as_it_says_or_not_at_all():
    calls = []

    def recall(query):
        calls.append(query)
        if len(calls) < 3:
            raise ConnectionError("away")
        return f"{query}!"

    memory = MemoryCallOperator("memory", recall, retries=1)
    with pytest.raises(ConnectionError):
        run(memory.execute(query="a"))
    assert len(calls) == 2
    assert run(memory.execute(query="b")) == "b!"
    memory.load_state({"enabled": False, "retries": 5})
    assert run(memory.execute(query="c")) is None
    assert len(calls) == 3
    with pytest.raises(TrainerError, match=r"memory.retries: 11 is more than 10"):
        memory.set("retries", 11)


def test_calls_are_traced_also_those_that_fail_and_only_the_last_thousand():
    operator = ToolCallOperator("half", lambda n: 1 // n if n < 1 else n, description="")

    async def calls():
        for n in range(1, 1101):
            await operator.execute(n=n)
        with pytest.raises(ZeroDivisionError):
            await operator.execute(n=0)

    run(calls())
    assert len(operator.traces) == 1000
    assert operator.traces.num_seen == 1101
    assert operator.traces[0].inputs == {"n": 102}
    assert operator.traces[-1].error.startswith("ZeroDivisionError")
    assert operator.traces[-1].output is None


def test_a_state_is_loaded_whole_or_not_at_all():
    first = MemoryCallOperator("first", str)
    second = MemoryCallOperator("second", str)
    before = states_of([first, second])
    with pytest.raises(TrainerError, match=r"second.retries: 'x' is no whole number"):
        load_states([first, second], {**before, "first": {"enabled": False, "retries": 1},
                                      "second": {"enabled": False, "retries": "x"}})  # fmt: skip
    assert states_of([first, second]) == before
    with pytest.raises(TrainerError, match="the states are of first, and the operators are first, second"):
        load_states([first, second], {"first": before["first"]})
    with pytest.raises(TrainerError, match="the state has enabled, and the operator enabled, retries"):
        first.load_state({"enabled": True})


def test_an_agent_needs_operators_of_different_names_and_somebody_who_runs_them():
    one, two = MemoryCallOperator("m", str), MemoryCallOperator("m", str)
    for operators, reason in [([], "an empty one"), ([one, two], "two operators are called 'm'"), ([3], "int is no")]:
        with pytest.raises(TrainerError, match=reason):
            OperatorAgent(operators, str)
    with pytest.raises(TrainerError, match="how are these operators run"):
        OperatorAgent([one])
    llm = LLMCallOperator("answer", lambda messages: messages[-1]["content"], user_prompt="{a}-{b}")
    assert run(OperatorAgent(llm)({"a": 1, "b": 2, "c": 3})) == "1-2"


def test_a_chat_is_a_client_or_a_function_that_gives_text():
    async def later(messages, seed=None):
        return Reply(f"{seed}", "length")

    assert run(as_chat(later)([], seed=3)) == Reply("3", "length")
    chat = as_chat(lambda messages: "a")
    assert isinstance(chat, FunctionChat)
    assert as_chat(chat) is chat
    with pytest.raises(TrainerError, match="gave a int, not a text"):
        run(as_chat(lambda messages: 3)([]))
    with pytest.raises(TrainerError, match="a str cannot be asked"):
        as_chat("gpt")
