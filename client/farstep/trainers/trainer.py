"""`Trainer`: a run from its configuration to its last checkpoint, every part of which can be made one's own.

    with SFTTrainer({"name": "first", "model": "farstep/tiny", "dataset": rows}) as trainer:
        print(trainer.fit().loss)

A class with a `name` is found by it (`Trainer.get`). What may be overridden is in `farstep.trainers.loop`, what a run
needs and makes in `farstep.trainers.session`, what is checked before it in `farstep.trainers.checked`.

Invariant: a run ends in exactly one of completed, failed and cancelled, and says so once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from farstep.errors import FarstepError
from farstep.trainers.checked import ConfigLike
from farstep.trainers.events import EventLog, EventSink
from farstep.trainers.gradients import Batch, LossFunction
from farstep.trainers.hooks import HOOKED, find_hooks, hooked
from farstep.trainers.lifecycle import TrainerState
from farstep.trainers.loop import Loop
from farstep.trainers.metrics import TrainMetrics
from farstep.trainers.overrides import check_override
from farstep.trainers.parts import declared_config
from farstep.trainers.registry import Registered
from farstep.trainers.run import end, managed
from farstep.trainers.toolkit import Toolkit

if TYPE_CHECKING:
    from farstep.service import ServiceClient
    from farstep.training import TrainingClient

log = logging.getLogger("farstep")


class Trainer(Toolkit, Registered):
    """The base of all trainers.

    Args:
        config: a `TrainerConfig`, a mapping, YAML or its path; None: `check_config` brings it.
        client: a `ServiceClient`, or a `TrainingClient` whose run is to be trained on; None: `ServiceClient()`, closed
            with the trainer.
        agent: of rollouts.
        train_data, test_data: rows; None: the configuration's sources.
        reward_fn: of one record; or "module:function".
        callbacks: objects with `on_log` and the like (`Callbacks`), or mappings.
        hooks: pairs such as ("pre-step", function), after those of the class and of the configuration.
        event_sinks: functions that get every event.

    The constructor does no I/O but to read a configuration's file. `init` connects.
    """

    homes: ClassVar[Mapping[str, str]] = {
        "sft": "farstep.trainers.sft:SFTTrainer",
        "causal": "farstep.trainers.causal:CausalTrainer",
        "dpo": "farstep.trainers.dpo:DPOTrainer",
        "ipo": "farstep.trainers.dpo:IPOTrainer",
        "grpo": "farstep.trainers.rl.grpo:GRPOTrainer",
        "gspo": "farstep.trainers.rl.gspo:GSPOTrainer",
        "ppo": "farstep.trainers.rl.ppo:PPOTrainer",
        "operator": "farstep.trainers.operators.trainer:OperatorTrainer",
    }
    entry_point_group = "farstep.trainers"

    def __init_subclass__(cls, *, replace: bool = False, **kwargs: Any) -> None:
        own = vars(cls)
        for name in [name for name in HOOKED if name in own]:
            check_override(cls, name, getattr(Trainer, name), own[name])
            wrapped = hooked(own[name])
            setattr(cls, name, managed(wrapped) if name == "train" else wrapped)
            cls._overridden = cls._overridden | {name}
        if (config_class := declared_config(cls)) is not None:
            cls.config_class = config_class
        cls._class_hooks = find_hooks(cls)
        super().__init_subclass__(replace=replace, **kwargs)

    def __init__(
        self,
        config: ConfigLike | None = None,
        *,
        client: ServiceClient | TrainingClient | None = None,
        agent: Any = None,
        train_data: Any = None,
        test_data: Any = None,
        reward_fn: Any = None,
        callbacks: Iterable[object] = (),
        hooks: Iterable[tuple[str, Callable[..., Any]]] = (),
        event_sinks: Iterable[EventSink] = (),
    ) -> None:
        super().__init__(config, client=client, callbacks=callbacks, hooks=hooks, event_sinks=event_sinks)
        self._agent, self._reward_fn = agent, reward_fn
        self._train_data, self._test_data = train_data, test_data

    train = managed(Loop.train)

    # A whole run

    def fit(self) -> TrainMetrics:
        """Validates, initializes, trains and closes.

        Raises:
            TrainerError: from whatever went wrong.
        """
        with self:
            if self.state is TrainerState.CREATED:
                self.validate()
            self.train()
        return self.result

    def close(self) -> None:
        """Ends what `init` began; again does nothing. A client that was given stays open."""
        self._close(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await asyncio.to_thread(self._close, error)

    # The same, awaited

    async def train_async(self) -> TrainMetrics:
        """`train` on another thread. Cancelling it ends the run at the next step boundary, in state cancelled."""
        return await self._awaited(self.train)

    async def fit_async(self) -> TrainMetrics:
        """`fit` on another thread; cancelled as `train_async`."""
        return await self._awaited(self.fit)

    async def init_async(self) -> None:
        await asyncio.to_thread(self.init)

    async def step_async(
        self, batch: Batch, loss_fn: str | LossFunction | None = None, **options: Any
    ) -> dict[str, float]:
        return await asyncio.to_thread(functools.partial(self.step, batch, loss_fn, **options))

    async def evaluate_async(self, test_data: Any = None) -> TrainMetrics:
        return await asyncio.to_thread(self.evaluate, test_data)

    async def checkpoint_async(self) -> None:
        await asyncio.to_thread(self.checkpoint)

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    async def _awaited(self, call: Callable[[], TrainMetrics]) -> TrainMetrics:
        running = asyncio.ensure_future(asyncio.to_thread(call))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self.cancel("the task was cancelled")
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # has been said by the run itself
            raise

    def _close(self, error: BaseException | None) -> None:
        if self._is_closed:
            return
        if self._is_initialized and self._has_announced:  # steps by hand have no other end
            end(self, TrainerState.FAILED if error is not None else TrainerState.COMPLETED, error=error, quietly=True)
        elif error is not None and self._lifecycle.was_checked:
            self._end_early(error)
        self._is_closed = True
        if self._is_initialized:
            self._release()
        elif hasattr(self, "folder"):
            self.folder.release()

    def _end_early(self, error: BaseException) -> None:
        if not hasattr(self, "events"):
            try:
                self._begin_events()
            except FarstepError:  # no configuration, or the folder is another's
                self.events = EventLog(self._given_sinks)
        if not isinstance(error, KeyboardInterrupt):
            end(self, TrainerState.FAILED, error=error, quietly=True)
            return
        self.cancel("interrupted from the keyboard")
        assert self.should_stop  # for that reason
        end(self, TrainerState.CANCELLED, quietly=True)
