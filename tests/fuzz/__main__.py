"""`make fuzz`: the whole of it, against a trainer, a sampler, a router and a control plane; the last line is JSON.

The control plane's trainers and samplers are fakes, since what they do is not tested through it; all else is real.
Exit status 1: something answered 5xx, died, leaked, contradicted its document, or gave other numbers than before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.fuzz.by_schema import attack_by_schema
from tests.fuzz.campaign import Report, Target, attack
from tests.fuzz.feed import attack_feed
from tests.fuzz.probe import numbers_of
from tests.fuzz.targets import IDS, control_plane
from tests.support.processes import KEY, Server, running, trainer_and_sampler
from tests.unit.infra.conftest import start_up

# A process that has done so much grows a little: allocators keep what they had, and servers remember what they promise
# to (4,096 outcomes, 32 MiB of them at most; deleted runs; 64 grammars). Beyond this it is a leak.
MOST_MIB = 64.0
MOST_MORE = 12  # files and threads: idle connections, and pools that grow to their size
_SHARES = {"trainer": 0.3, "sampler": 0.3, "router": 0.15, "control plane": 0.25}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=60, help="Schemathesis's, for each operation")
    parser.add_argument("--feed-calls", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=4, help="how many servers are attacked at a time")
    flags = parser.parse_args()
    os.environ["FARSTEP_API_KEY"] = KEY
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and with it, the servers
    started = time.monotonic()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as home:
        trainer, sampler = stack.enter_context(trainer_and_sampler(Path(home, "store")))
        router = stack.enter_context(running("farstep_sampler.router", "--replica", sampler.url))
        up = start_up(Path(home, "home"), "--model=fake/one")
        stack.callback(up.stop)
        servers = {"trainer": trainer, "sampler": sampler, "router": router}
        targets = [Target(name, server.url, server.process.pid, KEY, IDS) for name, server in servers.items()]
        targets.append(control_plane(up))
        summary = _attack_all(flags, targets, trainer, sampler)
        alive = [each.process.poll() is None for each in servers.values()] + [up.process.poll() is None]
        summary["crashes"] = alive.count(False)
        for name, server in servers.items():
            _print(f"{name}: {sum('Traceback' in line for line in server.log)} tracebacks in its log")
    summary["minutes"] = round((time.monotonic() - started) / 60, 1)
    is_good = not any(summary[name] for name in ("server_errors", "crashes", "complaints", "dropped"))
    is_good = is_good and summary["leaked_mib"] <= MOST_MIB and summary["same_numbers"]
    is_good = is_good and max(summary["leaked_fds"], summary["leaked_threads"]) <= MOST_MORE
    _print(json.dumps(summary))
    return 0 if is_good else 1


def _attack_all(flags: argparse.Namespace, targets: list[Target], trainer: Server, sampler: Server) -> dict[str, Any]:
    before = numbers_of(trainer.url, sampler.url)
    total: dict[str, Any] = dict.fromkeys(("requests", "server_errors", "unavailable", "complaints", "dropped"), 0)
    leaks: dict[str, float] = {"leaked_mib": 0.0, "leaked_fds": 0, "leaked_threads": 0}
    with ProcessPoolExecutor(flags.processes) as pool:
        shares = {target.name: int(flags.requests * _SHARES[target.name]) for target in targets}
        jobs = {target.name: pool.submit(_attack, target, shares[target.name], flags.seed) for target in targets}
        for name, job in jobs.items():
            report = job.result()
            _tell(name, report)
            found = report.findings
            total["requests"] += found.requests
            total["server_errors"] += found.server_errors
            total["unavailable"] += found.unavailable
            total["complaints"] += len(found.complaints)
            total["dropped"] += len(found.dropped)
            leaks["leaked_mib"] = max(leaks["leaked_mib"], round(report.leaked_mib, 1))
            leaks["leaked_fds"] = max(leaks["leaked_fds"], report.after.num_fds - report.before.num_fds)
            leaks["leaked_threads"] = max(leaks["leaked_threads"], report.after.num_threads - report.before.num_threads)
        for target in targets:
            sent, failures = attack_by_schema(target, examples=flags.examples, number=flags.seed)
            _print(f"{target.name}: {sent} requests of Schemathesis, {len(failures)} operations fail")
            for failure in failures:
                _print(f"  {failure}")
            total["requests"] += sent
            total["complaints"] += len(failures)
    calls = attack_feed(trainer.facts["feed"], key=KEY, num_calls=flags.feed_calls, seed=flags.seed)
    ends, complaints = asyncio.run(calls)
    _print(f"feed: {dict(ends)}")
    total["requests"] += sum(ends.values())
    total["complaints"] += len(complaints)
    return {**total, **leaks, "same_numbers": numbers_of(trainer.url, sampler.url) == before}


def _attack(target: Target, num_requests: int, seed: int) -> Report:
    """Of them, the first quarter warms the server up."""
    warm_up = num_requests // 4
    return asyncio.run(attack(target, num_requests=num_requests - warm_up, seed=seed, warm_up=warm_up))


def _tell(name: str, report: Report) -> None:
    found = report.findings
    _print(f"{name}: {found.requests} requests, {dict(sorted(found.statuses.items()))}")
    _print(f"  before {report.before}, after {report.after}; {found.refused_by_client} could not be sent")
    for complaint in (*found.complaints, *found.dropped[:10]):
        _print(f"  {complaint[:1000]}")


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
