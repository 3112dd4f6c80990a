"""Promises and bodies that no SDK would send: each gets an answer that says what is wrong, and nothing is lost."""

import json

import pytest

from tests.contract.tinker.examples import step

pytestmark = pytest.mark.timeout(240)

NOBODYS = "session-0000000000000000"
WITH_BODY = (
    "session_heartbeat", "create_model", "load_weights", "get_info", "optim_step", "save_weights", "create_custom_loss",
    "save_weights_for_sampler", "save_weights_external", "retrieve_future", "cancel_future",
)  # fmt: skip


def test_nobodys_promise_is_not_found(raw, model):
    never = [
        f"{NOBODYS}:train:0:0",
        f"{NOBODYS}:train:0:7",
        f"{NOBODYS}:sample:0:7",
        f"{NOBODYS}:loss:1",
        "",
        "x",
        ":::",
    ]
    for request_id in [*never, "x" * 100_000, "a:train:0:\0", "ä:train:0:1", f"{model.model_id}:-1"]:
        response = raw.post("retrieve_future", json={"request_id": request_id})
        assert response.status_code == 404, (request_id[:50], response.text)
        assert response.json()["category"] == "user"
    later = raw.post("retrieve_future", json={"request_id": f"{model.model_id}:1000"})
    assert later.status_code == 410  # its model is there


def test_nobodys_model_and_session_are_not_found(raw):
    ident = {"model_id": f"{NOBODYS}:train:0", "seq_id": 1}
    for path, body in (
        ("optim_step", {**ident, "adam_params": {}}),
        ("save_weights", {**ident, "path": "x"}),
        ("save_weights_for_sampler", {**ident, "path": "x"}),
        ("save_weights_external", {**ident, "path": "x"}),
        ("load_weights", {**ident, "path": "x"}),
        ("get_info", ident),
        ("session_heartbeat", {"session_id": NOBODYS}),
        ("create_model", {"session_id": NOBODYS, "model_seq_id": 0, "base_model": "farstep/tiny"}),
        (f"sessions/{NOBODYS}/finish", {}),
    ):
        response = raw.post(path, json=body)
        assert response.status_code == 404, (path, response.text)
    for model_id in ("", "x", f"{NOBODYS}:sample:0", "a\0b:train:0", f"{NOBODYS}:train:{10**30}"):
        assert raw.post("get_info", json={"model_id": model_id}).status_code == 404
        assert raw.post("optim_step", json={"model_id": model_id, "seq_id": 1}).status_code == 404


BODIES = (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":1e999}')


def test_a_body_that_is_none_is_refused(raw):
    for path in WITH_BODY:
        for body in BODIES:
            response = raw.post(path, content=body)
            assert response.status_code == 400, (path, body[:20], response.text)
            assert response.json()["error"]
    for path in ("client/config", "client/dynamic_config", "create_session"):  # which need nothing in theirs
        assert [raw.post(path, content=body).status_code for body in BODIES] == [400] * (len(BODIES) - 1) + [200]


def test_a_mistake_names_its_field(raw, model):
    ident = {"model_id": model.model_id, "seq_id": 1}
    for path, body, field in (
        ("optim_step", {**ident, "seq_id": "1"}, "seq_id"),
        ("optim_step", {**ident, "seq_id": 0}, "seq_id"),
        ("optim_step", {**ident, "seq_id": 2**40}, "seq_id"),
        ("optim_step", {"seq_id": 1}, "model_id"),
        ("create_model", {"session_id": "x", "model_seq_id": -1, "base_model": "m"}, "model_seq_id"),
        ("create_model", {"session_id": "x", "model_seq_id": 0, "base_model": 3}, "base_model"),
        (
            "create_model",
            {"session_id": "x", "model_seq_id": 0, "base_model": "m", "lora_config": {"rank": 0.5}},
            "lora",
        ),
        ("load_weights", {"path": "x"}, "model_id"),
        ("create_custom_loss", {"session_id": "x", "custom_loss_seq_id": -1}, "custom_loss_seq_id"),
        ("create_custom_loss", {"session_id": "x", "custom_loss_seq_id": 2**63}, "custom_loss_seq_id"),
        ("create_session", {"tags": "x"}, "tags"),
        ("create_session", {"tags": ["x" * 1000]}, "tags"),
        ("create_session", {"display_name": "x" * 1000}, "display_name"),
    ):
        response = raw.post(path, json=body)
        assert response.status_code == 400, (path, body, response.text)
        assert response.json()["field"].startswith(field)
    assert raw.post("forward_backward", content=b"\xff\xff").status_code == 400
    far = raw.post("optim_step", json={**ident, "seq_id": 10**6, "adam_params": {}})
    assert (far.status_code, far.json()["field"]) == (400, "seq_id")
    assert step(model, 0)[1].metrics["step:max"] == 1


def test_a_refused_key_is_told(tinker_url):
    import httpx

    for headers in ({}, {"X-API-Key": "tml-wrong"}, {"X-API-Key": "wrong"}):
        response = httpx.post(f"{tinker_url}/api/v1/client/config", json={}, headers=headers, trust_env=False)
        assert response.status_code == 401
        assert json.loads(response.content)["error"]


def test_only_samples_can_be_given_up(raw, model):
    step(model, 0)
    response = raw.post("cancel_future", json={"request_id": f"{model.model_id}:1"})
    assert response.status_code == 400


def test_a_closed_session_makes_no_models(raw):
    session_id = raw.post("create_session", json={}).json()["session_id"]
    assert raw.post(f"sessions/{session_id}/finish", json={"reason": {"type": "errored"}, "detail": "boom"}).is_success
    promised = raw.post(
        "create_model", json={"session_id": session_id, "model_seq_id": 0, "base_model": "farstep/tiny"}
    )
    failed = raw.post("retrieve_future", json={"request_id": promised.json()["request_id"]}).json()
    assert failed == {"error": f"session_id: no session '{session_id}'", "category": "user"}


def test_a_creation_that_is_repeated_makes_one_model(raw):
    session_id = raw.post("create_session", json={}).json()["session_id"]
    body = {"session_id": session_id, "model_seq_id": 3, "base_model": "farstep/tiny", "lora_config": {"rank": 2}}
    promised = [raw.post("create_model", json=body).json() for _ in range(3)]
    assert promised == [{"request_id": f"{session_id}:train:3:0", "model_id": f"{session_id}:train:3"}] * 3
    told = raw.post("retrieve_future", json={"request_id": promised[0]["request_id"]}).json()
    assert told == {"model_id": f"{session_id}:train:3", "type": "create_model"}
