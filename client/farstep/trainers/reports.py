"""`Reports`: what a trainer says of itself while it goes: properties, metrics of steps, the events that carry them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.events import Event
from farstep.trainers.metrics import TrainMetrics, prefixed
from farstep.trainers.progress import sample_line
from farstep.trainers.session import Session

if TYPE_CHECKING:
    from farstep.training import TrainingClient


class Reports(Session):
    """Of a trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_training = False
        self._has_announced = False
        self._logged_step = 0
        self._evaluated: dict[str, float] = {}
        self._device: str | None = None

    # What others ask

    @property
    def epoch_idx(self) -> int:
        """The present epoch, from 0."""
        return self.position.epoch

    @property
    def train_batch_idx(self) -> int:
        """Batches of the present epoch that are done."""
        return self.position.batch

    @property
    def epoch_finished(self) -> bool:
        return hasattr(self, "train_rows") and self.position.batch >= self.train_rows.num_batches

    @property
    def training_finished(self) -> bool:
        """Whether every step of the horizon is made."""
        return hasattr(self, "train_rows") and self.global_step >= self.training_horizon

    @property
    def early_stop(self) -> bool:
        return self.exit is not None and self.exit.is_early

    @property
    def early_stop_reason(self) -> str:
        return self.exit.reason if self.exit is not None else ""

    @property
    def device(self) -> str:
        """The accelerator of the trainer process, as its server names it."""
        self._require_init("device")
        if self._device is None:
            self._device = self.service.get_server_capabilities().accelerator if self.service is not None else "remote"
        return self._device

    @property
    def model_unwrapped(self) -> TrainingClient:
        """The run on the trainer: there is no model in this process."""
        self._require_init("model_unwrapped")
        return self.client

    @property
    def result(self) -> TrainMetrics:
        """What the run has come to so far."""
        extra = {**self.metrics, **self._evaluated}
        accuracy = self._evaluated.get("eval/accuracy", self.metrics.get("accuracy"))
        loss = self.metrics.get("loss", float("nan"))
        return TrainMetrics(loss, accuracy, self.global_step, extra, self.early_stop_reason)

    @property
    def score(self) -> float | None:
        """How good the last evaluation was, more is better; by the metric of `early_stopping`, else by the loss."""
        wanted = self.early_stopping
        metric, sign = ("eval/loss", -1.0) if wanted is None else (wanted.metric, 1.0 if wanted.mode == "max" else -1.0)
        return sign * self._evaluated[metric] if metric in self._evaluated else None

    @property
    def has_scorer(self) -> bool:
        """Whether answers can be scored: there is a reward function, and something to sample from."""
        return self._reward_fn is not None and not self.requires_rollout

    @property
    def reward_fn(self) -> Callable[..., Any]:
        if self._reward_fn is None:
            raise TrainerError("this trainer has no reward function", field="reward_fn")
        return self._reward_fn

    def ensure_init(self, call: str) -> None:
        """Does `init` where that was not done yet; refuses a trainer that is closed."""
        if not self._is_initialized and not self._is_closed:
            self.init()
        self._require_init(call)

    # What it says

    def emit(self, kind: str, /, *, infer: Any = None, **data: Any) -> Event:
        """An event, to every sink and then to the callbacks."""
        event = self.events.emit(kind, **data)
        self._callbacks.call(event, **({"infer": infer} if infer is not None else {}))
        return event

    def announce(self) -> None:
        """`started`, once."""
        if self._has_announced:
            return
        from farstep.trainers.config.resolved import shown_settings

        self._has_announced = True
        config = self.config
        self.emit(
            "started",
            trainer=self.name,
            name=config.name,
            run_id=self.run_id,
            base_model=config.model.base,
            step=self.global_step,
            total_steps=self.training_horizon,
            resumed=self.is_resume,
            dry_run=config.dry_run,
            num_examples=len(self.train_rows),
            data=self.train_rows.report,
            config=shown_settings(config),
        )

    def report_step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Counts a step's tokens and time, and logs it where it is its turn."""
        num_steps = int(metrics.get("optimizer_steps", 1))
        took_s = max(self.pace.step(num_steps), 1e-9)
        tokens_per_s, samples_per_s = self.pace.speed(
            took_s, metrics.get("num_tokens", 0.0), metrics.get("num_rows", 0.0)
        )
        self.num_tokens += int(metrics.get("num_tokens", 0))
        done = self.position.epoch + self.position.batch / max(1, self.train_rows.num_batches)
        self.metrics = {
            **metrics,
            "epoch": done,
            "time/step_s": took_s,
            "tokens_per_s": tokens_per_s,
            "samples_per_s": samples_per_s,
        }
        every = self.config.log_interval
        if self.global_step // every > (self.global_step - num_steps) // every or self.global_step == 1:
            self.log_metrics()
        self.progress.update(self.global_step, self.metrics)
        return dict(self.metrics)

    def log_metrics(self) -> None:
        """`log`, of the last step."""
        if self._logged_step == self.global_step or not self.metrics:
            return
        self._logged_step = self.global_step
        self.trackers.log(prefixed(self.metrics, "train"), self.global_step)
        self.emit(
            "log",
            step=self.global_step,
            total_steps=self.training_horizon,
            eta_s=self.pace.eta_s(self.global_step),
            **self.metrics,
        )

    def report_evaluation(self, result: TrainMetrics, samples: list[dict[str, str]]) -> None:
        """`eval`; early stopping looks at it."""
        self._evaluated = dict(result.extra)
        if self.early_stopping is not None and self._is_training and self.exit is None:
            self.exit = self.early_stopping.look(self._evaluated)
        if not self._is_training and not self._has_announced:
            return  # nobody's run yet
        if self.events.has_ended:
            return
        self.trackers.log(result.extra, self.global_step)
        for each in samples:
            self.progress.say(sample_line(each))
        self.emit("eval", step=self.global_step, num_batches=result.steps, samples=samples, **result.extra)
