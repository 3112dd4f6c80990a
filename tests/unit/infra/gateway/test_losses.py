"""Custom losses at the gateway's door: refused where nobody has asked for them, and the client is told so before.

That they are taken elsewhere is for the contract's tests, with the real SDK.
"""

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


def test_losses_are_refused_where_nobody_wants_them(start):
    up = start()

    def post(path, **body):
        return up.call("POST", f"/api/v1/{path}", body)

    assert post("client/config", sdk_version="0.38.0")["custom_loss_server_side"] is False
    session_id = post("create_session", **SESSION)["session_id"]
    promised = [post("create_custom_loss", session_id=session_id, custom_loss_seq_id=0, **GRAPH) for _ in range(2)]
    assert promised[0] == promised[1]
    result = post("retrieve_future", **promised[0])
    assert result["category"] == "user"
    assert "--custom-losses" in result["error"]
