"""What the journal costs: the same steps and tiny operations on two workers, with a journal and without, in turn.

Both train the same weights on the same fresh batches and must agree on every loss to the bit. Figures are ratios and
differences of medians. The last line of output is one JSON object.

    python -m bench.journal [--model farstep/tiny|random-100m|FOLDER] [--threads N] [--steps N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import AutoConfig

from bench import remote
from bench.batches import draw_batch
from bench.child import Child
from bench.models import RANDOM_100M, model_folder
from bench.settings import RANK
from farstep import ServiceClient, TrainingClient
from farstep_model.embedded import MODEL_NAME

WARM_UP = 2
TINY_TURN = 20


@dataclass(frozen=True, slots=True)
class Plan:
    model: str
    threads: int
    num_sequences: int
    steps: int
    tiny_repeats: int


def main() -> None:
    plan = read_plan()
    with ExitStack() as stack:
        runs, vocab_size = start(plan, stack)
        figures = {**step_cost(plan, runs, vocab_size), **tiny_cost(plan, runs, vocab_size)}
    print(json.dumps({**{name: round(value, 4) for name, value in figures.items()}, "settings": asdict(plan)}))


def read_plan() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL_NAME, help=f"the embedded model, {RANDOM_100M}, or a folder")
    parser.add_argument("--threads", type=int, default=1, help="of each side's torch")
    parser.add_argument("--steps", type=int, help="of each side")
    parser.add_argument("--quick", action="store_true", help="few steps: tells that it works, not what it costs")
    flags = parser.parse_args()
    is_small = flags.model == MODEL_NAME
    steps = flags.steps or (3 if flags.quick else 25 if is_small else 8)
    repeats = TINY_TURN if flags.quick else 400 if is_small else 60
    return Plan(flags.model, flags.threads, 32 if is_small else 8, steps, repeats)


def start(plan: Plan, stack: ExitStack) -> tuple[dict[str, TrainingClient], int]:
    """A run on each worker, the same on both, and the size of their vocabulary."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = model_folder(plan.model, scratch=scratch)
    runs = {}
    for name, flags in (("journal", ()), ("none", ("--journal", "off"))):
        arguments = ("--model", folder, "--device", "cpu", "--exit-with-parent", "--store", scratch / name, *flags)
        worker = stack.enter_context(
            Child("farstep_worker", *arguments, num_threads=plan.threads, log=scratch / f"{name}.log")
        )
        url = worker.facts["url"]
        service = stack.enter_context(ServiceClient.local(trainer_url=url, sampler_url=url))
        runs[name] = service.create_lora_training_client(str(folder), rank=RANK, seed=0)
    return runs, AutoConfig.from_pretrained(folder).vocab_size


def step_cost(plan: Plan, runs: dict[str, TrainingClient], vocab_size: int) -> dict[str, float]:
    """Of a whole step; who goes first changes from step to step."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(WARM_UP + plan.steps):
        batch = draw_batch("mixed", seed=index, num_sequences=plan.num_sequences, vocab_size=vocab_size)
        data, losses = remote.to_data(batch), {}
        for name in sorted(runs, reverse=bool(index % 2)):
            step = remote.train_step([runs[name]], data)
            losses[name] = step.loss_sums
            if index >= WARM_UP:
                seconds[name].append(step.seconds)
        if losses["journal"] != losses["none"]:
            raise SystemExit(f"the two came to different losses: {losses}")
    with_it, without = statistics.median(seconds["journal"]), statistics.median(seconds["none"])
    pairs = [here / there for here, there in zip(seconds["journal"], seconds["none"], strict=True)]
    return {
        "step_ratio": with_it / without,
        "step_ratio_of_pairs": statistics.median(pairs),
        "step_ms": 1e3 * with_it,
        "step_ms_without": 1e3 * without,
    }


def tiny_cost(plan: Plan, runs: dict[str, TrainingClient], vocab_size: int) -> dict[str, float]:
    """Of one sequence of 8 tokens, from submission to outcome."""
    data = remote.to_data(draw_batch("tiny", seed=0, num_sequences=1, vocab_size=vocab_size))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(1, plan.tiny_repeats // TINY_TURN)):
        for name, run in runs.items():
            found[name] += remote.latencies(run, data, repeats=TINY_TURN)
    with_it, without = statistics.median(found["journal"]), statistics.median(found["none"])
    return {
        "tiny_op_added_ms": 1e3 * (with_it - without),
        "tiny_op_ms": 1e3 * with_it,
        "tiny_op_ms_without": 1e3 * without,
    }


if __name__ == "__main__":
    main()
