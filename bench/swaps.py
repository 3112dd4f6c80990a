"""A sampler under full load whose policy is replaced every second: what fails, what stalls, whose tokens they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from farstep import FarstepError, ModelInput, SamplingClient, SamplingParams, TrainingClient

_NUM_CALLERS = 8
_CHECKED = 4  # one response in so many is sampled again from exactly the version that it names


class _Load:
    """Callers that ask for samples one after the other until the time is up."""

    def __init__(self, client: SamplingClient, *, until: float) -> None:
        self._client = client
        self._until = until
        self._lock = threading.Lock()
        self.num_done = self.num_failed = self.num_checked = self.num_wrong = 0
        self.versions: set[int] = set()
        self.exact: dict[int, SamplingClient] = {}
        self.stalls_s: list[float] = []

    def call(self, caller: int) -> None:
        index = 0
        while time.perf_counter() < self._until:
            index += 1
            prompt = ModelInput.from_ints([3 + caller, *range(10, 10 + caller * 4)])
            params = SamplingParams(max_tokens=24 + 8 * caller, seed=index * _NUM_CALLERS + caller, ignore_eos=True)
            try:
                result = self._client.sample(prompt, 4, params).result()
                exact = self.exact.get(result.policy_version)
                if exact is not None and index % _CHECKED == 0:
                    again = exact.sample(prompt, 4, params).result()
                    is_right = [s.tokens for s in again.sequences] == [s.tokens for s in result.sequences]
                    with self._lock:
                        self.num_checked += 1
                        self.num_wrong += not is_right
            except FarstepError as error:
                with self._lock:
                    self.num_failed += 1
                print(f"failed: {error}", flush=True)
                continue
            with self._lock:
                self.num_done += 1
                self.versions.add(result.policy_version)

    def probe(self) -> None:
        """How long one token takes, over and over: an upper bound of how long running sequences wait for one."""
        params = SamplingParams(max_tokens=1, seed=0)
        while time.perf_counter() < self._until:
            started = time.perf_counter()
            self._client.sample(ModelInput.from_ints([5]), 1, params).result()
            self.stalls_s.append(time.perf_counter() - started)


def measure(trainer: TrainingClient, step: Callable[[], object], *, seconds: float) -> dict[str, float]:
    """Publishes once a second for that long, under the load of `_NUM_CALLERS` callers and a probe."""
    client = trainer.save_weights_and_get_sampling_client()
    load = _Load(client, until=time.perf_counter() + seconds)
    with ThreadPoolExecutor(_NUM_CALLERS + 1) as pool:
        callers = [pool.submit(load.call, caller) for caller in range(_NUM_CALLERS)] + [pool.submit(load.probe)]
        num_swaps = 0
        while time.perf_counter() < load._until:
            due = time.perf_counter() + 1.0
            step()
            exact = trainer.save_weights_and_get_sampling_client(pin="exact")
            load.exact = {trainer.policy_version: exact, **dict(list(load.exact.items())[:3])}
            num_swaps += 1
            time.sleep(max(0.0, due - time.perf_counter()))
        for caller in callers:
            caller.result()
    stalls = sorted(load.stalls_s)
    return {
        "swap_failed_requests": load.num_failed,
        "swap_max_stall_ms": 1e3 * stalls[-1],
        "swap_median_probe_ms": 1e3 * stalls[len(stalls) // 2],
        "swap_wrong_versions": load.num_wrong,
        "swap_checked_requests": load.num_checked,
        "swap_requests": load.num_done,
        "swap_versions_seen": len(load.versions),
        "swaps": num_swaps,
    }
