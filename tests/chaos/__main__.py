"""`make chaos`: kills, and what became of the training. The last line of output is one JSON object."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.campaign import Campaign, Settings, Totals


def main(argv: Sequence[str] | None = None) -> int:
    """0 where nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kills servers while people train.")
    parser.add_argument("--kills", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=45.0, help="no new wave after that (default: %(default)s)")
    parser.add_argument("--wave", type=int, default=None, help="this one alone, on a new installation")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a program (default: %(default)s)")
    flags = parser.parse_args(argv)
    began_at = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="farstep-chaos-"))
    directory.chmod(0o755)  # PostgreSQL runs as a user of its own
    campaign = Campaign(
        Settings(
            flags.seed,
            flags.kills,
            flags.minutes,
            first_wave=flags.wave or 0,
            most_waves=1 if flags.wave is not None else 10_000,
            num_steps=flags.steps,
        ),
        directory,
    )
    totals = campaign.run()
    if not totals.findings:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(_summary(totals, seed=flags.seed, seconds=time.monotonic() - began_at)))
    return 1 if totals.findings else 0


def _summary(totals: Totals, *, seed: int, seconds: float) -> dict[str, object]:
    counts = totals.counts
    return {
        "kills": counts["kill"],
        **{harm: totals.harm(harm) for harm in ("bit_different", "lost", "doubled", "hung")},
        **{harm: totals.harm(harm) for harm in ("error", "left_behind", "memory")},
        "killed": dict(totals.killed),
        "pauses": counts["pause"],
        "network_faults": counts["network_faults"],
        "full_disks": counts["full_disk"],
        "refused_on_full_disk": counts["refused"],
        "database_restarts": counts["database"],
        "waves": totals.num_waves,
        "programs": totals.num_programs,
        "calls": totals.num_calls,
        "most_mib": {role: round(mib) for role, mib in totals.memory.most_mib.items()},
        "seconds": round(seconds),
        "seed": seed,
    }


if __name__ == "__main__":
    sys.exit(main())
