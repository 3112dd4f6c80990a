"""`OperatorTrainer`: tunes the prompts, tool descriptions and settings of an agent. No weights change, and no trainer
process is needed: whoever answers the agent's questions is enough.

    epoch:  for each batch  evaluate → backward → step;  then validate → checkpoint

accuracy = mean score, loss = 1 − accuracy. What it began with counts as epoch 0: an agent never ends up worse than it
was, as far as validation can see. `train` leaves the operators at their best.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from farstep.rollout.loop_thread import LoopThread
from farstep.trainers.chat import Chat, called
from farstep.trainers.checkpoints import Engines
from farstep.trainers.errors import TrainerError
from farstep.trainers.metrics import TrainMetrics
from farstep.trainers.operators.agent import OperatorAgent, check_operators
from farstep.trainers.operators.asking import configured_optimizers, connect
from farstep.trainers.operators.best import Best
from farstep.trainers.operators.cases import Case, accuracy_of, as_cases, run_cases
from farstep.trainers.operators.checkpoint_files import CheckpointFiles
from farstep.trainers.operators.config import OperatorConfig
from farstep.trainers.operators.operator import Operator, load_states, states_of
from farstep.trainers.operators.optimizer import Change, Surroundings, check_optimizer
from farstep.trainers.operators.resuming import check_state, find_state
from farstep.trainers.operators.rows import MappingRows, check_mappings, load_mappings, rows_in_order
from farstep.trainers.step import Position
from farstep.trainers.trainer import Trainer


class OperatorTrainer(Trainer):
    """Rows are whatever the agent takes.

    Args:
        client: whom optimizers ask: a `SamplingClient`, a `ServiceClient`, or a function of messages.
        agent: has `operators` and is called with a row; an operator alone is made one.
        optimizer: one or several with async `backward(cases)` and `step()`; None: those of the configuration.
        eval_fn: of agent and rows, gives cases; None: the agent is run on the rows and `reward_fn` scores its outputs.
            Where tools are optimized, the `input` of its cases has to be the row.
        others: as `Trainer`'s.
    """

    name = "operator"
    config_class = OperatorConfig
    needs = ("agent", "dataset", "reward", "config")
    lookahead = 0
    has_own_rows = True

    def __init__(
        self,
        config: Any = None,
        *,
        optimizer: Any = None,
        eval_fn: Callable[..., Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__({} if config is None else config, **others)
        if eval_fn is not None and not callable(eval_fn):
            raise TrainerError(f"a {type(eval_fn).__name__} cannot be called", field="eval_fn", stage="validate")
        given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer] if optimizer is not None else []
        for each in given:
            check_optimizer(each)
        self._given_optimizers = given
        self._eval_fn = eval_fn
        self.optimizers: list[Any] = []
        self.changes: list[Change] = []
        self.best = Best()
        self._saved_epoch: int | None = None
        self._num_questions = 0
        self.chat: Chat | None = None
        self._owned_chat_client: Any = None

    @property
    def config(self) -> OperatorConfig:
        config = super().config
        assert isinstance(config, OperatorConfig)
        return config

    @property
    def agent(self) -> Any:
        """What is tuned; after training, at its best."""
        if self._agent is None:
            raise TrainerError("this trainer has no agent", field="agent", stage="validate")
        return self._agent

    @property
    def operators(self) -> list[Operator]:
        return list(self.agent.operators)

    @property
    def client(self) -> Any:  # type: ignore[override]
        raise AttributeError("the operator trainer trains no weights: it has no training client")

    @property
    def run_id(self) -> str:
        return self._run_id

    # Checks

    def validate(self) -> None:
        """As of every trainer; agent and reward function may be named by the configuration."""
        if self._agent is None:
            self._agent = self.config.operators.agent
        if self._reward_fn is None:
            named: Any = self.config.operators.reward
            self._reward_fn = named
        super().validate()

    def check_agent(self, agent: Any) -> None:
        """Takes the agent: something that is called with a row and has `operators`, or one operator."""
        super().check_agent(OperatorAgent(agent) if isinstance(agent, Operator) else agent)
        with self._checking("agent"):
            check_operators(getattr(self._agent, "operators", None))

    def check_reward(self, reward_fn: Any = None, *, probe: Any = None) -> None:
        """As of every trainer; with an `eval_fn` none is needed."""
        if reward_fn is not None or self._eval_fn is None:
            super().check_reward(reward_fn, probe=probe)
            if self._reward_fn is not None:
                with self._checking("reward"):
                    self._make_reward()
            return
        with self._checking("reward"):
            self._reward_fn = None

    def _check_rows(self, rows: Any, field: str) -> None:
        check_mappings(rows, field=field)

    def _make_reward(self) -> Any:
        from farstep.rollout.rewards import Reward

        return Reward(self.reward_fn)

    # What it has between init and close

    def _open(self, kinds: Any) -> None:
        config, wanted = self.config, self.config.operators
        self.engines = Engines()  # none of those: what is saved is not on a server
        self.files = CheckpointFiles(wanted.checkpoint_dir or self.folder.path / "checkpoints")
        state = find_state(self.files, config)
        self._loop_thread = LoopThread()
        self._connect()
        self.rng = np.random.default_rng(config.seed)
        self.early_stopping = self._early_stopping()
        self._run_id = f"operator-{secrets.token_hex(8)}"
        self.load_data()
        self._bind_optimizers()
        left = self.folder.read()
        if state is not None:
            self._go_on_from(state)
        if state is None or left is None or left["run_id"] != self.run_id:  # whatever is here is of another run
            self._begin_anew()
            self.files.put_away()
            self._saved_epoch = None
        else:
            self.files.put_away(after=state["epoch"])
        self.folder.write(run_id=self.run_id)
        self._start_reports(kinds, state["trackers"] if state is not None else {})

    @property
    def _may_go_on(self) -> bool:
        return super()._may_go_on or self.config.operators.resume_from is not None

    def _connect(self) -> None:
        asked = connect(self.config, self._given_client, is_needed=not self._given_optimizers)
        self.chat, self._owned_chat_client = asked.chat, asked.client
        self.service, self._owns_service = asked.service, asked.owns_service

    def load_data(self) -> None:
        self.train_rows, self.eval_rows = load_mappings(self.config, self._train_data, self._test_data)

    def _bind_optimizers(self) -> None:
        self.optimizers = self._given_optimizers or configured_optimizers(self.config)
        around = Surroundings(self.operators, self.chat, self._cases_of, self._next_seed)
        for each in self.optimizers:
            if callable(bind := getattr(each, "bind", None)):
                bind(around)

    def _next_seed(self) -> int:
        """Of a question: a run that is repeated, or gone on with, asks with the same."""
        self._num_questions += 1
        return int(np.random.SeedSequence([self.config.seed, self._num_questions]).generate_state(1, np.uint64)[0] >> 2)

    def steps_of_batch(self, num_examples: int) -> int:
        return int(num_examples > 0)

    def _release(self) -> None:
        super()._release()
        if self._owned_chat_client is not None:
            self._owned_chat_client.close()
        if hasattr(self, "_loop_thread"):
            self._loop_thread.stop()

    # The loop

    def train(self) -> TrainMetrics | None:  # type: ignore[override]
        """Validates what there is, trains, and leaves the operators at their best."""
        if self.config.eval_interval and self.best.accuracy is None:
            self._judge(self.evaluate().accuracy, epoch=0)
        super().train()
        self.checkpoint()
        self._load_best()
        return None

    def epoch(self) -> None:
        """What is left of the present epoch; it is judged by `_after_epoch`."""
        for batch in self.train_batches:
            self.step(batch)

    def step(self, batch: Any, loss_fn: Any = None, **options: Any) -> dict[str, float]:
        """Evaluates a batch of rows, has the optimizers look at the cases, and lets them change the operators.

        Returns:
            `loss`, `accuracy`, `num_rows`, `num_failed`, `num_weak`, `num_changes` and `num_refused` changes. Loss and
            accuracy are those of the operators before they were changed.
        """
        if loss_fn is not None or options:
            raise TypeError("a step of the operator trainer takes a batch of rows and nothing else")
        self._require_init("step")
        check_mappings(batch, field="batch")
        self.announce()
        metrics = self._loop_thread.run(self._step_async(list(batch)))
        self.global_step += 1
        self.global_step_this_run += 1
        self.position = self._after_batch
        metrics = self.report_step(metrics)
        self.pace.pause()
        return metrics

    async def _step_async(self, batch: list[Any]) -> dict[str, float]:
        cases = await self._cases_of(batch)
        accuracy = accuracy_of(cases)
        if not self.config.eval_interval:
            self._judge(accuracy, epoch=self.position.epoch)  # as they were before this step
        for each in self.optimizers:
            await each.backward(cases)
        self.changes = []
        for each in self.optimizers:
            made = await each.step()
            self.changes += [change for change in made or () if isinstance(change, Change)]
        return {
            "loss": 1.0 - accuracy,
            "accuracy": accuracy,
            "num_rows": float(len(cases)),
            "num_failed": float(sum(bool(case.error) for case in cases)),
            "num_weak": float(sum(case.score < self.config.operators.weak_below for case in cases)),
            "num_changes": float(sum(change.is_made for change in self.changes)),
            "num_refused": float(sum(bool(change.reason) for change in self.changes)),
        }

    def evaluate(self, test_data: Any = None) -> TrainMetrics:
        """The mean score on test data (given here, or the trainer's; else on the rows that it trains on).

        Returns:
            `accuracy`, `loss` = 1 − accuracy, `steps` (batches); no accuracy and 0 steps where there are no rows.

        Raises:
            TrainerError: the agent fails on every row, or a score is none.
        """
        self.ensure_init("evaluate")
        if test_data is not None and len(test_data):
            check_mappings(test_data, field="test_data")
        rows = self._judging_rows() if test_data is None else rows_in_order(test_data, self.config.batch_size)
        if not len(rows):
            return TrainMetrics()
        cases = self._loop_thread.run(self._cases_of(rows.rows))
        accuracy = accuracy_of(cases)
        found = {
            "eval/loss": 1.0 - accuracy,
            "eval/accuracy": accuracy,
            "eval/num_failed": float(sum(bool(case.error) for case in cases)),
        }
        result = TrainMetrics(1.0 - accuracy, accuracy, rows.num_batches, found)
        self.report_evaluation(result, [_shown(case) for case in cases[: self.config.sample_log_count]])
        return result

    def checkpoint(self) -> None:
        """Writes `checkpoint_<epoch>.json`, once an epoch; within one there is nothing to go on from."""
        epoch = self.position.epoch
        if self.position.batch or self._saved_epoch == epoch or not self._saving:
            return
        path = self.files.save(epoch, self.trainer_state())
        self._saved_epoch = epoch
        if keep_last := self._saving[0].keep_last:
            self.files.keep_last(keep_last, also=self.best.epoch if self._saving[0].keep_best else None)
        self.folder.write(run_id=self.run_id, path=str(path))
        self.emit("checkpoint", infer=self._infer, step=self.global_step, epoch=epoch, kind="operators", path=str(path))

    def _after_epoch(self, epochs_done: int) -> None:
        every = self.config.eval_interval
        if every and epochs_done % every == 0:
            self._judge(self.evaluate().accuracy, epoch=epochs_done)
        if self._saving and epochs_done % (self._saving[0].save_every_n_epochs or 1) == 0:
            self.checkpoint()

    def _judge(self, accuracy: float | None, *, epoch: int) -> None:
        """Keeps the best; after something worse goes back to it, if that is wanted."""
        if accuracy is None:
            return
        if self.best.beaten_by(accuracy):
            self.best = Best(epoch, accuracy, states_of(self.operators))
        elif accuracy < (self.best.accuracy or 0.0) and self.config.operators.on_worse == "revert":
            self._load_best()

    def _load_best(self) -> None:
        if self.best.states is not None:
            load_states(self.operators, self.best.states)

    @property
    def last_checkpoint(self) -> Path | None:
        """The file that was written last, or gone on from."""
        return self.files.path_of(self._saved_epoch) if self._saved_epoch is not None else None

    # What it is made of

    async def _cases_of(self, rows: Sequence[Any]) -> list[Case]:
        if self._eval_fn is not None:
            cases = as_cases(await called(self._eval_fn, self.agent, list(rows)))
            if not cases:
                raise TrainerError(f"gave no cases for {len(rows)} rows", field="eval_fn", stage="evaluate")
            return cases
        agent = getattr(self.agent, "run_agent", self.agent)
        return await run_cases(agent, rows, self._make_reward(), max_running=self.config.operators.max_running)

    def _judging_rows(self) -> MappingRows:
        rows = self.eval_rows if self.eval_rows is not None else self.train_rows
        assert isinstance(rows, MappingRows)
        return rows

    @property
    def _saving(self) -> list[Any]:
        return [one for one in self.config.checkpoint if one.enabled]

    def _infer(self, row: Any) -> Any:
        """The agent on a row, as it is at this checkpoint."""
        return self._loop_thread.run(called(getattr(self.agent, "run_agent", self.agent), row))

    @property
    def result(self) -> TrainMetrics:
        """Of the best, where something was validated."""
        last, best = super().result, self.best.accuracy
        if best is None:
            return last
        extra = {**last.extra, "best_accuracy": best, "best_epoch": float(self.best.epoch)}
        return TrainMetrics(1.0 - best, best, last.steps, extra, last.stopped_because)

    # Going on

    def trainer_state(self) -> dict[str, Any]:
        """What `checkpoint_<epoch>.json` has in it."""
        return {
            "trainer": self.name,
            "run_id": self.run_id,
            "global_step": self.global_step,
            "data": self.train_rows.identity,
            "operators": states_of(self.operators),
            "optimizers": [each.get_state() if hasattr(each, "get_state") else {} for each in self.optimizers],
            "best": self.best.to_dict(),
            "num_questions": self._num_questions,
            "rng": self.rng.bit_generator.state,
            "early_stopping": self.early_stopping.state() if self.early_stopping is not None else {},
            "trackers": self.trackers.ids,
        }

    def _go_on_from(self, state: dict[str, Any]) -> None:
        check_state(state, trainer=self.name, num_optimizers=len(self.optimizers))
        self._check_data(state)
        load_states(self.operators, state["operators"])
        self.is_resume = True
        self.best = Best.from_dict(state["best"])
        self.global_step, self.position = state["global_step"], Position(state["epoch"], 0)
        self._saved_epoch, self._run_id = state["epoch"], state["run_id"]
        self._num_questions = state["num_questions"]
        self.rng.bit_generator.state = state["rng"]
        if self.early_stopping is not None:
            self.early_stopping.load(state["early_stopping"])
        for each, saved in zip(self.optimizers, state["optimizers"], strict=True):
            if hasattr(each, "load_state"):
                each.load_state(saved)


def _shown(case: Case) -> dict[str, str]:
    return {"prompt": case.question, "completion": case.error or str(case.output), "answer": str(case.answer or "")}
