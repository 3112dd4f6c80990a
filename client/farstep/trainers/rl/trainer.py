"""`RLTrainer`: prompts in, rows with advantages out; what comes after that is the loop of every trainer.

    batch of prompts → rollout → experience (advantages, scores of other roles) → `passes` steps on these rows

    class Best(RLTrainer):
        name = "best"

        def advantages(self, rollout):          # rows with `advantages`
            ...

Ratios are to the log-probabilities that tokens were sampled with. The weights that sample are those of the moment in
which a rollout begins, unless `rl.max_staleness` lets rollouts run ahead of training.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from farstep.trainers.errors import ConfigError, RolloutError, TrainerError
from farstep.trainers.gradients import Batch, LossFunction
from farstep.trainers.horizon import num_steps
from farstep.trainers.metrics import TrainMetrics
from farstep.trainers.progress import sample_line
from farstep.trainers.rl.policy_loss import Level, PolicyLoss
from farstep.trainers.rl.reporting import described, experience_metrics
from farstep.trainers.role import POLICY, Role
from farstep.trainers.run_folder import ROLLOUTS
from farstep.trainers.sequence import TrainSequence
from farstep.trainers.trainer import Trainer

if TYPE_CHECKING:
    import torch

    from farstep.rollout import Rollout, SamplingParams
    from farstep.trainers.resume import ResumePoint
    from farstep.trainers.rl.prompt_rows import PlacedPrompts
    from farstep.trainers.step import PendingStep

log = logging.getLogger("farstep")

REFERENCE = "ref"


class RLTrainer(Trainer):
    """The base of algorithms that train on what they sample. Rows: prompts; what else a row has is the reward's.

    A subclass says `advantages`, and may say another `loss_fn` (a named loss, or a function of rows and
    log-probabilities); without one it is the clipped surrogate of the ratios of each `level`.

    Metrics: `rollout/…` of what was sampled, `train/…` of the steps on it, `time/…`.
    """

    needs = ("dataset", "config", "reward")
    requires_rollout = True
    crosses_epochs = True
    level: ClassVar[Level] = "token"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._threads: ThreadPoolExecutor | None = None
        self._experienced: dict[str, float] = {}  # of the batch that is trained on next
        self._reported: dict[str, float] = {}  # of the batch whose step is reported now
        self._begun_steps = 0  # that rollouts under way will make
        self._lost: Counter[str] = Counter()  # samples of this epoch's batches that had nothing to learn, by reason
        self._has_lost_all = True  # none of them was scored
        self._metrics_of: dict[PendingStep, dict[str, float]] = {}

    # What it takes

    def check_agent(self, agent: Any = None) -> None:
        """As every trainer's; without one here the configuration's `rl.agent`."""
        given = agent if agent is not None else self._config.rl.agent if self._config is not None else None
        if given is not None:
            super().check_agent(given)

    def check_reward(self, reward_fn: Any = None, *, probe: Any = None) -> None:
        """As every trainer's; without one here the configuration's `rl.reward`. An agent may give rewards itself.

        Raises:
            TrainerError: a parameter is named after nothing that a record has.
        """
        from farstep.rollout.rewards import Reward

        rl = self._config.rl if self._config is not None else None
        given = reward_fn if reward_fn is not None else rl.reward if rl is not None else None
        if given is None and (self._agent is not None or (rl is not None and rl.agent is not None)):
            with self._checking("reward"):
                self._reward_fn = None
            return
        super().check_reward(given, probe=probe)
        with self._checking("reward"):
            try:
                Reward(self.reward_fn)
            except RolloutError as error:
                raise TrainerError(error.message, hint=error.hint, field="reward_fn", stage="validate") from error

    def _check_rows(self, rows: Any, field: str) -> None:
        from farstep.trainers.row_sources import is_sequences

        if is_sequences(rows):
            raise TrainerError("are sequences, and prompts are needed: answers are sampled", field=field,
                               stage="validate", hint="step(rows) trains on sequences that you made")  # fmt: skip
        super()._check_rows(rows, field)

    def validate(self) -> None:
        if self._agent is None and self._config is not None and self._config.rl.agent is not None:
            self.check_agent()
        super().validate()

    @property
    def agent(self) -> Callable[..., Any] | None:
        """What talks to the policy in rollouts; None: prompts are answered directly."""
        return getattr(self._agent, "run_agent", self._agent)  # type: ignore[no-any-return]

    # How it trains

    @property
    def policy_loss(self) -> PolicyLoss:
        return PolicyLoss.of(self.config.rl, self.level)

    def loss_config(self) -> Mapping[str, float]:
        return self.policy_loss.settings if self._uses_policy_loss else {}

    def normalizer(self, batch: Sequence[TrainSequence]) -> float:
        """The weight of its tokens, for a mean; or what does not depend on how long answers are (Dr. GRPO,
        arXiv:2503.20783, of which the length of answers is taken out twice, here and in the advantages)."""
        if self.config.rl.loss_aggregation == "constant":
            return float(len(batch) * self.config.sampling.max_tokens) or 1.0
        return super().normalizer(batch)

    def surrogate(self, batch: Batch, logprobs: list[torch.Tensor]) -> Any:
        """The clipped surrogate where the worker has no loss of these settings; see `PolicyLoss`."""
        return self.policy_loss(batch, logprobs, self.normalizer(batch))

    @property
    def passes(self) -> int:
        return self.config.rl.updates_per_rollout

    def steps_of_batch(self, num_examples: int) -> int:
        """Where accumulation cuts a batch, as many as it makes when no sample is dropped or split."""
        config = self.config
        return self.passes * num_steps(
            num_examples * config.rl.group_size,
            mini_bs=config.mini_bs,
            rows_per_group=1,
            accumulation=config.gradient_accumulation_steps,
        )

    # From prompts to rows

    def advantages(self, rollout: Rollout) -> Batch:
        """The rows of a rollout with their advantages, and what else the loss takes."""
        raise NotImplementedError(f"{type(self).__name__} has no advantages")

    def experience(self, rollout: Rollout) -> Batch:
        """What is trained: rows with advantages, scores of the reference and weights as `rl` has them."""
        rl = self.config.rl
        _require_rewards(rollout)
        if rl.drop_cut:
            rollout = rollout.without_cut()
        if rl.drop_zero_variance:
            rollout = rollout.with_signal()
        rows = self.advantages(rollout)
        rows = self._with_old_logprobs(rows)
        if rows and self.needs_reference:
            references = self.score_logprobs(REFERENCE, rows)
            rows = [row.replace(ref_logprobs=ref) for row, ref in zip(rows, references, strict=True)]
        if rl.loss_aggregation == "sequence":
            rows = [row.averaged() for row in rows]
        self._experienced = rollout.metrics() | experience_metrics(rows)
        step, tokenizer = self.global_step, self.get_tokenizer()
        self.emit("rollout", step=step, **described(rollout, rows, tokenizer, step=step, num_rows=rl.event_rows))
        for sample in rollout.shown(self.config.sample_log_count):
            self.progress.say(sample_line(sample))
        if not rows:
            lost = rollout.stats.dropped + rollout.stats.failed
            self._lost.update(lost)
            self._has_lost_all = self._has_lost_all and not rollout.stats.funnel.scored
            why = _counted(lost) or "no sample was asked for"
            log.warning("%s: a batch with nothing to learn is left out: %s", self.config.name, why)
        return rows

    def begin_batch(self, batch: Any) -> Callable[[], Batch]:
        """Begins the rollout of a batch of prompts; it ends when its rows are asked for."""
        if self.should_stop:
            return list
        is_later = self._has_begun_enough()
        collecting, num_steps = None if is_later else self.collect(batch), self.steps_of_batch(len(batch))
        self._begun_steps += 0 if is_later else num_steps

        def end() -> Batch:
            self._begun_steps -= 0 if is_later else num_steps
            if self.should_stop:
                return []  # nobody trains on it
            rollout = (collecting if collecting is not None else self.collect(batch)).result()
            self._keep(batch, rollout)
            return self.prepare(self.experience(rollout))

        return end

    def _has_begun_enough(self) -> bool:
        """Whether the rollouts under way are all that the run will train on, unless one has nothing to learn."""
        limit = self.config.max_steps
        return limit is not None and self._submitted + self._begun_steps >= limit

    def collect(self, placed: PlacedPrompts, *, n_samples: int | None = None) -> Any:
        """Begins a rollout: its `result()` is the Rollout."""
        from farstep.trainers.rl.collecting import Collecting
        from farstep.trainers.rl.sampling import session_settings

        params = self.rollout_params()
        params = replace(params, seed=params.seed_for(placed.epoch, placed.index))
        return Collecting(
            self,
            placed,
            params,
            session_settings(self.config, has_agent=self.agent is not None),
            n_samples=self.config.rl.group_size if n_samples is None else n_samples,
            agent=self.agent,
            reward_fn=self._reward_fn,
            threads=self._threads,
        )

    def _keep(self, placed: PlacedPrompts, rollout: Rollout) -> None:
        """Writes a rollout down where that is asked for; what cannot be written ends no run."""
        from farstep.trainers.rl.kept import write_rollout

        wanted = self.config.rl.keep_rollouts
        if wanted == "none":
            return
        place = self.folder.path / ROLLOUTS / f"epoch-{placed.epoch:03d}-batch-{placed.index:06d}.jsonl"
        try:
            write_rollout(place, rollout, step=self.global_step, with_tokens=wanted == "tokens")
        except (OSError, ValueError) as error:
            log.warning("a rollout is not kept: %s: %s", type(error).__name__, error)

    def rollout_params(self) -> SamplingParams:
        """How answers are sampled: as `sampling` says."""
        from farstep.trainers.rl.sampling import rollout_params

        return rollout_params(self.config, max_seq_len=self.client.get_info().max_seq_len or None)

    @property
    def needs_reference(self) -> bool:
        return self.config.rl.kl_coef > 0

    def _with_old_logprobs(self, rows: Batch) -> Batch:
        """The rows with the trainer's own log-probabilities where that is asked for, or where those that were sampled
        with are of another distribution than the model's: a temperature, a grammar, an agent's own parameters."""
        rl = self.config.rl
        places = [
            index
            for index, row in enumerate(rows)
            if rl.recompute_old_logprobs or (rl.ratio == "sampled" and not row.metadata.get("is_models_own", True))
        ]
        if not places:
            return rows
        logprobs = self.score_logprobs(POLICY, [rows[index] for index in places])
        found = list(rows)
        for index, own in zip(places, logprobs, strict=True):
            found[index] = rows[index].replace(logprobs=own)
        return found

    # What the loop asks

    def create_roles(self, resume_from: ResumePoint | None = None) -> None:
        super().create_roles(resume_from)
        rl = self.config.rl
        self.lookahead = rl.max_staleness
        if rl.max_staleness:
            self._threads = ThreadPoolExecutor(rl.max_staleness, thread_name_prefix="rollout")
        if self._uses_policy_loss:
            loss = self.policy_loss
            self.loss_fn = loss.name if loss.is_named else self.surrogate
            self.loss_inputs = loss.inputs
            if not loss.is_named:
                _require_torch()

    def needed_roles(self) -> list[Role]:
        """Those that this algorithm asks: the reference, where there is a price on the distance to it."""
        return [Role(REFERENCE, self.config.rl.reference)] if self.needs_reference else []

    def load_data(self) -> None:
        """Makes `train_rows` and `eval_rows` of prompts."""
        from farstep.trainers.rl.prompt_rows import load_prompt_rows

        self.train_rows, self.eval_rows = load_prompt_rows(
            self.config, self.get_tokenizer(), self._train_data, self._test_data, sources=self.read_sources
        )

    @property
    def train_batches(self) -> Iterator[Batch]:
        """Rollouts of what is left of the epoch; batches with nothing to learn are left out.

        Raises:
            TrainerError: of a whole epoch no sample was usable, for the reasons that it has.
        """
        self._lost.clear()
        self._has_lost_all = True
        is_whole = self.position.batch == 0
        has_any = False
        for batch in super().train_batches:
            has_any = has_any or bool(batch)
            if batch:
                yield batch
        if is_whole and not has_any and self._lost and self._has_lost_all and not self.should_stop:
            raise TrainerError(
                f"of a whole epoch nothing could be learnt: {_counted(self._lost)}", stage="train",
                hint="prompts that leave no room for an answer: shorten them, or set data.max_prompt_length, which "
                "leaves them out" if self._lost.keys() == {"prompt_too_long"} else "",
            )  # fmt: skip

    def evaluate(self, test_data: Any = None) -> TrainMetrics:
        """The mean reward of one answer to each prompt: `accuracy`, and `eval/reward_mean` among others. No loss."""
        from farstep.trainers.rl.evaluation import evaluate

        self.settle()
        return evaluate(self, test_data)

    def _submit(self, batch: Batch, loss_fn: str | LossFunction, **options: Any) -> PendingStep:
        pending = super()._submit(batch, loss_fn, **options)
        self._metrics_of[pending] = dict(self._experienced)
        return pending

    def _finish(self, pending: PendingStep) -> dict[str, float]:
        self._reported = self._metrics_of.pop(pending, {})
        return super()._finish(pending)

    def report_step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        found = {**metrics, **self._reported}
        if self.policy_loss.is_unit:
            found.pop("clip_fraction", None)  # how the worker's loss is made to have ratios of 1
        return super().report_step(found)

    def _release(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        super()._release()

    @property
    def _uses_policy_loss(self) -> bool:
        """Whether nobody has chosen another loss."""
        return type(self).loss_fn == Trainer.loss_fn


def _counted(reasons: Mapping[str, int]) -> str:
    """`16 samples: prompt too long`, and so on."""
    return ", ".join(
        f"{count:,} sample{'s' * (count != 1)}: {reason.replace('_', ' ')}" for reason, count in reasons.items()
    )


def _require_torch() -> None:
    from farstep.errors import MissingExtraError
    from farstep.trainers.own_loss import import_torch

    try:
        import_torch()
    except MissingExtraError as error:
        raise ConfigError(
            "the worker has no such loss, and here there is no torch",
            field="rl",
            hint="without dual_clip and kl_corrected, and with kl_type k3, it is the worker's",
        ) from error


def _require_rewards(rollout: Rollout) -> None:
    """Raises TrainerError where samples were to be trained and nobody has said how good they are."""
    lacking = [sample for sample in rollout.samples if sample.rows and sample.reward is None]
    if lacking:
        first = lacking[0]
        raise TrainerError(
            f"{len(lacking)} of {len(rollout.samples)} samples have no reward, the first is sample "
            f"{first.sample_index} of prompt {first.prompt_index}: the agent gave none for them",
            field="reward_fn", stage="train",
            hint="have the agent return a number or drop the sample (ctx.drop), or give reward_fn",
        )  # fmt: skip
