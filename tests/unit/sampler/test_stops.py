"""Stop strings over token boundaries, with a tokenizer of bytes and with the embedded one."""

from collections.abc import Sequence

import pytest

from farstep_model.load import BaseModel
from farstep_sampler.stops import StopStrings


def bytes_decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def first_match(text: str, *strings: str) -> int | None:
    """The index of the byte after which generation ends."""
    stops = StopStrings(strings, prompt=list(b"prompt"), decode=bytes_decode)
    return next((i for i, byte in enumerate(text.encode()) if stops.push(byte)), None)


@pytest.mark.parametrize(
    ("text", "strings", "end"),
    [
        ("abc</s>def", ("</s>",), 6),
        ("aab", ("ab",), 2),
        ("hello", ("lo", "el"), 2),
        ("nothing", ("xyz",), None),
        ("x" * 500 + "stop", ("stop",), 503),
        ("naïve é!", ("é!",), 9),
        ("日本語", ("本",), 5),
        ("x", ("x",), 0),
    ],
)
def test_ends_at_the_token_that_completes_the_string(text: str, strings: tuple[str, ...], end: int | None) -> None:
    assert first_match(text, *strings) == end


def test_the_prompt_is_not_searched() -> None:
    stops = StopStrings(("ab",), prompt=list(b"a"), decode=bytes_decode)
    assert not stops.push(ord("b"))


def test_bytes_that_never_become_a_character_do_not_hold_text_back_for_ever() -> None:
    stops = StopStrings(("ok",), prompt=[], decode=bytes_decode)
    assert not any(stops.push(0x80) for _ in range(20))
    assert [stops.push(byte) for byte in b"ok"] == [False, True]


def test_with_the_embedded_tokenizer(base: BaseModel) -> None:
    ids = base.tokenizer.encode("The sum is 12, so the answer is 12.")
    stops = StopStrings(("answer is",), prompt=ids[:3], decode=base.tokenizer.decode)
    count = next(i for i, token in enumerate(ids) if stops.push(token))
    assert "answer is" in base.tokenizer.decode(ids[: count + 1])
    assert "answer is" not in base.tokenizer.decode(ids[:count])


@pytest.mark.parametrize(
    ("text", "strings", "num_early", "end"),
    [
        ("ab.ab", ("ab",), 3, 4),
        ("ab....", ("ab", "abcdef"), 3, None),  # the first is still in the text that the second may need
        ("aaa", ("aa",), 2, 2),  # one that overlaps it counts
        ("xyz", ("xyz",), 2, 2),  # begun early, complete in time
    ],
)
def test_a_string_that_comes_too_early_is_passed_over(
    text: str, strings: tuple[str, ...], num_early: int, end: int | None
) -> None:
    stops = StopStrings(strings, prompt=[], decode=bytes_decode)
    found = [stops.push(byte, may_match=i >= num_early) for i, byte in enumerate(text.encode())]
    assert next((i for i, is_match in enumerate(found) if is_match), None) == end
