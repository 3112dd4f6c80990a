"""How large a repetition is taken to be, and that finding out costs little."""

import contextlib
import time

import pytest

from farstep_sampler.repetition import LarkRepetitions, num_characters


@pytest.mark.parametrize(
    ("expression", "num"),
    [
        ("abc", 3),
        ("a{3}b", 4),
        ("(ab){3}", 6),
        ("((ab){2}c){3,5}", 25),
        (r"\({3}", 3),
        ("[(){}]{4}", 4),
        ("[]a]{4}", 4),
        (r"[^\]]{2,}", 2),
        ("a{,3}", 5),  # no repetition: the characters themselves
        ("(a|b){2}", 4),
        (")a{2}", 3),
        ("a{0}", 1),
    ],
)
def test_the_size_of_an_expression(expression: str, num: int) -> None:
    assert num_characters(expression) == num


@pytest.mark.parametrize(
    ("lark", "num"),
    [
        ('start: "a"', 1),
        ('start: "abc"{10}', 30),
        ('start: x{10} x{20}\nx: "a"{5}', 100),
        ('start: (x{10} "b"){3}\nx: A{5}\nA: /[0-9]{2}/', 300),
        ('start: c\nc: b{9}\nb: a{9}\na: A{9}\nA.2: "a"{9}', 6561),
        ("start: x ~ 3..7\nx: /a/ ~ 2", 14),
        ('start: start{5} | "a"', 5),
        ('start[capture]: "{9}" "\\"{9}"', 9),
        ('start: "a" // x: {5}\nx: "b"', 1),
    ],
)
def test_the_most_in_a_grammar(lark: str, num: int) -> None:
    assert LarkRepetitions(lark).most() == num


@pytest.mark.parametrize(
    "lark",
    [
        'start: "' + '\\"' * 30_000,
        "start: " + '"' * 60_001,
        "start: /" + "\\/" * 30_000,
        "a:" * 30_000,
        "a: b\n" * 9000,
    ],
)
def test_a_grammar_is_looked_at_quickly(lark: str) -> None:
    """It holds the interpreter's lock. Half a second is ten times what it takes, and a tenth of a quadratic search."""
    began_at = time.perf_counter()
    with contextlib.suppress(RecursionError):
        LarkRepetitions(lark).most()
    assert time.perf_counter() - began_at < 0.5
