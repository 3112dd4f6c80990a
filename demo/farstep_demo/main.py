"""The command: starts the three processes, runs both loops on them, reports, and leaves nothing running."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

from rich.console import Console

from farstep import ServiceClient
from farstep.cli.local_stack import LocalStack, LocalStackError, default_home
from farstep_demo import loop, tasks
from farstep_demo.report import LiveTable, Summary, print_summary, save_plot

NUM_HELDOUT_PARAGRAPHS = 48
NUM_HELDOUT_PROBLEMS = 200


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    console = Console()
    home = arguments.home or default_home() / "demos" / time.strftime("%Y%m%d-%H%M%S")
    started = time.perf_counter()
    os.environ["FARSTEP_PROGRESS"] = "0"  # the table is the progress
    try:
        with contextlib.ExitStack() as stopping:
            with console.status("starting control plane, dp_worker and sampler …"):
                local = LocalStack(model=arguments.model, device=arguments.device, home=home)
                stack = stopping.enter_context(local)
            console.print(f"control plane, dp_worker and sampler run at {stack.base_url}, home {home}")
            return _run(stack, console, arguments, home, started)
    except LocalStackError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


def _run(stack: LocalStack, console: Console, arguments: argparse.Namespace, home: Path, started: float) -> int:
    with ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as service:
        summary, rows = run(service, console, arguments, home=home, started=started)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(summary.to_json(rows), indent=2) + "\n")
    plot = arguments.plot or home / "demo.png"
    save_plot(plot, rows, summary)
    print_summary(console, summary, plot=plot)
    return 0


def run(
    service: ServiceClient, console: Console, arguments: argparse.Namespace, *, home: Path, started: float
) -> tuple[Summary, list[loop.Row]]:
    """Both loops on a new run; what came of them, in numbers and step by step."""
    rows: list[loop.Row] = []
    trainer = service.create_lora_training_client(
        arguments.model, rank=arguments.rank, alpha=2 * arguments.rank, seed=arguments.seed
    )
    tokenizer = trainer.get_tokenizer()
    tune, test = tasks.prose(tokenizer, seed=arguments.seed)
    practice, heldout = tasks.problems(seed=arguments.seed)
    test, heldout = test[:NUM_HELDOUT_PARAGRAPHS], heldout[:NUM_HELDOUT_PROBLEMS]

    with console.status("measuring the base model …"):
        loss_before = loop.heldout_loss(trainer, test)
        reward_before, first_version = loop.heldout_reward(trainer, tokenizer, heldout)
    with LiveTable(console) as table:
        for row in loop.supervised(trainer, tune, num_steps=arguments.sft_steps):
            rows.append(row)
            table.add(row)
        loss_after = loop.heldout_loss(trainer, test)
        for row in loop.reinforce(trainer, tokenizer, practice, num_steps=arguments.rl_steps):
            rows.append(row)
            table.add(row)
    with console.status("measuring the trained policy …"):
        reward_after, last_version = loop.heldout_reward(trainer, tokenizer, heldout)
    path = trainer.save_state("demo").result().path

    served = {first_version, last_version} | {row.policy_version for row in rows if row.policy_version is not None}
    summary = Summary(
        reward_before=reward_before,
        reward_after=reward_after,
        heldout_loss_before=loss_before,
        heldout_loss_after=loss_after,
        policy_versions=sorted(served),
        wall_s=time.perf_counter() - started,
        train_tokens_per_s=_rate([row.train_tokens for row in rows], [row.train_s for row in rows]),
        sample_tokens_per_s=_rate([row.sample_tokens for row in rows], [row.sample_s for row in rows]),
        checkpoint=path,
        checkpoint_dir=str(home / "store" / trainer.run_id / "weights" / "demo"),
        base_model=arguments.model,
    )
    return summary, rows


def _rate(counts: list[int], seconds: list[float]) -> float:
    return sum(counts) / (sum(seconds) or 1.0)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="farstep demo",
        description="The whole way once: supervised steps on real text, then reinforcement learning on arithmetic, "
        "on a control plane, a dp_worker and a sampler that are started for it and stopped after it.",
    )
    parser.add_argument("--model", default="farstep/tiny", help="model id or directory (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sft-steps", type=int, default=loop.SFT_STEPS, metavar="N")
    parser.add_argument("--rl-steps", type=int, default=loop.RL_STEPS, metavar="N")
    parser.add_argument("--home", type=Path, help="where state, logs and checkpoint go (default: a new folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the plot here (default: in the home)")
    return parser.parse_args(argv)
