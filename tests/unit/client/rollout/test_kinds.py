"""Six switches, each of which trains what its name says and nothing else."""

import pytest

from farstep.rollout.kinds import LossMaskPolicy, SpanKind, spans_of

KINDS = list(SpanKind)
OFF = dict.fromkeys(LossMaskPolicy.__dataclass_fields__, False)


@pytest.mark.parametrize(
    ("switch", "trained"),
    [
        ("assistant_text", {SpanKind.ASSISTANT_TEXT}),
        ("assistant_tool_calls", {SpanKind.TOOL_CALL}),
        ("tool_results", {SpanKind.TOOL_RESULT}),
        ("final_assistant_text", {SpanKind.FINAL}),
        ("system_prompt", {SpanKind.SYSTEM}),
        ("user_prompt", {SpanKind.USER}),
    ],
)
def test_switches(switch: str, trained: set[SpanKind]) -> None:
    policy = LossMaskPolicy(**{**OFF, switch: True})
    assert {kind for kind in KINDS if policy.trains(kind)} == trained
    assert policy.mask([SpanKind.CONTEXT, *KINDS]) == [0.0, *(float(kind in trained) for kind in KINDS)]


def test_what_is_trained_unless_one_says_otherwise() -> None:
    assert {kind for kind in KINDS if LossMaskPolicy().trains(kind)} == {
        SpanKind.ASSISTANT_TEXT, SpanKind.TOOL_CALL, SpanKind.FINAL,
    }  # fmt: skip
    assert LossMaskPolicy().mask([SpanKind.FINAL] * 3) == [0.0, 1.0, 1.0]
    everything = LossMaskPolicy(**dict.fromkeys(OFF, True))
    assert not everything.trains(SpanKind.CONTEXT)


def test_spans() -> None:
    kinds = [SpanKind.USER, SpanKind.USER, SpanKind.FINAL, SpanKind.USER]
    assert spans_of(kinds) == [(SpanKind.USER, 0, 2), (SpanKind.FINAL, 2, 3), (SpanKind.USER, 3, 4)]
    assert spans_of([]) == []
