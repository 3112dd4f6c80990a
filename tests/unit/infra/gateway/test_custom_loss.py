"""Ids of custom losses: the SDK's own upload becomes an id, and the id the loss again."""

import base64
import json
import zlib

import pytest
from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

from farstep_infra.gateway.custom_loss import custom_loss_of, loss_id_of
from farstep_infra.gateway.data import to_forward_request
from farstep_proto.custom_loss import CustomLoss
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import tinker_pb2, training_pb2


def neg_ll(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/neg_ll:sum": loss}


def body():
    """As the SDK sends it."""
    handle = trace_loss(neg_ll, {"logprobs": 1, "weights": 1}, "session")
    return {
        "session_id": "session",
        "custom_loss_seq_id": 0,
        "name": handle.name,
        "inputs": [each.model_dump() for each in handle.inputs],
        "graph": encode_graph(handle).model_dump(),
        "type": "create_custom_loss",
    }


def test_the_id_is_the_loss() -> None:
    loss = CustomLoss.from_proto(custom_loss_of(loss_id_of(body())))
    assert (loss.name, loss.ranks) == ("neg_ll", {"logprobs": 1, "weights": 1})
    assert loss.metrics == {"custom/neg_ll:sum": loss.loss}
    assert loss_id_of(body()) == loss_id_of(body())


def test_a_pass_takes_the_loss_along() -> None:
    message = tinker_pb2.ForwardBackwardRequest(
        loss_fn="custom", loss_fn_config_v2={"loss_id": {"text": loss_id_of(body())}}
    )
    request = to_forward_request(message)
    assert request.custom_loss == custom_loss_of(loss_id_of(body()))
    assert not request.loss_fn_config
    message.ClearField("loss_fn_config_v2")
    with pytest.raises(InvalidInput) as caught:
        to_forward_request(message)
    assert caught.value.field == "loss_fn_config.loss_id"


def packed(data: bytes) -> str:
    return "graph-" + base64.urlsafe_b64encode(zlib.compress(data, 9)).decode()


@pytest.mark.parametrize(
    "loss_id",
    [
        "", "graph-", "graph-!!", "graph-AAAA", packed(b"\xff\xff"), packed(b""), packed(bytes(10**8)),
        "graph-" + "A" * 10**6,
        packed(training_pb2.CustomLoss(nodes=b"[]").SerializeToString()),
    ],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_id(loss_id: str) -> None:
    with pytest.raises(InvalidInput):
        custom_loss_of(loss_id)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"graph": None}, "graph"),
        ({"graph": {"nodes": {}}}, "graph"),
        ({"graph": {"format": 2, "nodes": []}}, "graph.format"),
        ({"graph": {"format": 1, "nodes": []}}, "create_custom_loss.graph"),
        ({"inputs": None}, "inputs"),
        ({"inputs": [{"name": "logprobs"}]}, "inputs"),
        ({"inputs": [{"name": "logprobs", "rank": 2**40}]}, "inputs"),
        ({"inputs": [{"name": "weights", "rank": 1}]}, "create_custom_loss.inputs"),
    ],
)
def test_what_is_no_loss_is_refused_by_name(change, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        loss_id_of({**body(), **change})
    assert caught.value.field == field


def test_an_operation_that_is_not_listed_is_refused_when_the_loss_is_sent_in() -> None:
    bad = json.loads(json.dumps(body()).replace("operator.mul", "os.system"))
    with pytest.raises(InvalidInput, match=r"os\.system") as caught:
        loss_id_of(bad)
    assert caught.value.field == "create_custom_loss.graph.nodes[2].target"
