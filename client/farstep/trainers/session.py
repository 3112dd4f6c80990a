"""`Session`: what a trainer has between `init` and `close`: client, data, schedule, checkpoints, events, trackers.

`init` is the expensive step and comes once. The constructor does none of it. Everything that is opened here is closed
by `close`, in whatever state the trainer is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from farstep.trainers.batch_file import BatchFile
from farstep.trainers.callbacks import CallbackList
from farstep.trainers.checked import Checked, ConfigLike
from farstep.trainers.checkpoints import Engines
from farstep.trainers.errors import TrainerError
from farstep.trainers.events import EventFile, EventLog, EventSink
from farstep.trainers.exits import EarlyStopping, Exit, Limits
from farstep.trainers.hooks import Hook, given_hooks, hooked
from farstep.trainers.horizon import Horizon, num_steps
from farstep.trainers.progress import Pace, ProgressBar
from farstep.trainers.resume import STATE_VERSION, ResumePoint, find_resume_point, taken_over
from farstep.trainers.row_sources import load_rows
from farstep.trainers.rows import Rows
from farstep.trainers.run_folder import BATCHES, EVENTS, RunFolder
from farstep.trainers.schedules import Schedule, share_of
from farstep.trainers.step import Position
from farstep.trainers.trackers.base import TrackedRun, Tracker, Trackers
from farstep.training import TrainingClient

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from farstep.service import ServiceClient

log = logging.getLogger("farstep")


class Session(Checked):
    """Of a trainer."""

    lookahead: int = 2  # steps under way beside the one that is waited for
    _class_hooks: ClassVar[list[Hook]] = []

    client: TrainingClient
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
        super().__init__(config)
        self._own_hooks = given_hooks(type(self), hooks)
        self._config_hooks: tuple[Any, list[Hook]] = (None, [])
        self._active_hooks: set[str] = set()
        self._given_client = client
        self._given_callbacks = tuple(callbacks)
        self._given_sinks = tuple(event_sinks)
        self.service: ServiceClient | None = None
        self._owns_service = False
        self._is_initialized = False
        self._is_closed = False
        self._tokenizer: PreTrainedTokenizerBase | None = None
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
        kinds = [(Tracker.get(each.name), each) for each in config.trackers if each.enabled]
        for kind, _ in kinds:
            kind.require()
        self._callbacks = CallbackList(self._given_callbacks, on_error=config.callback_errors)
        self.engines = Engines.of(config.checkpoint)
        self.folder = RunFolder(config.output_dir, config.name)
        self.folder.take()
        try:
            self._open(kinds)
        except BaseException:
            self._release()
            raise
        self._is_initialized = True

    def _open(self, kinds: list[tuple[type[Tracker], Any]]) -> None:
        config = self.config
        self._connect()
        point = self._resume_point()
        if point is None:
            self.folder.put_away()
        self.client = self.create_client(point)
        self.rng = np.random.default_rng(config.seed)
        self.early_stopping = self._early_stopping()
        if point is not None:
            self._load_state(point.state)
        self.folder.write(run_id=self.run_id)
        self.create_roles(point)
        self.load_data()
        if point is not None:
            self._check_data(point.state)
        self.schedule = self.create_schedule()
        self._start_reports(kinds, point.state.get("trackers", {}) if point is not None else {})

    @property
    def run_id(self) -> str:
        """Of the run on the trainer process."""
        return self.client.run_id

    def _connect(self) -> None:
        given = self._given_client
        if given is None:
            from farstep.service import ServiceClient

            self.service, self._owns_service = ServiceClient(), True
        elif not isinstance(given, TrainingClient):
            self.service = given

    def _resume_point(self) -> ResumePoint | None:
        if not any(each.auto_resume and each.enabled for each in self.config.checkpoint):
            return None
        given = self._given_client if isinstance(self._given_client, TrainingClient) else None
        return find_resume_point(self.folder, service=self.service, client=given, trainer=self.name)

    @hooked
    def create_client(self, resume_from: ResumePoint | None = None) -> TrainingClient:
        """A run on a trainer: fresh, from a checkpoint's weights (`model.path`), or resumed."""
        config, lora = self.config, self.config.model.lora
        if isinstance(self._given_client, TrainingClient):
            if resume_from is not None:
                self._given_client.load_state_with_optimizer(resume_from.path).result()
            return self._given_client
        assert self.service is not None
        options: dict[str, Any] = {
            "replicas": config.model.replicas,
            "with_sampler": self.needs_sampler,
            "name": config.name,
        }
        if resume_from is not None:
            return taken_over(self.service, resume_from, **options)
        if config.model.path is not None:
            return self.service.create_training_client_from_state(config.model.path, **options)
        return self.service.create_lora_training_client(
            config.model.base,
            lora.r,
            alpha=lora.alpha,
            target_modules=lora.target_modules,
            dropout=lora.dropout,
            train_attn=lora.train_attn,
            train_mlp=lora.train_mlp,
            train_unembed=lora.train_unembed,
            seed=lora.seed if lora.seed is not None else config.seed,
            **options,
        )

    def create_roles(self, resume_from: ResumePoint | None = None) -> None:
        """The other runs that a trainer needs beside its own."""

    @property
    def needs_sampler(self) -> bool:
        """Whether anything will be sampled: without it no sampler is paid for."""
        given = CallbackList(self._given_callbacks)
        shows = self.config.sample_log_count > 0 or self._reward_fn is not None
        return self.requires_rollout or shows or given.wants("checkpoint")

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
        events = EventFile(self.folder.path / EVENTS)
        self.events = EventLog([events, *self._given_sinks], run=self.run_id, last_seq=events.last_seq)
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

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, after `init`; or the one that `model.tokenizer` names."""
        if self._tokenizer is None:
            if not hasattr(self, "client"):
                raise TrainerError("the tokenizer comes with the model", stage="init", hint="call init() first")
            self._tokenizer = self.create_tokenizer()
        return self._tokenizer

    def create_tokenizer(self) -> PreTrainedTokenizerBase:
        named = self.config.model.tokenizer
        if named is None:
            return self.client.get_tokenizer()
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(named)
        return tokenizer

    def _texts(self, tokens: Sequence[int]) -> list[str] | None:
        """Each token by itself; None where nothing has asked for a tokenizer."""
        tokenizer = self._tokenizer
        return None if tokenizer is None else [str(tokenizer.decode([token])) for token in tokens]

    def _require_init(self, call: str) -> None:
        if self._is_closed:
            raise TrainerError(f"{call}: this trainer is closed", stage="train", hint="make a new one")
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
