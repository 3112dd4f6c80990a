"""The suite as a whole: waves of programs on long-lived installations, each wave with a row of faults of its own.

A wave: several programs at once, disturbed until its faults are spent, then left in peace to end; then the verdict.
Every program was executed once undisturbed before, on the same machine. What fails is kept, with the command that
repeats the wave.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import census, schedule, verdict
from tests.chaos.events import Events, Tree
from tests.chaos.injector import Injector
from tests.chaos.memory import Memory
from tests.chaos.room import Room
from tests.chaos.schedule import Fault
from tests.chaos.stack import Stack
from tests.chaos.trainees import Supervised
from tests.chaos.verdict import Finding, Reference
from tests.support import postgres
from tests.support.faulty_proxy import FaultyProxy
from tests.support.network_faults import FaultPlan

NETWORK_FAULT_RATE = 0.01
REFERENCE_S = 180.0
SETTLE_S = 240.0  # after the last fault


@dataclass(frozen=True, slots=True)
class Settings:
    """`num_kills` and `minutes` end the suite, whichever comes first, after the wave that is under way.

    Args:
        programs: seeds of those that each wave draws `at_once` from.
        waves_per_home: then there is a new installation, which is disturbed at its first start already.
        faults: of each wave, instead of what the seed gives.
    """

    seed: int
    num_kills: int
    minutes: float
    first_wave: int = 0
    most_waves: int = 10_000
    programs: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    at_once: int = 3
    num_steps: int = 60
    kills_per_wave: int = 10
    waves_per_home: int = 5
    replicas: int = 2
    with_postgres: bool = True
    faults: tuple[Fault, ...] = ()


@dataclass(slots=True)
class Totals:
    counts: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, Finding]] = field(default_factory=list)
    num_waves: int = 0
    num_programs: int = 0
    num_calls: int = 0
    memory: Memory = field(default_factory=Memory)

    def harm(self, kind: str) -> int:
        return sum(finding.harm == kind for _, finding in self.findings)


class Campaign:
    """Args:
    directory: of homes, diaries and logs.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self._references: dict[int, Reference] = {}
        self._began_at = time.monotonic()
        self.totals = Totals()

    def run(self) -> Totals:
        wave = self._settings.first_wave
        end = wave + self._settings.most_waves
        while wave < end and not self._is_enough():
            last = min(end, (wave // self._settings.waves_per_home + 1) * self._settings.waves_per_home)
            wave = self._on_one_installation(wave, last)
        self._find(wave - 1, [Finding("memory", text) for text in self.totals.memory.grown()])
        return self.totals

    def _is_enough(self) -> bool:
        elapsed_s = time.monotonic() - self._began_at
        return self.totals.counts["kill"] >= self._settings.num_kills or elapsed_s > 60.0 * self._settings.minutes

    def _on_one_installation(self, wave: int, last: int) -> int:
        """The number of the next wave."""
        house = self._house(wave)
        num_findings = len(self.totals.findings)
        try:
            house.stack.start()
            if wave and wave % self._settings.waves_per_home == 0:
                self._disturb_first_start(house, wave)
            house.stack.wait_ready()
            self._learn_references(house)
            while wave < last and not self._is_enough():
                wave += 1
                if not self._wave(house, wave - 1):
                    break
        finally:
            ports = census.ports(house.stack.mark)
            ended_at = time.time()
            house.stack.stop()
            left = census.left_behind(house.stack.mark, ports, house.stack.scratch, ended_at=ended_at)
            self._find(wave - 1, [Finding("left_behind", text) for text in left])
            census.end_all(house.stack.mark)
            house.close(keep=len(self.totals.findings) > num_findings)
        return wave

    def _house(self, wave: int) -> _House:
        """Every second one keeps its records in PostgreSQL, where that is installed."""
        number = wave // self._settings.waves_per_home
        wants_postgres = self._settings.with_postgres and number % 2 == 1 and postgres.binary("initdb") is not None
        database = _database(self._directory / f"postgres-{wave}") if wants_postgres else None
        return _House(self._directory / f"home-{wave}", replicas=self._settings.replicas, database=database)

    def _disturb_first_start(self, house: _House, wave: int) -> None:
        injector = Injector(house.stack, [], house.events, FaultPlan(), None, house.database, log=self._log)
        for kill in schedule.first_start(self._settings.seed, wave):
            injector.perform(kill)
        self._add(injector)

    def _learn_references(self, house: _House) -> None:
        missing = [seed for seed in self._settings.programs if seed not in self._references]
        for start in range(0, len(missing), self._settings.at_once):
            seeds = missing[start : start + self._settings.at_once]
            trainees = [self._trainee(house, f"reference-{seed}", seed).start() for seed in seeds]
            for seed, trainee in zip(seeds, trainees, strict=True):
                if not trainee.join(REFERENCE_S):
                    raise RuntimeError(f"undisturbed program {seed} does not end; see {trainee.log_path}")
                known = trainee.known()
                self._references[seed] = verdict.reference(trainee.program, known, house.store)

    def _wave(self, house: _House, wave: int) -> bool:
        """Whether the installation is good for another."""
        settings = self._settings
        draw = random.Random(f"wave {settings.seed} {wave}")
        seeds = draw.sample(settings.programs, settings.at_once)
        plan = FaultPlan.everything(NETWORK_FAULT_RATE, seed=draw.randrange(1 << 30))
        house.proxy.plan = plan
        trainees = [self._trainee(house, f"wave-{wave}-program-{seed}", seed).start() for seed in seeds]
        self._log(f"wave {wave}: programs {seeds}")
        injector = Injector(house.stack, trainees, house.events, plan, house.room, house.database, log=self._log)
        with_disk, with_database = house.room is not None, house.database is not None
        drawn = schedule.faults(settings.seed, wave, with_disk=with_disk, with_database=with_database)
        for fault in settings.faults or drawn:
            if injector.counts["kill"] >= settings.kills_per_wave or all(each.is_over() for each in trainees):
                break
            injector.perform(fault)
            self.totals.memory.look(house.stack.processes())
        plan.stop()
        self.totals.counts["network_faults"] += plan.num_faults
        injector.finish()
        self._add(injector)
        return self._judge(house, wave, seeds, trainees)

    def _judge(self, house: _House, wave: int, seeds: Sequence[int], trainees: Sequence[Supervised]) -> bool:
        deadline = time.monotonic() + SETTLE_S
        are_over = [trainee.join(max(0.0, deadline - time.monotonic())) for trainee in trainees]
        if not all(are_over):
            house.stack.let_go()
            census.dump_stacks(house.stack.mark)
        for seed, trainee in zip(seeds, trainees, strict=True):
            trainee.give_up()
            found = verdict.judge(trainee.program, trainee.known(), self._references[seed], house.store)
            self._find(wave, [Finding(each.harm, f"{trainee.name}: {each.text}") for each in found])
            self.totals.num_calls += len(trainee.program.calls)
        self.totals.num_programs += len(seeds)
        self.totals.num_waves += 1
        return all(are_over)

    def _trainee(self, house: _House, name: str, seed: int) -> Supervised:
        environment = house.client_environment()
        return Supervised(
            name, seed, num_steps=self._settings.num_steps, directory=self._directory, environment=environment,
            events=house.events,
        )  # fmt: skip

    def _add(self, injector: Injector) -> None:
        self.totals.counts += injector.counts
        self.totals.killed += injector.killed

    def _find(self, wave: int, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self._log(f"FOUND {finding.harm}: {finding.text}")
            self.totals.findings.append((wave, finding))
        if findings:
            arguments = f"--seed {self._settings.seed} --wave {wave}"
            self._log(f'kept in {self._directory}; again by: make chaos ARGS="{arguments}"')

    def _log(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_at:7.1f} s  {text}", flush=True)


def _database(directory: Path) -> postgres.Cluster:
    directory.mkdir()
    return postgres.Cluster(directory)


class _House:
    """A home with its installation, and what stands between it and its clients."""

    def __init__(self, home: Path, *, replicas: int, database: postgres.Cluster | None) -> None:
        self.room = Room.mounted(home)
        self.database = database
        arguments = (f"--database={database.database()}",) if database is not None else ()
        self.stack = Stack(home, replicas=replicas, arguments=arguments)
        self.store = home / "store"
        self.events = Events()
        self.proxy = FaultyProxy("").start()
        Tree(home, self.events)

    def client_environment(self) -> dict[str, Any]:
        own = {"FARSTEP_BASE_URL": self.stack.url, "FARSTEP_API_KEY": self.stack.key, "http_proxy": self.proxy.url}
        return self.stack.environment() | own

    def close(self, *, keep: bool) -> None:
        self.proxy.stop()
        if self.database is not None:
            self.database.stop()
        if self.room is not None and not keep:
            self.room.unmount()
