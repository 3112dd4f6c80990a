"""Text that grows token by token is the text that decoding gives at once, and stops where a stop string begins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_model.load import BaseModel, load_base_model
from farstep_sampler.openai_api.text import ChoiceText, IncrementalText

_BASE: list[BaseModel] = []


def decode(ids: list[int]) -> str:
    if not _BASE:
        _BASE.append(load_base_model(device="cpu"))
    return _BASE[0].tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encode(text: str) -> list[int]:
    decode([])
    return _BASE[0].tokenizer.encode(text, add_special_tokens=False)


tokens = st.lists(st.integers(0, 1023), max_size=80)


@settings(max_examples=150, deadline=None)
@given(st.one_of(tokens, st.text(max_size=60).map(lambda text: encode(text))))
def test_pieces_are_the_whole(ids: list[int]) -> None:
    text = IncrementalText(decode)
    pieces = [text.push(token) for token in ids] + [text.flush()]
    assert "".join(pieces) == decode(ids)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aä中🙂é ", max_size=30))
def test_no_character_is_split(whole: str) -> None:
    text = IncrementalText(decode)
    assert not any("\ufffd" in text.push(token) for token in encode(whole))


def test_a_character_that_the_prompt_began_is_finished() -> None:
    ids = encode("🙂")
    assert len(ids) > 1
    text = IncrementalText(decode, context=ids[:1])
    assert "".join(text.push(token) for token in ids[1:]) == "🙂"


def test_garbage_without_end_is_said_in_time() -> None:
    lead = encode("🙂")[:1]
    text = IncrementalText(decode)
    said = "".join(text.push(lead[0]) for _ in range(200))
    assert len(said) > 150
    assert said + text.flush() == decode(lead * 200)


def stopped_at(ids: list[int], stops: list[str]) -> int:
    """How many tokens it takes until one of the strings is there; the engine's rule."""
    return next(n for n in range(1, len(ids) + 1) if any(stop in decode(ids[:n]) for stop in stops))


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="abc é", max_size=20),
    st.lists(st.text(alphabet="abc é", min_size=1, max_size=4), min_size=1, max_size=3),
    st.text(alphabet="abc é", max_size=8),
)
def test_nothing_of_a_stop_string_is_said(before: str, stops: list[str], after: str) -> None:
    whole = before + stops[0] + after
    ids = encode(whole)
    ids = ids[: stopped_at(ids, stops)]
    text = decode(ids)
    wanted = text[: min(start for stop in stops if (start := text.find(stop)) >= 0)]
    for size in (1, 3, len(ids)):
        choice = ChoiceText(decode, context=[], stops=stops)
        pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
        said = [choice.push(piece, "stop" if piece is pieces[-1] else "") for piece in pieces]
        assert "".join(said) == wanted


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_what_was_held_back_is_said_at_the_end(reason: str) -> None:
    choice = ChoiceText(decode, context=[], stops=["xyz!"])
    ids = encode("abc xyz")
    assert choice.push(ids, "") + choice.push([2] if reason == "stop" else [], reason) == "abc xyz"


def test_a_stop_string_that_came_too_early_is_text() -> None:
    choice = ChoiceText(decode, context=[], stops=["b"])
    assert choice.push(encode("a b c"), "") + choice.push([2], "stop") == "a b c"
