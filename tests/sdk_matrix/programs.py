"""The contract programs, run by an interpreter that has some version of the SDK against a server of ours."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "contract" / "tinker" / "programs"
MODEL = "Qwen/Qwen3-8B"
SERVED_NAMES = (MODEL, "Qwen/Qwen3-8B-Base")
_WITHIN_S = 900


@dataclass(frozen=True)
class Report:
    """What one version of the SDK makes of one feature: `outcome` is "works", "absent" (of the SDK) or "fails"."""

    program: str
    feature: str
    since: str
    outcome: str
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class Told:
    """All that one version of the SDK tells."""

    sdk: str
    reports: tuple[Report, ...]

    def failures(self) -> list[Report]:
        return [report for report in self.reports if report.outcome == "fails"]


def run_programs(
    *, python: Path | str, environment: Mapping[str, str], folder: Path, features: tuple[str, ...] = ()
) -> Told:
    """All of them in one process, or some of their features by name.

    Raises:
        AssertionError: it did not come to its end.
    """
    done = subprocess.run(
        [str(python), str(PROGRAMS / "everything.py"), *features],
        env={**environment, "FARSTEP_TEST_MODEL": MODEL},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, f"the programs ended with {done.returncode}:\n{done.stderr[-6000:]}"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    reports = [Report(**line) for line in lines if "feature" in line]
    return Told(lines[0]["sdk"], tuple(reports))
