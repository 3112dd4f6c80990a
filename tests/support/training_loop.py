"""The loop of docs/recovery.md as a process of its own, to be killed, stopped and started again.

    python -m tests.support.training_loop TRAINER_URL SAMPLER_URL RUN_FILE NUM_STEPS [BUDGET_S]

It says each call that it makes, and each result that it finds, on standard output. BUDGET_S shortens every budget, and
makes a stop of more than a second a sleep.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import farstep
from farstep import AdamParams, Datum, ServiceClient, _awake, _retry

SEED = 3


def batch(step: int) -> list[Datum]:
    rng = random.Random(step)
    return [Datum.from_prompt_completion([1, 40, 41], [rng.randrange(3, 90) for _ in range(12)]) for _ in range(2)]


def open_run(service: ServiceClient, run_file: Path) -> farstep.TrainingClient:
    if run_file.exists():
        return service.resume_run(run_file.read_text())
    trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=SEED)
    run_file.write_text(trainer.run_id)
    return trainer


def train(trainer: farstep.TrainingClient, num_steps: int) -> str:
    for future in trainer.unfetched():
        future.result()
        print("found", future.seq, future.verb, flush=True)
    for call in range(trainer.next_seq - 1, 2 * num_steps):  # two calls a step
        if call % 2 == 0:
            future = trainer.forward_backward(batch(call // 2))
        else:
            future = trainer.optim_step(AdamParams(learning_rate=5e-3))
        print("call", future.seq, future.verb, flush=True)
        if call % 10 == 9:
            future.result()
    return trainer.save_state("end").result().path


def main(trainer_url: str, sampler_url: str, run_file: str, num_steps: str, budget_s: str = "") -> None:
    if budget_s:
        _awake.SLEPT_S = 1.0
        _retry.REQUEST_RETRY = _retry.POLL_RETRY = _retry.RetryPolicy(float(budget_s), max_delay_s=0.3)
    with (
        ServiceClient.local(trainer_url=trainer_url, sampler_url=sampler_url) as service,
        open_run(service, Path(run_file)) as trainer,
    ):
        print("end", train(trainer, int(num_steps)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
