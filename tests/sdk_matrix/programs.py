"""The contract programs, run by an interpreter that has some version of the SDK against a server of ours."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "contract" / "tinker" / "programs"
NAMES = ("training", "sampling", "records")
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


def run_program(
    name: str, *, python: Path | str, environment: Mapping[str, str], folder: Path, features: tuple[str, ...] = ()
) -> Told:
    """Raises AssertionError where it did not come to its end."""
    done = subprocess.run(
        [str(python), str(PROGRAMS / f"{name}.py"), *features],
        env={**environment, "FARSTEP_TEST_MODEL": MODEL},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, f"{name}.py ended with {done.returncode}:\n{done.stderr[-6000:]}"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    reports = [Report(name, **line) for line in lines if "feature" in line]
    return Told(lines[0]["sdk"], tuple(reports))


def run_all(*, python: Path | str, environment: Mapping[str, str], folder: Path) -> Told:
    told = [run_program(name, python=python, environment=environment, folder=folder) for name in NAMES]
    return Told(told[0].sdk, tuple(report for each in told for report in each.reports))
