"""Grammars of real schemas, expressions and lists: what they let through, what they refuse, and what it costs."""

import asyncio
import json
import re
from collections.abc import Callable

import numpy as np
import pytest

from farstep_model.load import BaseModel
from farstep_proto.errors import InvalidInput
from farstep_sampler.constraint import Constraint
from farstep_sampler.grammars import MAX_GRAMMARS, Grammar, Grammars, Matcher

Compile = Callable[[str, str], Grammar]


@pytest.fixture(scope="module")
def grammars(base: BaseModel) -> Grammars:
    return Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=base.eos_token_ids)


@pytest.fixture
def compiled(grammars: Grammars) -> Compile:
    return lambda kind, text: asyncio.run(grammars.compiled(Constraint(kind, text)))  # type: ignore[arg-type]


def allowed(mask_W: np.ndarray) -> set[int]:
    return set(np.unpackbits(mask_W.view(np.uint8), bitorder="little").nonzero()[0].tolist())


def walks(grammar: Grammar, base: BaseModel, *, seed: int, most: int = 300) -> str | None:
    """A text that a random walk through the masks gives; None where it does not end."""
    generator = np.random.default_rng(seed)
    matcher, tokens = grammar.matcher(), []
    for _ in range(most):
        token = int(generator.choice(sorted(allowed(matcher.mask()))))
        if token in base.eos_token_ids:
            return str(base.tokenizer.decode(tokens))
        tokens.append(token)
        matcher.push(token)
    return None


# After "x" there are more possible parses than the limits allow.
TOO_LARGE = 'start: "x" ' + " ".join("x?" for _ in range(2500)) + '\nx: "y"'


def _walk(matcher: Matcher, tokens: list[int]) -> None:
    for token in tokens:
        matcher.push(token)
        matcher.mask()


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def holds_schema(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"name", "age"} and len(value["name"]) <= 5 and 0 <= value["age"] <= 99


CHOICES = ["yes", "no", "may be", "a/b", 'quo"te\\', "line\nfeed", "é😀", "{x}", "\x01"]


@pytest.mark.parametrize(
    ("kind", "text", "holds"),
    [
        ("json_schema", json.dumps(SCHEMA), holds_schema),
        ("regex", "[a-c]{2,4}-[0-9]{3}", lambda text: re.fullmatch(r"[a-c]{2,4}-[0-9]{3}", text) is not None),
        ("choice", json.dumps(CHOICES), lambda text: text in CHOICES),
        ("grammar", 'start: x x\nx: /[0-9]{2}/ "!"', lambda text: re.fullmatch(r"(\d\d!){2}", text) is not None),
        ("grammar", 'root ::= "b" [0-9] [0-9]', lambda text: re.fullmatch(r"b\d\d", text) is not None),
    ],
)
def test_every_walk_matches(
    compiled: Compile, base: BaseModel, kind: str, text: str, holds: Callable[[str], bool]
) -> None:
    grammar = compiled(kind, text)
    texts = [walks(grammar, base, seed=seed) for seed in range(30)]
    found = [each for each in texts if each is not None]
    assert len(found) > 15
    assert all(holds(each) for each in found), found
    assert len(set(found)) > 2


def test_every_choice_can_be_made_and_ends(compiled: Compile, base: BaseModel) -> None:
    for choice in CHOICES:
        matcher = compiled("choice", json.dumps(CHOICES)).matcher()
        for token in base.tokenizer.encode(choice, add_special_tokens=False):
            assert token in allowed(matcher.mask())
            matcher.push(token)
        assert allowed(matcher.mask()) == set(base.eos_token_ids)


def test_matchers_do_not_disturb_each_other(compiled: Compile, base: BaseModel) -> None:
    grammar = compiled("regex", "ab|cd")
    first, second = grammar.matcher(), grammar.matcher()
    (token,) = base.tokenizer.encode("a")
    first.push(token)
    assert allowed(first.mask()) != allowed(second.mask())
    assert allowed(second.mask()) == allowed(grammar.matcher().mask())


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"[^\s\S]", "nothing that the model can write"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"$ref": "http://example.com/x"}', "http://example.com/x"),
        ("json_schema", "false", "Unsatisfiable"),
        ("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', "nothing that"),
        ("json_schema", json.dumps({"type": "integer", "multipleOf": 982451653}), "fuel"),
        ("grammar", "start: nobody", "nobody"),
        ("grammar", "start: start", "nothing that"),
        ("grammar", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested"),
        ("grammar", 'start: "x" D\nA: "a"{1000}\nB: A{1000}\nD: "y" B', "nested repetitions"),
        ("grammar", 'root ::= "x" (a{200}){200}\na ::= "a"{1000}', "nested repetitions"),
        ("grammar", "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(3000)), "recursion"),
        ("grammar", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000, "GBNF"),
    ],
)
def test_what_cannot_work_is_refused_by_name(compiled: Compile, kind: str, text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(says)) as caught:
        compiled(kind, text)
    assert caught.value.field == f"params.{kind}"
    assert len(caught.value.message) <= 300


def test_a_grammar_that_grows_too_large_later_fails_and_is_made_anew(compiled: Compile, base: BaseModel) -> None:
    grammar = compiled("grammar", TOO_LARGE)
    matcher = grammar.matcher()
    with pytest.raises(InvalidInput, match="max is 2000") as caught:
        _walk(matcher, base.tokenizer.encode("xy"))
    assert caught.value.field == "params.grammar"
    assert compiled("grammar", TOO_LARGE) is not grammar


def test_grammars_are_remembered_within_bounds(base: BaseModel) -> None:
    grammars = Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=base.eos_token_ids)

    async def run() -> None:
        first, same = await asyncio.gather(*(grammars.compiled(Constraint("regex", "a")) for _ in range(2)))
        assert first is same
        for number in range(MAX_GRAMMARS + 5):
            await grammars.compiled(Constraint("regex", f"b{number}"))
        assert len(grammars._compiled) == MAX_GRAMMARS
        assert await grammars.compiled(Constraint("regex", "a")) is not first

    asyncio.run(run())


def test_a_wait_that_is_cancelled_leaves_the_others_theirs(grammars: Grammars) -> None:
    async def run() -> Grammar:
        constraint = Constraint("regex", "c[a-z]+")
        given_up = asyncio.ensure_future(grammars.compiled(constraint))
        kept = asyncio.ensure_future(grammars.compiled(constraint))
        await asyncio.sleep(0)
        given_up.cancel()
        return await kept

    assert isinstance(asyncio.run(run()), Grammar)


def test_a_model_without_an_end_token_is_not_guided(base: BaseModel) -> None:
    grammars = Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=())
    with pytest.raises(InvalidInput, match="no end token"):
        asyncio.run(grammars.compiled(Constraint("regex", "a")))
