"""The control plane dies while samples of the Tinker SDK are out, with all samplers: they come, and are the same."""

import contextlib
import gc
import threading
import time
import warnings

import httpx
import pytest
import tinker
from tinker import types

from farstep_proto import paths
from tests.contract.tinker.examples import tinker_adam, tinker_datum
from tests.support.processes import KEY, Server

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the SDK leaves connections to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WAIT_S = 120


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


def submit(client, seed):
    params = types.SamplingParams(max_tokens=400, seed=seed, stop=[])
    return client.sample(types.ModelInput.from_ints([5, 6, 7, seed]), 3, params)


def tokens_of(future):
    return [sequence.tokens for sequence in future.result(WAIT_S).sequences]


def wait_until_out(server, count):
    """Until the sampler has so many at once."""
    headers = {"Authorization": f"Bearer {KEY}", "Accept": "application/json"}
    deadline = time.monotonic() + WAIT_S
    with httpx.Client(headers=headers, trust_env=False, timeout=60) as client:
        while int(client.get(server.facts["sampler_url"] + paths.INFO).json().get("num_pending", 0)) < count:
            assert time.monotonic() < deadline


class Asking(threading.Thread):
    """Submits one small sample, again and again, until it is taken; `statuses` are the answers."""

    def __init__(self, url, sampling_session_id):
        super().__init__()
        self.statuses = []
        self._url = f"{url}/api/v1/asample"
        self._body = {
            "sampling_session_id": sampling_session_id,
            "seq_id": 5 * 10**9,
            "prompt": {"chunks": [{"tokens": [5]}]},
            "sampling_params": {"max_tokens": 1},
        }
        self.stopped = threading.Event()

    def run(self):
        with httpx.Client(headers={"X-API-Key": f"tml-{KEY}"}, trust_env=False, timeout=60) as client:
            while 200 not in self.statuses and not self.stopped.wait(0.2):
                with contextlib.suppress(httpx.TransportError):
                    self.statuses.append(client.post(self._url, json=self._body).status_code)


def test_samples_that_are_out_come_after_the_control_plane_has_died(server):
    service = tinker.ServiceClient(base_url=server.url, api_key=f"tml-{KEY}")
    model = service.create_lora_training_client("farstep/tiny", rank=4, seed=1).result(WAIT_S)
    model.forward_backward([tinker_datum(1)], "cross_entropy").result(WAIT_S)
    model.optim_step(tinker_adam()).result(WAIT_S)
    clients = [
        service.create_sampling_client(base_model="farstep/tiny").result(WAIT_S),
        model.save_weights_and_get_sampling_client().result(WAIT_S),
    ]
    out = [submit(client, seed) for client in clients for seed in range(3)]
    wait_until_out(server, len(out) // 2)
    server.kill()
    asking = Asking(server.url, clients[0]._sampling_session_id)
    asking.start()
    try:
        server.restart()
        found = [tokens_of(future) for future in out]
        assert found == [tokens_of(submit(client, seed)) for client in clients for seed in range(3)]
        assert found[:3] != found[3:]
        asking.join(WAIT_S)
    finally:
        asking.stopped.set()
    assert set(asking.statuses) == {429, 200}, "not yet, and then yes: nothing that ends a program"
    service.close("success")
