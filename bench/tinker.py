"""How fast the gateway is: the unmodified `tinker` SDK and our own take turns on one server, at the same work.

Each side has runs of its own, made alike; they must agree on every loss. Figures are medians and ratios of medians:
our seconds over those of `tinker`. The last line of output is one JSON object.

    python -m bench.tinker [--model farstep/tiny|FOLDER] [--threads N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tinker

import farstep
from bench.batches import Sequence as Tokens
from bench.batches import draw_batch
from bench.models import model_folder
from bench.settings import RANK
from farstep.cli.local_stack import LocalStack

LOSS_TOLERANCE = 1e-6  # relative: both sides' numbers are the same server's
NUM_CLIENTS = 4
_ADAM = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0}


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each thing is done by each side; the first turn of each is not counted."""

    model: str
    threads: int
    turns: int = 9
    tiny_pairs: int = 40
    large_turns: int = 5
    publications: int = 15
    num_sequences: int = 32
    sequence_tokens: int = 256
    num_prompts: int = 16
    num_samples: int = 4
    num_tokens: int = 64


class Side:
    """One SDK with its runs. Both have clients of the same shape, so that the same code drives them."""

    def __init__(self, name: str, sdk: Any, clients: Sequence[Any], *, endless: dict[str, Any]) -> None:
        self.name = name
        self._endless = endless  # the sampling parameters by which nothing ends before its time
        self.clients = clients
        self._sdk = sdk
        self._adam = sdk.AdamParams(**_ADAM)

    def to_data(self, batch: Sequence[Tokens]) -> list[Any]:
        """The same tensors on both sides: they have their bytes ready."""
        return [
            self._sdk.Datum(
                model_input=self._sdk.ModelInput.from_ints(np.asarray(tokens[:-1]).tolist()),
                loss_fn_inputs={
                    "target_tokens": self._sdk.TensorData.from_numpy(np.array(tokens[1:], dtype=np.int64)),
                    "weights": self._sdk.TensorData.from_numpy(np.ones(len(tokens) - 1, dtype=np.float32)),
                },
            )
            for tokens in batch
        ]

    def pair(self, client: Any, data: list[Any]) -> float:
        """A pass, waited for, and a step, waited for; its loss."""
        output = client.forward_backward(data, "cross_entropy").result()
        client.optim_step(self._adam).result()
        return float(output.metrics["loss:sum"])

    def pipelined(self, clients: Sequence[Any], data: list[Any], *, num_pairs: int) -> list[float]:
        """All pairs of all clients submitted before any is waited for; the losses."""
        pairs = [
            (client.forward_backward(data, "cross_entropy"), client.optim_step(self._adam))
            for _ in range(num_pairs)
            for client in clients
        ]
        losses = [float(passed.result().metrics["loss:sum"]) for passed, _ in pairs]
        for _, stepped in pairs:
            stepped.result()
        return losses

    def first_token(self, client: Any) -> None:
        """New weights saved without a name, and one token of them."""
        sampler = _made(client.save_weights_and_get_sampling_client())
        params = self._sdk.SamplingParams(max_tokens=1, seed=0)
        sampler.sample(self._sdk.ModelInput.from_ints([5, 6, 7]), 1, params).result()

    def sampler(self, client: Any) -> Any:
        return _made(client.save_weights_and_get_sampling_client())

    def sample(self, sampler: Any, prompts: Sequence[Tokens], plan: Plan) -> list[int]:
        """The lengths of what came, which nothing stops before its time."""
        params = self._sdk.SamplingParams(max_tokens=plan.num_tokens, **self._endless)
        futures = [
            sampler.sample(self._sdk.ModelInput.from_ints(prompt), plan.num_samples, params) for prompt in prompts
        ]
        return [len(sequence.tokens) for future in futures for sequence in future.result().sequences]


@dataclass(slots=True)
class Bench:
    plan: Plan
    vocab_size: int
    sides: Sequence[Side]
    seed: int = 0

    def tiny_latency(self) -> dict[str, float]:
        """Milliseconds of a pass over 8 tokens and a step, each waited for; and a pair of many submitted at once."""
        batch, plan = draw_batch("tiny", seed=0, num_sequences=1, vocab_size=self.vocab_size), self.plan
        data = {side.name: side.to_data(batch) for side in self.sides}

        def one_by_one(side: Side) -> list[float]:
            return [side.pair(side.clients[0], data[side.name]) for _ in range(plan.tiny_pairs)]

        def at_once(side: Side) -> list[float]:
            return side.pipelined(side.clients[:1], data[side.name], num_pairs=plan.tiny_pairs)

        alone = self._in_turn(one_by_one, turns=plan.turns)
        together = self._in_turn(at_once, turns=plan.turns)
        return {
            **self._figures("tiny_pair_ms", alone, 1e3 / plan.tiny_pairs),
            **self._figures("tiny_pipelined_pair_ms", together, 1e3 / plan.tiny_pairs),
        }

    def large_steps(self) -> dict[str, float]:
        """Seconds of a pass over 32 sequences of 256 tokens and a step, submitted together."""
        plan = self.plan

        def step(side: Side) -> list[float]:
            rng = np.random.default_rng(self.seed)
            batch = rng.integers(3, self.vocab_size, (plan.num_sequences, plan.sequence_tokens + 1)).tolist()
            return side.pipelined(side.clients[:1], side.to_data(batch), num_pairs=1)

        found = self._in_turn(step, turns=plan.large_turns)
        tokens = plan.num_sequences * plan.sequence_tokens
        return {
            **self._figures("step_32x256_s", found, 1.0),
            **{f"{name}_train_tokens_per_s": tokens / seconds for name, seconds in found.items()},
        }

    def first_token(self) -> dict[str, float]:
        """From saving weights to the first token of them."""
        batch = draw_batch("tiny", seed=0, num_sequences=1, vocab_size=self.vocab_size)
        data = {side.name: side.to_data(batch) for side in self.sides}

        def prepare(side: Side) -> None:
            side.pair(side.clients[0], data[side.name])

        found = self._in_turn(
            lambda side: side.first_token(side.clients[0]), turns=self.plan.publications, before=prepare
        )
        return self._figures("save_to_first_token_ms", found, 1e3)

    def sampling(self) -> dict[str, float]:
        """16 prompts × 4 samples × 64 tokens; no prompt comes twice."""
        plan = self.plan
        samplers = {side.name: side.sampler(side.clients[0]) for side in self.sides}

        def sample(side: Side) -> None:
            rng = np.random.default_rng([self.seed, len(side.name)])
            prompts = [rng.integers(3, self.vocab_size, n).tolist() for n in rng.integers(16, 49, plan.num_prompts)]
            lengths = side.sample(samplers[side.name], prompts, plan)
            if lengths != [plan.num_tokens] * (plan.num_prompts * plan.num_samples):
                raise SystemExit(f"{side.name}: a sequence ended early, or is missing")

        found = self._in_turn(sample, turns=plan.turns)
        tokens = plan.num_prompts * plan.num_samples * plan.num_tokens
        return {
            **self._figures("sample_16x4x64_s", found, 1.0),
            **{f"{name}_sampled_tokens_per_s": tokens / seconds for name, seconds in found.items()},
        }

    def four_clients(self) -> dict[str, float]:
        """Four clients with a run each, all with ten tiny pairs under way at once."""
        batch = draw_batch("tiny", seed=0, num_sequences=1, vocab_size=self.vocab_size)
        data = {side.name: side.to_data(batch) for side in self.sides}
        found = self._in_turn(
            lambda side: side.pipelined(side.clients, data[side.name], num_pairs=10), turns=self.plan.turns
        )
        return self._figures("four_clients_pair_ms", found, 1e3 / (10 * NUM_CLIENTS))

    def _in_turn(
        self,
        work: Callable[[Side], list[float] | None],
        *,
        turns: int,
        before: Callable[[Side], None] = lambda side: None,
    ) -> dict[str, float]:
        """Median seconds of each side; who begins changes with every turn."""
        seconds: dict[str, list[float]] = {side.name: [] for side in self.sides}
        for turn in range(1 + turns):
            self.seed += 1
            losses = {}
            for side in self.sides if turn % 2 else self.sides[::-1]:
                before(side)
                started = time.perf_counter()
                losses[side.name] = work(side)
                seconds[side.name].append(time.perf_counter() - started)
            _check_alike(losses)
        return {name: statistics.median(found[1:]) for name, found in seconds.items()}

    def _figures(self, what: str, seconds: dict[str, float], scale: float) -> dict[str, float]:
        ours, theirs = (seconds[side.name] for side in self.sides)
        return {f"{what}_farstep_over_tinker": ours / theirs, **{f"{k}_{what}": scale * v for k, v in seconds.items()}}


def _made(client: Any) -> Any:
    return client.result() if isinstance(client, tinker.APIFuture) else client


def _check_alike(losses: dict[str, list[float] | None]) -> None:
    ours, theirs = losses.values()
    for one, other in zip(ours or (), theirs or (), strict=True):
        if not math.isclose(one, other, rel_tol=LOSS_TOLERANCE):
            raise SystemExit(f"the sides disagree about a loss: {losses}")


def main(arguments: Sequence[str] | None = None) -> None:
    plan = read_plan(arguments)
    with ExitStack() as stack:
        bench = start(plan, stack)
        figures: dict[str, float] = {}
        for measure in (bench.tiny_latency, bench.large_steps, bench.first_token, bench.sampling, bench.four_clients):
            found = measure()
            print(*(f"{name} {value:.4g}" for name, value in found.items()), sep="  ", flush=True)
            figures |= found
    settings = {**asdict(plan), "tinker": tinker.__version__}
    print(json.dumps({**{name: round(value, 4) for name, value in figures.items()}, "settings": settings}))


def read_plan(arguments: Sequence[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="farstep/tiny", help="the embedded model, or a folder")
    parser.add_argument("--threads", type=int, default=1, help="of each server's torch")
    parser.add_argument("--quick", action="store_true", help="few turns: tells that it works, not how fast it is")
    flags = parser.parse_args(arguments)
    plan = Plan(flags.model, flags.threads)
    return replace(plan, turns=2, tiny_pairs=5, large_turns=1, publications=2) if flags.quick else plan


def start(plan: Plan, stack: ExitStack) -> Bench:
    """One installation; `tinker` makes all runs, from one seed, and `farstep` takes half of them over."""
    os.environ |= {"OMP_NUM_THREADS": str(plan.threads), "OMP_WAIT_POLICY": "PASSIVE", "TINKER_TELEMETRY": "0"}
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = model_folder(plan.model, scratch=scratch)
    here = stack.enter_context(LocalStack(model=str(folder), home=scratch / "home", more=["--served-name=bench"]))
    theirs, ours = {"base_url": here.base_url, "api_key": f"tml-{here.api_key}"}, {"base_url": here.base_url}
    services = [stack.enter_context(tinker.ServiceClient(**theirs)) for _ in range(NUM_CLIENTS)]

    def make(service: Any) -> Any:
        return _made(service.create_lora_training_client("bench", rank=RANK, seed=0))

    runs = [make(service) for service in services]
    taken = [
        stack.enter_context(farstep.ServiceClient(**ours, api_key=here.api_key)).resume_run(make(service).model_id)
        for service in services
    ]
    return Bench(
        plan=plan,
        vocab_size=taken[0].get_info().vocab_size,
        sides=[
            Side("farstep", farstep, taken, endless={"ignore_eos": True}),
            Side("tinker", tinker, runs, endless={"stop": []}),
        ],
    )


if __name__ == "__main__":
    main()
