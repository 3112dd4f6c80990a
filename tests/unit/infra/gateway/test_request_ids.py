"""What can be read from a request id, and what is none."""

import pytest

from farstep_infra.gateway.request_ids import MAX_SEQ, RequestId, model_id_of
from farstep_proto.errors import InvalidInput, NotFound


@pytest.mark.parametrize(
    "text",
    [
        "session-1:train:0:0",
        "session-1:train:12:7",
        "session-1:train:0:7+snapshot:3",
        "session-1:train:0:7+inflight:0",
        "session-1:sample:2:1000000003",
        f"session-1:sample:2:{2**63 - 1}",
        "session-1:loss:4",
        "session-1:loss:4+graph-aGk_x-4=",
    ],
)
def test_an_id_says_what_it_is_of(text):
    wanted = RequestId.parse(text)
    assert str(wanted) == text
    assert wanted.session_id == "session-1"


def test_its_parts():
    wanted = RequestId.parse("s:train:1:7+inflight:3")
    assert (wanted.kind, wanted.owner, wanted.seq) == ("train", model_id_of("s", 1), 7)
    assert (wanted.sampling, wanted.number) == ("inflight", 3)
    assert RequestId.parse("s:loss:2+graph-xx").text == "graph-xx"


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "s", "s:train:0", "s:train::1", "s:train:0:", "s:train:0:-1", "s:train:0:1 ", "s:train:0:1\n",
        "s:train:0:٣",
        "s:train:x:1", "s:other:0:1", ":train:0:1", "a/b:train:0:1", "s\0:train:0:1", "s:train:0:1+other:2",
        "s:train:0:1+snapshot:", "s:loss:1+other", "s:t:train:0:1",
        "s:sample:0:" + str(2**63), "x" * 129 + ":train:0:1",
    ],
)  # fmt: skip
def test_what_is_none_is_not_found(text):
    with pytest.raises(NotFound):
        RequestId.parse(text)


def test_a_model_and_its_numbers():
    assert str(RequestId.of_model("s:train:0", 3)) == "s:train:0:3"
    for seq in (0, -1, MAX_SEQ + 1):
        with pytest.raises(InvalidInput, match="between"):
            RequestId.of_model("s:train:0", seq)
    for model_id in ("", "s:sample:0", "s:train", "s:train:0:1", "s:train:0+snapshot:1", "s:loss"):
        with pytest.raises(NotFound):
            RequestId.of_model(model_id, 1)
