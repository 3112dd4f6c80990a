"""The real SDK against a trainer and two replicas behind a router: exact versions, crowds, restarts of the trainer."""

import asyncio
import itertools
import pickle
import threading
import time
from contextlib import ExitStack

import httpx
import numpy as np
import pytest

from farstep import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient
from farstep_proto import paths
from farstep_proto.v1 import sampling_pb2
from tests.support.processes import KEY, running

PROMPT = [1, 40, 41, 42, 43]
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": paths.PROTOBUF, "Accept": paths.PROTOBUF}


class Fleet:
    """Servers by hand, so that each can be ended and started again."""

    def __init__(self, store, stack):
        self.store = store
        self.stack = stack
        self.trainer = self.start_trainer()
        self.replicas = [self.start_replica() for _ in range(2)]
        urls = [f"--replica={replica.url}" for replica in self.replicas]
        self.router = stack.enter_context(running("farstep_sampler.router", *urls))
        self.await_replicas(2)

    def start_trainer(self, *options):
        return self.stack.enter_context(
            running("farstep_worker", "--model", "farstep/tiny", "--store", self.store, *options)
        )

    def start_replica(self, feed=None):
        feed = feed or self.trainer.facts["feed"]
        return self.stack.enter_context(
            running("farstep_sampler", "--model", "farstep/tiny", "--store", self.store, "--feed", feed)
        )

    def join(self, replica):
        body = sampling_pb2.AddReplicaRequest(url=replica.url).SerializeToString()
        httpx.post(self.router.url + paths.REPLICAS, content=body, headers=HEADERS).raise_for_status()

    def leave(self, replica):
        answer = httpx.delete(self.router.url + paths.REPLICAS, params={"url": replica.url}, headers=HEADERS)
        answer.raise_for_status()

    def states(self):
        answer = httpx.get(self.router.url + paths.REPLICAS, headers=HEADERS)
        return {r.url: r.state for r in sampling_pb2.ListReplicasResponse.FromString(answer.content).replicas}

    def await_replicas(self, count):
        deadline = time.monotonic() + 30
        while list(self.states().values()).count("serving") != count:
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.05)

    def service(self):
        return self.stack.enter_context(ServiceClient.local(trainer_url=self.trainer.url, sampler_url=self.router.url))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("FARSTEP_API_KEY", KEY)
        yield Fleet(tmp_path_factory.mktemp("fleet") / "store", stack)


def train(trainer, index):
    trainer.forward_backward([Datum.from_prompt_completion(PROMPT, [60 + index, 61, 62, 2])])
    trainer.optim_step(AdamParams(learning_rate=2e-2))


def trainer_logprobs(trainer, tokens):
    data = [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})]
    return trainer.forward(data).result().loss_fn_outputs[0]["logprobs"].to_numpy()


def test_five_versions_interleaved_have_the_trainers_logprobs_at_each(fleet):
    """Seven versions are published, four stay resident a run: the older ones come back from the store."""
    trainer = fleet.service().create_lora_training_client("farstep/tiny", rank=4, seed=5)
    probe = [1, 40, 50, 60, 70, 80, 2]
    expected, clients = {}, {}
    for version in range(1, 8):
        train(trainer, version)
        clients[version] = trainer.save_weights_and_get_sampling_client(pin="exact")
        expected[version] = trainer_logprobs(trainer, probe)
    versions = [1, 2, 4, 5, 7]
    for older, newer in itertools.pairwise(versions):
        assert np.abs(expected[older] - expected[newer]).max() > 1e-3  # else the comparison would tell nothing
    order = [version for _ in range(4) for version in (4, 1, 7, 2, 5)]
    futures = [(version, clients[version].compute_logprobs(probe)) for version in order]
    sampled = [
        (version, clients[version].sample(PROMPT, 1, SamplingParams(max_tokens=6, seed=version))) for version in order
    ]
    for version, future in futures:
        # fp32 on CPU through two engines' kernels: 1e-5 absolute, as for a single version
        np.testing.assert_allclose(future.result(timeout=60)[1:], expected[version], atol=1e-5)
    for version, future in sampled:
        result = future.result(timeout=60)
        assert result.policy_version == version
        assert set(result.sequences[0].policy_versions) == {version}


def test_a_thousand_samples_in_flight_on_a_handful_of_threads(fleet):
    trainer = fleet.service().create_lora_training_client("farstep/tiny", rank=4, seed=6)
    train(trainer, 0)
    client = pickle.loads(pickle.dumps(trainer.save_weights_and_get_sampling_client()))
    before = threading.active_count()

    async def crowd():
        futures = await asyncio.gather(
            *(
                client.sample_async(
                    [1, 40 + index % 50, 41], 1, SamplingParams(max_tokens=4, seed=index), affinity_key=str(index % 7)
                )
                for index in range(1000)
            )
        )
        threads = threading.active_count()
        return await asyncio.gather(*futures), threads

    results, threads = asyncio.run(crowd())
    assert len(results) == 1000
    assert {result.policy_version for result in results} == {1}
    assert threads - before <= 4
    again = client.sample([1, 40 + 999 % 50, 41], 1, SamplingParams(max_tokens=4, seed=999)).result()
    assert again.sequences[0].tokens == results[999].sequences[0].tokens  # whatever else was in the batch
    client.close()


def test_replicas_join_drain_die_and_leave_under_load_without_a_failed_request(fleet):
    trainer = fleet.service().create_lora_training_client("farstep/tiny", rank=4, seed=7)
    train(trainer, 0)
    newest = trainer.save_weights_and_get_sampling_client()
    stop, failures, served = threading.Event(), [], []

    def load(worker):
        number = 0
        while not stop.is_set():
            client, number = newest, number + 1
            params = SamplingParams(max_tokens=40, seed=number)
            try:
                result = client.sample([*PROMPT, 50 + worker], 2, params).result(timeout=60)
            except Exception as error:  # whatever it is, it is a failed request
                failures.append(error)
                return
            served.append(result.policy_version)
            if result.policy_version < client.policy_version:
                failures.append(AssertionError(f"{result.policy_version} < {client.policy_version}"))

    threads = [threading.Thread(target=load, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    try:
        third = fleet.start_replica()
        fleet.join(third)
        fleet.await_replicas(3)
        train(trainer, 1)
        newest = trainer.save_weights_and_get_sampling_client()
        fleet.leave(fleet.replicas[0])
        fleet.await_replicas(2)
        fleet.replicas[0].stop()  # SIGTERM
        assert fleet.replicas[0].process.returncode in (0, -15)
        fourth = fleet.start_replica()
        fleet.join(fourth)
        fleet.await_replicas(3)
        train(trainer, 2)
        newest = trainer.save_weights_and_get_sampling_client()
        third.kill()  # in the middle of whatever it does
        fleet.replicas[1].stop()  # drains without having been told to leave
        time.sleep(1)
        train(trainer, 3)
        newest = trainer.save_weights_and_get_sampling_client()
        deadline = time.monotonic() + 30
        while newest.policy_version not in served and not failures and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert set(served) == {1, 2, 3, 4}
    for gone in (third, fleet.replicas[1]):
        fleet.leave(gone)
    fleet.replicas = [fourth]


def test_a_trainer_started_anew_from_an_old_checkpoint_never_repeats_a_version(fleet):
    """Versions 1 to 3 are known to the samplers; the worker is killed and goes on from a state of version 1."""
    service = fleet.service()
    trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=8)
    train(trainer, 0)
    trainer.save_weights_and_get_sampling_client()
    state = trainer.save_state("old").result().path
    for index in (1, 2):
        train(trainer, index)
        last = trainer.save_weights_and_get_sampling_client(pin="exact")
    probe = [1, 40, 50, 60, 2]
    third = last.compute_logprobs(probe).result()
    feed_port = fleet.trainer.facts["feed"].rpartition(":")[2]
    port = fleet.trainer.url.rpartition(":")[2]
    fleet.trainer.kill()
    fleet.trainer = fleet.start_trainer("--port", port, "--feed-port", feed_port, "--journal", "off")
    lora = {"rank": 4, "train_attn": True, "train_mlp": True}
    body = {"run_id": trainer.run_id, "base_model": "farstep/tiny", "lora": lora, "seed": 8}
    key = {"Authorization": f"Bearer {KEY}"}
    httpx.post(fleet.trainer.url + paths.RUNS, json=body, headers=key).raise_for_status()
    again = service.resume_run(trainer.run_id)
    again.load_state_with_optimizer(state).result()
    assert again.policy_version <= 1
    train(again, 5)
    client = again.save_weights_and_get_sampling_client()
    assert client.policy_version == 4
    np.testing.assert_allclose(client.compute_logprobs(probe).result()[1:], trainer_logprobs(again, probe), atol=1e-5)
    assert last.compute_logprobs(probe).result() == third  # version 3 is what it was


@pytest.mark.parametrize("options", [(), ("--resident-versions", "1", "--resident-policies", "1")])
def test_a_directory_instead_of_a_feed(tmp_path, monkeypatch, options):
    """Trainer and sampler share a weight-sync URI and no store: new versions, old ones, what save_state publishes."""
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    uri = f"file://{tmp_path}/sync"
    model = ("--model", "farstep/tiny")
    polling = ("--weight-sync-uri", uri, "--weight-sync-interval", "0.1", *options)
    with (
        running("farstep_worker", *model, "--store", tmp_path / "a", "--weight-sync-uri", uri) as worker,
        running("farstep_sampler", *model, "--store", tmp_path / "b", *polling) as sampler,
        ServiceClient.local(trainer_url=worker.url, sampler_url=sampler.url) as service,
    ):
        trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=5)
        probe, expected, clients = [1, 40, 50, 60, 2], {}, {}
        for version in (1, 2, 3):
            train(trainer, version)
            clients[version] = trainer.save_weights_and_get_sampling_client(pin="exact")
            assert clients[version].policy_version == version
            expected[version] = trainer_logprobs(trainer, probe)
        for version in (2, 3, 1):
            logprobs = clients[version].compute_logprobs(probe).result(timeout=60)
            np.testing.assert_allclose(logprobs[1:], expected[version], atol=1e-5)
        train(trainer, 4)
        assert trainer.save_state("also-published").result().policy_version == trainer.policy_version == 4
        newest = trainer.save_weights_and_get_sampling_client()
        assert newest.policy_version == 5
