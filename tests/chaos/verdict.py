"""Whether a disturbed run is the undisturbed one: every call's outcome, every version, every sampled token, every file.

It reads diaries and the store, and knows nothing of what was done to whom.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.chaos.diary import Event, Known
from tests.chaos.programs import Program, Publish, Save, versions

_OWN = frozenset({"history", "operation"})  # names that no two runs have in common

Harm = Literal["bit_different", "lost", "doubled", "hung", "error", "left_behind", "memory"]


@dataclass(frozen=True, slots=True)
class Finding:
    harm: Harm
    text: str


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed execution: its diary, and what each of its checkpoints holds."""

    known: Known
    checkpoints: Mapping[int, Event]


def reference(program: Program, known: Known, store: Path) -> Reference:
    """Raises AssertionError where it is not whole itself."""
    assert not known.errors, known.errors
    assert known.end is not None
    assert len(known.results) == len(program.calls), "an undisturbed client did not finish its program"
    return Reference(known, dict(_checkpoints(program, known, store)))


def judge(program: Program, known: Known, wanted: Reference, store: Path) -> list[Finding]:
    if known.end is None:
        done = len(known.results)
        text = f"{done} of {len(program.calls)} calls have results; the last that was begun is {known.intended}"
        return [*(Finding("error", error) for error in known.errors), Finding("hung", text)]
    return [
        *(Finding("error", error) for error in known.errors),
        *_lost(program, known, wanted),
        *_doubled(program, known),
        *_different(program, known, wanted, store),
    ]


def _lost(program: Program, known: Known, wanted: Reference) -> Iterator[Finding]:
    for index in range(len(program.calls)):
        if index not in known.seqs:
            yield Finding("lost", f"call {index}: the server never took it")
        elif index not in known.results:
            yield Finding("lost", f"call {index}: no result, taken as {known.seqs[index]}")
    for index, number in wanted.known.samples:
        call = program.calls[index]
        assert isinstance(call, Publish)
        can_be = bool(call.name) or index in known.samplers  # else who had the client was killed
        if can_be and (index, number) not in known.samples:
            yield Finding("lost", f"call {index}: sample {number} never came")


def _doubled(program: Program, known: Known) -> Iterator[Finding]:
    for index, seqs in known.seqs.items():
        if len(set(seqs)) > 1 and not isinstance(program.calls[index], Save | Publish):
            yield Finding("doubled", f"call {index} was taken as {seqs}")
    taken = [seq for seqs in known.seqs.values() for seq in set(seqs)]
    if len(taken) != len(set(taken)):
        yield Finding("doubled", "one operation answers for two calls")
    for index, version in versions(program.calls).items():
        got = known.results.get(index, {}).get("version")
        if got is not None and got != version:
            yield Finding("doubled", f"call {index}: policy version {got} instead of {version}")


def _different(program: Program, known: Known, wanted: Reference, store: Path) -> Iterator[Finding]:
    for index, facts in sorted(known.results.items()):
        good = wanted.known.results[index]
        if _compared(facts) != _compared(good) and not {"cancelled"} & {*facts, *good}:
            yield Finding("bit_different", f"call {index} {program.calls[index]}: {facts} instead of {good}")
            break  # what comes after it follows from it
    for key, facts in sorted(known.samples.items()):
        if key in wanted.known.samples and facts != wanted.known.samples[key]:
            yield Finding("bit_different", f"sample {key}: {facts} instead of {wanted.known.samples[key]}")
    for index, content in _checkpoints(program, known, store):
        if content != wanted.checkpoints[index]:
            text = f"checkpoint of call {index}: {content} instead of {wanted.checkpoints[index]}"
            yield Finding("bit_different", text)
            break


def _compared(facts: Event) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "path"}


def _checkpoints(program: Program, known: Known, store: Path) -> Iterator[tuple[int, Event]]:
    """What each kept checkpoint holds: the hashes of its files, which every reader checks, and its counters."""
    for index, call in enumerate(program.calls):
        path = known.results.get(index, {}).get("path")
        if isinstance(call, Save | Publish) and path:
            run_id, kind, name = path.removeprefix("bt://loops:").split("/")
            manifest = json.loads((store / run_id / kind / name / "manifest.json").read_bytes())
            meta = {key: value for key, value in manifest["meta"].items() if key not in _OWN}
            yield index, {"files": {name: file["sha256"] for name, file in manifest["files"].items()}, "meta": meta}
