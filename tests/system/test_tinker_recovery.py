"""Trainer and control plane end while a program of the Tinker SDK trains: it sees pauses, and the same numbers."""

import gc
import os
import signal
import warnings

import httpx
import psutil
import pytest
import tinker

from tests.contract.tinker.examples import logprobs_of, tinker_adam, tinker_datum
from tests.support.processes import KEY, Server

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the SDK leaves connections to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    running = Server("farstep_infra up", "--home", tmp_path, "--port", "0", "--model", "farstep/tiny").start()
    yield running
    if running.process.poll() is None:
        running.stop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def submit(model, index):
    return model.forward_backward([tinker_datum(index)], "cross_entropy"), model.optim_step(tinker_adam())


def told(futures):
    gradients, update = (future.result(timeout=120) for future in futures)
    return logprobs_of(gradients), update.metrics


def call(server, method, path, **kwargs):
    headers = {"Authorization": f"Bearer {KEY}"}
    response = httpx.request(method, server.url + path, headers=headers, timeout=90, trust_env=False, **kwargs)
    assert response.status_code in (200, 408), response.text
    return response.json()


def test_promises_outlive_the_trainer_and_the_control_plane(server):
    service = tinker.ServiceClient(base_url=server.url, api_key=f"tml-{KEY}")
    undisturbed = service.create_lora_training_client("farstep/tiny", rank=4, seed=1).result()
    expected = [told(submit(undisturbed, index)) for index in range(6)]
    model = service.create_lora_training_client("farstep/tiny", rank=4, seed=1).result()
    assert told(submit(model, 0)) == expected[0]

    out = [submit(model, 1)]
    (trainer,) = (each for each in call(server, "GET", "/v1/status")["processes"] if each["role"] == "trainer")
    os.kill(trainer["pid"], signal.SIGKILL)
    out.append(submit(model, 2))
    assert [told(each) for each in out] == expected[1:3]

    path = model.save_state("middle").result().path
    # Nobody fetches these before the end; both are done when the control plane dies, or will be afterwards.
    step = {"model_id": undisturbed.model_id, "seq_id": 13, "path": "late"}
    saved = call(server, "POST", "/api/v1/save_weights", json=step)
    out = [submit(model, 3)]
    copy = service.create_training_client_from_state_with_optimizer(path)
    family = psutil.Process(server.process.pid).children(recursive=True)
    server.kill()
    psutil.wait_procs(family, timeout=20)
    server.restart()
    out.append(submit(model, 4))
    assert [told(each) for each in out] == expected[3:5]
    resumed = copy.result(timeout=120)
    assert told(submit(resumed, 3)) == expected[3]
    late = call(server, "POST", "/api/v1/retrieve_future", json={"request_id": saved["request_id"]})
    assert late["path"] == f"tinker://{undisturbed.model_id}/weights/late"
    assert told(submit(model, 5)) == expected[5]
    service.close("success")
