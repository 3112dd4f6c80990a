"""Checkpoint engines: what is kept of a run, when, and for how long.

`state` keeps what a run goes on from: weights, Adam moments, random streams on the server, and in the same checkpoint,
atomically, where the trainer stands. `export` puts an adapter (`peft`) or a whole model (`merged`) on this machine.
The label is the number of optimizer steps that are done; an engine saves a step once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from farstep.errors import FarstepError, NotFoundError
from farstep.trainers.errors import TrainerError
from farstep.trainers.registry import Registered

if TYPE_CHECKING:
    from farstep.service import ServiceClient
    from farstep.trainers.config import CheckpointConfig
    from farstep.training import TrainingClient

log = logging.getLogger("farstep")

STATE_KEY = "farstep.trainer"
STEPPING_STONE_S = 24 * 3600


@dataclass(slots=True)
class Moment:
    """A step after which something is saved.

    Args:
        state: the trainer's, as JSON can hold it.
        folder: the run's, here.
        score: how good this step is, more is better; None where nobody knows.
        engines: all of the run's: what one of them keeps is no other's to remove.
        path: of this step's training checkpoint, once there is one: several engines share it.
        lasts_s: how long that is kept.
    """

    step: int
    state: Mapping[str, Any]
    client: TrainingClient
    service: ServiceClient | None
    folder: Path
    score: float | None = None
    engines: Sequence[CheckpointEngine] = ()
    path: str = ""
    lasts_s: float = 0.0

    def __post_init__(self) -> None:
        """Another engine may have saved this very step before."""
        for engine in self.engines:
            for saved in engine.kept:
                if isinstance(engine, StateEngine) and saved.step == self.step:
                    self.path, self.lasts_s = saved.place, max(self.lasts_s, _lasting(engine.config.ttl_seconds))

    @property
    def label(self) -> str:
        return f"step-{self.step:06d}"

    def save_state(self, ttl_seconds: int | None) -> str:
        """Its path; saved once, and again only where it is to be kept longer than it is."""
        if not self.path or self.lasts_s < _lasting(ttl_seconds):
            metadata = {STATE_KEY: json.dumps(self.state)}
            saved = self.client.save_state(self.label, metadata=metadata, ttl_seconds=ttl_seconds, overwrite=True)
            self.path, self.lasts_s = saved.result().path, _lasting(ttl_seconds)
        return self.path


@dataclass(frozen=True, slots=True)
class Saved:
    """`place`: a path of the server's store, or a folder of this machine."""

    step: int
    place: str
    score: float | None = None


class CheckpointEngine(Registered):
    """One of your own has a `name` and says `write` and `remove`."""

    entry_point_group = "farstep.checkpoint_engines"

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config
        self.kept: list[Saved] = []
        self._last_step: int | None = None

    def has_saved(self, step: int) -> bool:
        return step == self._last_step

    def is_due(self, *, before: int, step: int, epochs_done: int | None = None) -> bool:
        """Whether to save after optimizer steps `before + 1 … step`, or at the end of an epoch (`epochs_done`)."""
        if not self.config.enabled or self.has_saved(step):
            return False
        if epochs_done is not None:
            every = self.config.save_every_n_epochs
            return bool(every) and epochs_done % every == 0
        every = self.config.save_every_n_steps
        return bool(every) and step // every > before // every

    def is_due_at_end(self, *, step: int, is_early: bool) -> bool:
        """`is_early`: the run ends before its time, to be gone on with."""
        if not self.config.enabled or self.has_saved(step):
            return False
        return self.config.save_end_of_training or (is_early and self.name == "state")

    def load(self, kept: list[Saved]) -> None:
        """What an earlier process saved."""
        self.kept = kept
        self._last_step = kept[-1].step if kept else None

    def save(self, moment: Moment) -> Saved:
        """Saves, and removes what is to be kept no longer."""
        saved = Saved(moment.step, self.write(moment), moment.score)
        self._last_step = moment.step
        self.kept = [each for each in self.kept if each.place != saved.place] + [saved]
        for old in self._surplus():
            self.kept.remove(old)
            if any(old.place == each.place for engine in moment.engines for each in engine.kept):
                continue
            try:
                self.remove(old, moment)
            except (FarstepError, OSError) as error:
                log.warning("%s is not removed: %s", old.place, error)
        return saved

    def write(self, moment: Moment) -> str:
        raise NotImplementedError

    def remove(self, saved: Saved, moment: Moment) -> None:
        raise NotImplementedError

    def _surplus(self) -> list[Saved]:
        """What is neither among the last nor among the best; nothing where neither is limited."""
        last, best = self.config.keep_last, self.config.keep_best
        if last is None and best is None:
            return []
        kept = set(self.kept[-(last or 1) :])
        scored = sorted((each for each in self.kept if each.score is not None), key=_by_score, reverse=True)
        kept |= set(scored[: best or 0])
        return [each for each in self.kept if each not in kept]


class StateEngine(CheckpointEngine):
    name = "state"

    def write(self, moment: Moment) -> str:
        return moment.save_state(self.config.ttl_seconds)

    def remove(self, saved: Saved, moment: Moment) -> None:
        if moment.service is None:
            raise TrainerError("only a ServiceClient removes checkpoints", stage="checkpoint")
        try:
            moment.service.delete_checkpoint(saved.place)
        except NotFoundError:
            return


class ExportEngine(CheckpointEngine):
    """The folder `<output_dir>/step-000100` (`-name` behind it, where it has one): whole, or not there."""

    name = "export"

    def write(self, moment: Moment) -> str:
        if moment.service is None:
            raise TrainerError("only a ServiceClient exports checkpoints", stage="checkpoint",
                               hint="give client=ServiceClient(…) instead of a TrainingClient")  # fmt: skip
        folder = Path(self.config.output_dir).expanduser() if self.config.output_dir else moment.folder
        place = folder / (f"{moment.label}-{self.config.name}" if self.config.name else moment.label)
        path = moment.save_state(STEPPING_STONE_S)
        filling = place.with_name(f"{place.name}~")
        shutil.rmtree(filling, ignore_errors=True)
        moment.service.export_checkpoint(path, self.config.format, filling)
        if place.exists():  # of the same step, by a process that was killed later
            shutil.rmtree(place)
        os.replace(filling, place)
        return str(place)

    def remove(self, saved: Saved, moment: Moment) -> None:
        shutil.rmtree(saved.place, ignore_errors=True)


@dataclass(slots=True)
class Engines:
    """All engines of a run, in the order in which they save: those whose checkpoint others use come first."""

    all: list[CheckpointEngine] = field(default_factory=list)
    order: ClassVar[tuple[str, ...]] = ("state",)

    @classmethod
    def of(cls, configs: tuple[CheckpointConfig, ...]) -> Engines:
        made = [CheckpointEngine.get(config.type)(config) for config in configs if config.enabled]
        return cls(sorted(made, key=lambda engine: engine.name not in cls.order))

    def state(self) -> list[list[Mapping[str, Any]]]:
        return [[{"step": each.step, "place": each.place, "score": each.score} for each in engine.kept]
                for engine in self.all]  # fmt: skip

    def load(self, state: list[list[Mapping[str, Any]]]) -> None:
        for engine, kept in zip(self.all, state, strict=False):
            engine.load([Saved(int(each["step"]), str(each["place"]), each["score"]) for each in kept])

    def adopt(self, step: int, path: str) -> None:
        """The checkpoint that is gone on from, which cannot tell of itself: whoever resumes keeps it, or removes it."""
        for engine in self.all:
            if isinstance(engine, StateEngine) and engine.config.auto_resume:
                engine.load([*(each for each in engine.kept if each.place != path), Saved(step, path)])


def _lasting(ttl_seconds: int | None) -> float:
    return math.inf if ttl_seconds is None else ttl_seconds


def _by_score(saved: Saved) -> float:
    assert saved.score is not None
    return saved.score
