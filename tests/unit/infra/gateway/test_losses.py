"""Custom losses at the gateway's door: refused where nobody has asked for them, and then the client is told so."""

import pytest

GRAPH = {
    "inputs": [{"name": "logprobs", "rank": 1}],
    "name": "mine",
    "graph": {
        "format": 1,
        "nodes": [
            {"op": "placeholder", "name": "logprobs", "target": "logprobs"},
            {"op": "call_method", "name": "sum_1", "target": "sum", "args": [{"ref": "logprobs"}]},
            {
                "op": "output",
                "name": "output",
                "target": "output",
                "args": [{"tuple": [{"ref": "sum_1"}, {"dict": {}}]}],
            },
        ],
    },
}
SESSION = {"tags": [], "sdk_version": "0.38.0", "type": "create_session"}


@pytest.mark.parametrize("flags", [(), ("--custom-losses",)])
def test_losses_are_taken_where_they_are_wanted(start, flags):
    up = start(*flags)

    def post(path, **body):
        return up.call("POST", f"/api/v1/{path}", body)

    is_wanted = bool(flags)
    assert post("client/config", sdk_version="0.38.0")["custom_loss_server_side"] is is_wanted
    session_id = post("create_session", **SESSION)["session_id"]
    promised = [post("create_custom_loss", session_id=session_id, custom_loss_seq_id=0, **GRAPH) for _ in range(2)]
    assert promised[0] == promised[1]
    result = post("retrieve_future", **promised[0])
    assert ("loss_id" in result) is is_wanted
    if not is_wanted:
        assert result["category"] == "user"
        assert "--custom-losses" in result["error"]
