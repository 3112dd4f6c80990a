"""`Session`: what a trainer has between `init` and `close`: client, data, schedule, checkpoints, events, trackers.

`init` is the expensive step and comes once. The constructor does none of it. Everything that is opened here is closed
by `close`, in whatever state the trainer is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from farstep.trainers.batch_file import BatchFile
from farstep.trainers.callbacks import CallbackList
from farstep.trainers.checked import ConfigLike
from farstep.trainers.checkpoints import Engines
from farstep.trainers.connected import Connected
from farstep.trainers.errors import TrainerError
from farstep.trainers.events import EventFile, EventLog, EventSink
from farstep.trainers.exits import EarlyStopping, Exit, Limits
from farstep.trainers.hooks import Hook, given_hooks, hooked
from farstep.trainers.horizon import Horizon, num_steps
from farstep.trainers.progress import Pace, ProgressBar
from farstep.trainers.resume import (
    STATE_VERSION,
    ResumePoint,
    adapter_identity,
    check_adapter,
    find_resume_point,
)
from farstep.trainers.row_sources import load_rows
from farstep.trainers.rows import Rows
from farstep.trainers.run_folder import BATCHES, EVENTS, RunFolder
from farstep.trainers.schedules import Schedule, share_of
from farstep.trainers.step import Position
from farstep.trainers.trackers.base import TrackedRun, Tracker, Trackers
from farstep.training import TrainingClient

if TYPE_CHECKING:
    from farstep.service import ServiceClient

log = logging.getLogger("farstep")


class Session(Connected):
    """Of a trainer."""

    lookahead: int = 2  # steps under way beside the one that is waited for
    _class_hooks: ClassVar[list[Hook]] = []

    schedule: Schedule
    engines: Engines
    train_rows: Rows
    eval_rows: Rows | None
    early_stopping: EarlyStopping | None

    def __init__(
        self,
        config: ConfigLike | None,
        *,
        client: ServiceClient | TrainingClient | None,
        callbacks: Iterable[object],
        hooks: Iterable[tuple[str, Callable[..., Any]]],
        event_sinks: Iterable[EventSink],
    ) -> None:
        super().__init__(config, client)
        self._own_hooks = given_hooks(type(self), hooks)
        self._config_hooks: tuple[Any, list[Hook]] = (None, [])
        self._active_hooks: set[str] = set()
        self._given_callbacks = tuple(callbacks)
        self._given_sinks = tuple(event_sinks)
        self._callbacks = CallbackList(())
        self._is_initialized = False
        self._is_closed = False
        self.global_step = 0
        self.global_step_this_run = 0
        self.is_resume = False
        self.position = Position()
        self.exit: Exit | None = None
        self.metrics: dict[str, float] = {}
        self.num_tokens = 0

    def add_event_sink(self, sink: EventSink) -> None:
        """One more that gets every event; before `init`.

        Raises:
            TrainerError: the events have begun.
        """
        if self._is_initialized:
            raise TrainerError("events have begun already", field="event_sinks", stage="init")
        self._given_sinks += (sink,)

    @hooked
    def init(self) -> None:
        """Connects, provisions or resumes, loads the data. Once.

        Raises:
            TrainerError: it was called before; another process has this run's folder; the run there is another's.
        """
        if self._is_closed:
            raise TrainerError("this trainer is closed", stage="init", hint="make a new one")
        if self._is_initialized:
            raise TrainerError("init was called before", stage="init", hint="it is once and for all")
        config = self.config
        self._callbacks = CallbackList(self._given_callbacks, on_error=config.callback_errors)
        self._begin_events()
        try:
            kinds = [(Tracker.get(each.name), each) for each in config.trackers if each.enabled]
            for kind, _ in kinds:
                kind.require()
            self.engines = Engines.of(config.checkpoint)
            self._open(kinds)
        except BaseException as error:
            self._end_early(error)
            self._release()
            raise
        self._is_initialized = True

    def _begin_events(self) -> None:
        """Takes the run's folder; from here on it tells of the run, also of one that comes to nothing.

        Raises:
            TrainerError: another process has the folder, or it cannot be written.
        """
        self.folder = RunFolder(self.config.output_dir, self.config.name)
        self.folder.take()
        if not self._may_go_on:
            self.folder.put_away()
        self._open_events()

    def _open_events(self) -> None:
        file = EventFile(self.folder.path / EVENTS)
        file.path.touch()
        self.events = EventLog([file, *self._given_sinks], last_seq=file.last_seq)

    @property
    def _may_go_on(self) -> bool:
        """Whether what is in the run's folder may be this run's own."""
        return any(each.auto_resume and each.enabled for each in self.config.checkpoint)

    def _begin_anew(self) -> None:
        """Moves away what another run has left in the folder; what was said of this one so far stays."""
        self.folder.put_away()
        self._open_events()

    def _end_early(self, error: BaseException) -> None:
        """Says of a run that did not begin that it came to nothing, and why."""

    def _open(self, kinds: list[tuple[type[Tracker], Any]]) -> None:
        config = self.config
        self._look_at_sources()
        self._connect()
        point = self._resume_point()
        if point is None and self._may_go_on:
            self._begin_anew()
        if point is not None:
            check_adapter(point.state, config.model)
        self.client = self.create_client(point)
        self.events.run = self.run_id
        self.rng = np.random.default_rng(config.seed)
        self.early_stopping = self._early_stopping()
        if point is not None:
            self._load_state(point.state)
            self.engines.adopt(self.global_step, point.path)
        self.folder.write(run_id=self.run_id)
        self.create_roles(point)
        self.load_data()
        self._read = None  # rows as they came have served their turn
        if point is not None:
            self._check_data(point.state)
        self.schedule = self.create_schedule()
        self._start_reports(kinds, point.state.get("trackers", {}) if point is not None else {})

    def _look_at_sources(self) -> None:
        """What is wrong with rows is found before a server is asked for anything. Rows of a cache stay unread."""
        from farstep.trainers.row_sources import check_sources

        if self.config.data.cache_dir is None and self._train_data is None:
            check_sources(self)

    def _resume_point(self) -> ResumePoint | None:
        if not self._may_go_on:
            return None
        given = self._given_client if isinstance(self._given_client, TrainingClient) else None
        return find_resume_point(self.folder, service=self.service, client=given, trainer=self.name)

    @property
    def needs_sampler(self) -> bool:
        """Whether anything will be sampled: without it no sampler is paid for."""
        return super().needs_sampler or CallbackList(self._given_callbacks).wants("checkpoint")

    @hooked
    def load_data(self) -> None:
        """Makes `train_rows` and `eval_rows`."""
        self.train_rows, self.eval_rows = load_rows(self, self._train_data, self._test_data)

    @hooked
    def create_schedule(self) -> Schedule:
        """The learning rate's multiplier at each optimizer step."""
        wanted = self.config.scheduler
        return Schedule.get(wanted.name)(
            total_steps=self.training_horizon,
            warmup_steps=self.warmup_steps,
            min_lr_ratio=wanted.min_lr_ratio,
            decay_steps=share_of(wanted.decay_steps, wanted.decay_ratio, self.training_horizon),
            decay=wanted.decay,
        )

    @property
    def horizon(self) -> Horizon:
        config = self.config
        return Horizon.of(steps_per_epoch=self._steps_per_epoch, epochs=config.epochs, max_steps=config.max_steps)

    @property
    def training_horizon(self) -> int:
        """Optimizer steps of the whole run: accumulation, epochs, `max_steps`, `drop_last` and all."""
        return self.horizon.steps

    @property
    def warmup_steps(self) -> int:
        wanted = self.config.scheduler
        return share_of(wanted.warmup_steps, wanted.warmup_ratio, self.training_horizon) or 0

    @property
    def passes(self) -> int:
        """How often each batch is trained on before the next one; more than 1 makes ratios to old log-probabilities."""
        return 1

    def steps_of_batch(self, num_examples: int) -> int:
        """Optimizer steps that a batch of so many examples makes."""
        config = self.config
        return self.passes * num_steps(
            num_examples * self.rows_per_group,
            mini_bs=config.mini_bs,
            rows_per_group=self.rows_per_group,
            accumulation=config.gradient_accumulation_steps,
        )

    @cached_property
    def _steps_per_epoch(self) -> int:
        if not hasattr(self, "train_rows"):
            self._require_init("the number of steps")
        rows = self.train_rows
        return sum(self.steps_of_batch(rows.num_examples(index)) for index in range(rows.num_batches))

    @property
    def limits(self) -> Limits:
        config = self.config
        return Limits(config.max_steps, config.exit_iteration, config.exit_iteration_this_run, config.kill_switch_path)

    def _early_stopping(self) -> EarlyStopping | None:
        wanted = self.config.early_stopping
        if wanted is None:
            return None
        return EarlyStopping(wanted.metric, wanted.mode, wanted.patience, wanted.min_delta, wanted.threshold)

    # Hooks

    def hooks_of(self, when: str, method: str) -> list[Hook]:
        """The hooks at one place, in their order."""
        if self._config_hooks[0] is not self._config:
            pairs = self._config.hooks if self._config is not None else ()
            self._config_hooks = (self._config, given_hooks(type(self), pairs))
        every = [*self._class_hooks, *self._config_hooks[1], *self._own_hooks]
        return [hook for hook in every if hook.when == when and hook.method == method]

    # What a checkpoint says of the trainer

    def trainer_state(self) -> dict[str, Any]:
        """Where the trainer stands, for JSON; a subclass adds its own and reads it in `load_trainer_state`."""
        return {
            "version": STATE_VERSION,
            "trainer": self.name,
            "global_step": self.global_step,
            "epoch": self.position.epoch,
            "batch": self.position.batch,
            "data": self.train_rows.identity,
            "model": adapter_identity(self.config.model),
            "metrics": self.metrics,
            "num_tokens": self.num_tokens,
            "rng": self.rng.bit_generator.state,
            "early_stopping": self.early_stopping.state() if self.early_stopping is not None else {},
            "trackers": self.trackers.ids,
            "saved": self.engines.state(),
        }

    def load_trainer_state(self, state: Mapping[str, Any]) -> None:
        """Of a subclass's own."""

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.is_resume = True
        self.global_step = int(state["global_step"])
        self.position = Position(int(state["epoch"]), int(state["batch"]))
        self.num_tokens = int(state["num_tokens"])
        self.rng.bit_generator.state = state["rng"]
        if self.early_stopping is not None:
            self.early_stopping.load(state["early_stopping"])
        self.engines.load(state["saved"])
        self.load_trainer_state(state)

    def _check_data(self, state: Mapping[str, Any]) -> None:
        """Raises TrainerError where the data are not those of the run that is gone on with, or in another order."""
        if state["data"] != self.train_rows.identity:
            raise TrainerError(
                "the data, their order or batch_size are not those that this run began with",
                stage="init",
                hint="give this run another name to begin anew, or put them back as they were",
            )

    # Reports

    def _start_reports(self, kinds: list[tuple[type[Tracker], Any]], tracked: Mapping[str, str]) -> None:
        """`tracked`: the trackers' ids of the run that is gone on with."""
        self.pace = Pace(self.training_horizon)
        self.events.run = self.run_id
        path = self.folder.path / BATCHES
        self.batches = BatchFile(path, text_of=self._texts, has_rewards=self.requires_rollout, names=self.row_names)
        self.progress = ProgressBar(self.config.name, self.training_horizon)
        self.progress.update(self.global_step, {})
        self._start_trackers(kinds, tracked)

    def _start_trackers(self, kinds: list[tuple[type[Tracker], Any]], ids: Mapping[str, str]) -> None:
        from farstep.trainers.config.resolved import shown_settings

        config = self.config
        shown = shown_settings(config)
        wanted = {kind.name: (kind, each.model_dump()) for kind, each in kinds}
        wanted.setdefault("jsonl", (Tracker.get("jsonl"), {}))
        self.trackers = Trackers(
            [
                (kind(), TrackedRun(config.name, self.folder.path, settings, shown, ids.get(name, "")))
                for name, (kind, settings) in wanted.items()
            ]
        )
        self.trackers.start()

    def _require_init(self, call: str) -> None:
        if self._is_closed:
            hint = "train() in a with block leaves it open until the end, fit() closes it; or make a new one"
            raise TrainerError(f"{call}: this trainer is closed", stage="train", hint=hint)
        if not self._is_initialized:
            raise TrainerError(f"{call} needs init() first", stage="init", hint="fit() does it all")

    def _release(self) -> None:
        """Everything that init opened, whatever went wrong with the rest of it."""
        closing: list[Callable[[], object]] = []
        if hasattr(self, "progress"):
            closing.append(self.progress.close)
        if hasattr(self, "trackers"):
            closing.append(lambda: self.trackers.finish(str(self.state)))
        if hasattr(self, "client") and self.client is not self._given_client:
            closing.append(self.client.close)
        if self._owns_service and self.service is not None:
            closing.append(self.service.close)
        closing.append(self.folder.release)
        for close in closing:
            try:
                close()
            except Exception as error:
                log.warning("closing: %s: %s", type(error).__name__, error)
