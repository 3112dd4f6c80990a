"""Bad input gets a clear error that names the field, and the run goes on."""

import httpx
import numpy as np
import pytest

import farstep
from farstep import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient
from tests.support.processes import KEY

TOKENS = [1, 40, 41]


def data_with(**changes):
    inputs = {"target_tokens": [40, 41, 42], "logprobs": [-1.0] * 3, "advantages": [1.0] * 3}
    return [Datum(ModelInput.from_ints(TOKENS), inputs), Datum(ModelInput.from_ints(TOKENS), {**inputs, **changes})]


@pytest.mark.parametrize(
    ("data", "loss_fn", "says"),
    [
        (data_with(advantages=[1.0]), "ppo", r"data\[1\].*advantages.*length 1.*length 3"),
        (data_with(advantages=[1.0, float("nan"), 1.0]), "ppo", r"data\[1\].*advantages.*nan"),
        (data_with(logprobs=[1.0, float("inf"), 1.0]), "ppo", r"data\[1\].*logprobs.*inf"),
        (data_with(target_tokens=[40, 10**6, 42]), "ppo", r"data\[1\].*target_tokens.*vocabulary"),
        (data_with(), "no_such_loss", r"loss_fn.*no_such_loss"),
        (data_with(surprise=[1.0] * 3), "ppo", r"data\[1\].*surprise"),
        ([], "cross_entropy", r"data"),
        ([Datum(ModelInput.from_ints([10**6]), {"target_tokens": [1]})], "cross_entropy", r"data\[0\].*vocabulary"),
        ([Datum(ModelInput.from_ints([1]), {})], "cross_entropy", r"data\[0\].*target_tokens"),
        ([Datum(ModelInput.from_ints([1] * 4000), {"target_tokens": [1] * 4000})], "cross_entropy", r"4000"),
    ],
)
def test_bad_data(trainer, data, loss_fn, says):
    with pytest.raises(ValueError, match=says):
        trainer.forward_backward(data, loss_fn)
    assert trainer.forward(data_with(), "ppo").result().loss is not None


@pytest.mark.parametrize("config", [{"beta": 1.0}, {"clip_low_threshold": float("nan")}])
def test_bad_loss_settings(trainer, config):
    with pytest.raises(ValueError, match=next(iter(config))):
        trainer.forward_backward(data_with(), "ppo", config)


@pytest.mark.parametrize("name", ["a/b", "", "..", "a b", "x" * 129, "a\0b"])
def test_bad_names(trainer, name):
    with pytest.raises(ValueError, match="name"):
        trainer.save_state(name)
    with pytest.raises(ValueError, match="name"):
        trainer.save_weights_for_sampler(name)
    trainer.save_state("good").result()


@pytest.mark.parametrize("path", ["", "x", "bt://loops:../weights/x", "bt://loops:a/other/x", "/etc/passwd"])
def test_bad_paths(trainer, path):
    with pytest.raises(ValueError, match="path"):
        trainer.load_state(path)


def test_missing_checkpoint(trainer):
    with pytest.raises(farstep.FarstepError, match="nothing-here"):
        trainer.load_state(f"bt://loops:{trainer.run_id}/weights/nothing-here").result()
    trainer.forward(data_with(), "ppo").result()


@pytest.mark.parametrize(
    "params", [{"learning_rate": -1.0}, {"beta1": 1.5}, {"eps": float("nan")}, {"grad_clip_norm": -1.0}]
)
def test_bad_adam_params(trainer, params):
    with pytest.raises(ValueError, match=next(iter(params))):
        trainer.optim_step(AdamParams(**params))


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"rank": 100_000}, {"dropout": 1.5}, {"target_modules": ["no_such"]}, {"alpha": -1.0}]
)
def test_bad_lora_settings(service, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        service.create_lora_training_client("farstep/tiny", **options)


def test_wrong_model(service):
    with pytest.raises(farstep.FarstepError, match="farstep/tiny"):
        service.create_lora_training_client("someone/else", rank=4)


@pytest.mark.parametrize(
    "params",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_tokens": -1}, {"temperature": float("nan")},
     {"min_p": 2.0}, {"top_k": -5}],
)  # fmt: skip
def test_bad_sampling_params(service, params):
    sampler = service.create_sampling_client("farstep/tiny")
    with pytest.raises(ValueError, match=next(iter(params))):
        sampler.sample(ModelInput.from_ints(TOKENS), 1, SamplingParams(**params))


@pytest.mark.parametrize(
    ("prompt", "count", "says"), [([], 1, "prompt"), ([10**6], 1, "prompt"), (TOKENS, 0, "num_samples")]
)
def test_bad_sample_calls(service, prompt, count, says):
    sampler = service.create_sampling_client("farstep/tiny")
    with pytest.raises(ValueError, match=says):
        sampler.sample(ModelInput.from_ints(prompt), count).result()


def test_wrong_key(pair, monkeypatch):
    monkeypatch.setenv("FARSTEP_API_KEY", "fsk-wrong")
    trainer, sampler = pair
    with pytest.raises(farstep.AuthenticationError) as caught:
        ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url).create_lora_training_client(
            "farstep/tiny"
        )
    assert "fsk-wrong" not in str(caught.value)


@pytest.fixture
def raw(pair):
    with httpx.Client(base_url=pair[0].url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


BODY = {"data": [{"model_input": {"chunks": [{"encoded_text": {"ids": [1, 2]}}]},
                  "loss_fn_inputs": {"target_tokens": {"dtype": "DTYPE_INT64", "values": [2, 3]}}}],
        "loss_fn": "cross_entropy"}  # fmt: skip


def submit(raw, run_id, verb, seq, body, **params):
    return raw.post(f"/v1/runs/{run_id}/{verb}", params={"seq": seq, **params}, json=body)


def test_plain_json_is_enough(raw):
    """What a person with curl does."""
    run_id = raw.post("/v1/runs", json={"base_model": "farstep/tiny", "lora": {"rank": 4}}).json()["run_id"]
    accepted = submit(raw, run_id, "forward_backward", 1, BODY)
    assert accepted.status_code == 202
    answer = raw.get(f"/v1/operations/{accepted.json()['operation_id']}", params={"wait_s": 20}).json()
    assert answer["state"] == "OPERATION_STATE_SUCCEEDED"
    assert answer["forward_backward"]["loss"] > 0


def test_arrival_order_and_duplicates(raw):
    run_id = raw.post("/v1/runs", json={"base_model": "farstep/tiny", "lora": {"rank": 4}}).json()["run_id"]
    step = {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12}
    late = submit(raw, run_id, "optim_step", 2, step).json()["operation_id"]
    assert raw.get(f"/v1/operations/{late}", params={"wait_s": 0.2}).json()["state"] == "OPERATION_STATE_QUEUED"
    first = submit(raw, run_id, "forward_backward", 1, BODY).json()["operation_id"]
    assert submit(raw, run_id, "forward_backward", 1, BODY).json()["operation_id"] == first
    answer = raw.get(f"/v1/operations/{late}", params={"wait_s": 20}).json()
    assert answer["optim_step"]["metrics"]["step"] == 1
    again = submit(raw, run_id, "forward_backward", 1, {**BODY, "loss_fn": "ppo"})
    assert again.status_code in (400, 409)
    assert submit(raw, run_id, "optim_step", 1, step).status_code == 409
    assert submit(raw, run_id, "optim_step", 2, step).json()["operation_id"] == late  # ran once
    assert raw.get(f"/v1/runs/{run_id}").json()["step"] == "1"


def test_what_the_server_refuses_by_itself(raw):
    run_id = raw.post("/v1/runs", json={"base_model": "farstep/tiny", "lora": {"rank": 4}}).json()["run_id"]
    bad = {**BODY, "loss_fn": "nope"}
    for seq, body, verb, status, field in [
        (1, bad, "forward", 400, "loss_fn"),
        (0, BODY, "forward", 400, "seq"),
        ("x", BODY, "forward", 400, "seq"),
        (1, BODY, "no_such_verb", 404, None),
        (1, {"nonsense": 1}, "forward", 400, "body"),
        (1, {"name": "a/b"}, "save_state", 400, "name"),
        (1, {"learning_rate": -1}, "optim_step", 400, "learning_rate"),
    ]:
        response = submit(raw, run_id, verb, seq, body)
        assert response.status_code == status, (response.text, verb)
        if field:
            assert field in response.json()["field"]
    assert submit(raw, "nobody", "forward", 1, BODY).status_code == 404
    limit = int(raw.get("/v1/info").json()["max_request_bytes"])
    too_large = raw.post(f"/v1/runs/{run_id}/forward", params={"seq": 1}, content=b" " * (limit + 1))
    assert too_large.status_code == 413
    assert str(limit) in too_large.json()["message"]
    assert submit(raw, run_id, "forward", 1, BODY).status_code == 202  # the seq is still free


def test_nan_is_refused_by_the_server_too(raw):
    import base64

    run_id = raw.post("/v1/runs", json={"base_model": "farstep/tiny", "lora": {"rank": 4}}).json()["run_id"]
    nan = base64.b64encode(np.array([np.nan, 1], dtype="<f4").tobytes()).decode()
    ones = base64.b64encode(np.ones(2, dtype="<f4").tobytes()).decode()
    tensor = {"dtype": "DTYPE_FLOAT32", "shape": ["2"]}
    inputs = {**BODY["data"][0]["loss_fn_inputs"],
              "advantages": {**tensor, "data": nan}, "logprobs": {**tensor, "data": ones}}  # fmt: skip
    body = {"loss_fn": "ppo", "data": [{**BODY["data"][0], "loss_fn_inputs": inputs}]}
    response = submit(raw, run_id, "forward", 1, body)
    assert response.status_code == 400
    assert response.json()["field"] == "data[0].loss_fn_inputs.advantages"
