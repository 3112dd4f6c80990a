"""`Toolkit`: the verbs of a trainer for those who write their own loop: prompts, rollouts, scores of other roles.

    with GRPOTrainer(config, train_data=rows, reward_fn=reward) as trainer:
        trainer.init()
        for prompts in trainer.load_prompt_batches(rows, batch_size=8):
            with trainer.rollout_session() as session:
                rollout = trainer.rollout_batch(prompts.prompts, 8, reward_fn=reward)
            trainer.step(my_rows(rollout), "importance_sampling")

Each is a call of the data part, of `farstep.rollout` or of `roles`, and holds nothing of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from farstep.trainers.errors import RolloutError, TrainerError
from farstep.trainers.loop import Loop
from farstep.trainers.role import Role
from farstep.trainers.roles import Roles, Rows, ValueLoss
from farstep.types import AdamParams

if TYPE_CHECKING:
    from farstep.rollout import Rollout, RolloutSession, SamplingParams
    from farstep.service import ServiceClient
    from farstep.trainers.data.prompts import PromptBatch
    from farstep.trainers.resume import ResumePoint
    from farstep.trainers.sequence import TrainSequence
    from farstep.training import TrainingClient


class Toolkit(Loop):
    """Of a trainer."""

    roles: Roles

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rollouts: list[RolloutSession] = []

    # Prompts and rollouts

    def load_prompt_batches(
        self,
        dataset: Any,
        *,
        batch_size: int,
        max_prompt_tokens: int | None = None,
        prompt_key: str = "prompt",
        solutions_key: str = "solutions",
    ) -> Iterator[PromptBatch]:
        """One pass over rows with prompts, in their order; those that are too long are skipped and counted.

        Raises:
            DataError: no list of rows, or a row without its prompt (with its number and keys).
        """
        from farstep.trainers.data.prompts import load_prompt_batches

        return load_prompt_batches(
            dataset,
            self.get_tokenizer(),
            batch_size=batch_size,
            max_prompt_tokens=max_prompt_tokens,
            prompt_key=prompt_key,
            solutions_key=solutions_key,
            config=self.config.data,
        )

    def rollout_session(self, **settings: Any) -> RolloutSession:
        """A session on the present weights; a with-block of either colour. `settings` are those of RolloutSettings."""
        self._require_init("rollout_session")
        self.settle()
        return _session_of(self, settings)

    def rollout_batch(
        self,
        prompts: Sequence[Any],
        n_samples: int = 1,
        sampling_params: SamplingParams | None = None,
        **options: Any,
    ) -> Rollout:
        """As the session's; inside the with-block of a `rollout_session` alone.

        Raises:
            RolloutError: a RuntimeError; there is no open session.
        """
        return self._open_session("rollout_batch").rollout_batch(prompts, n_samples, sampling_params, **options)

    def rollout_token_batch(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        n_samples: int = 1,
        sampling_params: SamplingParams | None = None,
        **options: Any,
    ) -> Rollout:
        """The same of prompts that are token ids."""
        session = self._open_session("rollout_token_batch")
        return session.rollout_token_batch(prompt_tokens, n_samples, sampling_params, **options)

    async def rollout_batch_async(self, *args: Any, **options: Any) -> Rollout:
        return await self._open_session("rollout_batch_async").rollout_batch_async(*args, **options)

    async def rollout_token_batch_async(self, *args: Any, **options: Any) -> Rollout:
        return await self._open_session("rollout_token_batch_async").rollout_token_batch_async(*args, **options)

    def _open_session(self, call: str) -> RolloutSession:
        if not self._rollouts:
            raise RolloutError(f"{call} needs an open session", hint="with trainer.rollout_session() as session: …")
        return self._rollouts[-1]

    # Roles

    def ensure_roles(self, roles: Mapping[str, Role] | Iterable[Role]) -> None:
        """Makes the runs of roles that are not there yet.

        Raises:
            RoleError: another role has the name, or only a TrainingClient was given, which makes no runs.
            MissingRoleCapability: a checkpoint lacks what the role is for.
        """
        self._require_init("ensure_roles")
        self.roles.ensure(roles)

    def score_logprobs(self, role: str, token_rows: Rows) -> list[list[float]]:
        """What a role (or "policy", the run itself) says of each token of rows: [T] each, 0 for the first.

        Raises:
            RoleError: the role was not ensured.
            MissingRoleCapability: it has another head.
        """
        self._require_init("score_logprobs")
        return self.roles.logprobs(role, token_rows)

    def score_values(self, role: str, token_rows: Rows) -> list[list[float]]:
        """What a critic expects before each token is chosen: [T] each, 0 for the first. Raises as `score_logprobs`."""
        self._require_init("score_values")
        return self.roles.values(role, token_rows)

    def score_rewards(self, role: str, token_rows: Rows) -> list[float]:
        """What a reward model says of each row, read at its last token. Raises as `score_logprobs`."""
        self._require_init("score_rewards")
        return self.roles.rewards(role, token_rows)

    def train_values(
        self,
        role: str,
        batch: Sequence[TrainSequence],
        *,
        mini_bs: int | None = None,
        gradient_accumulation_steps: int | None = None,
        cliprange_value: float = 0.5,
        value_loss_coef: float = 0.5,
    ) -> dict[str, float]:
        """Trains a critic on rows with `returns` and `values`; gives the last optimizer step's metrics.

        Raises:
            RoleError: the role was not ensured.
            MissingRoleCapability: it is no critic, or not to be trained.
        """
        self._require_init("train_values")
        return self.roles.train_values(
            role,
            batch,
            self.role_adam_params(self.roles.learning_rate(role, self.config.optimizer.lr)),
            loss=ValueLoss(cliprange_value, value_loss_coef),
            mini_bs=mini_bs,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )

    def role_adam_params(self, learning_rate: float) -> AdamParams:
        """Of a role's optimizer: the configuration's, at a rate of its own that stays."""
        wanted = self.config.optimizer
        return AdamParams(
            learning_rate=learning_rate,
            beta1=wanted.betas[0],
            beta2=wanted.betas[1],
            eps=wanted.eps,
            weight_decay=wanted.weight_decay,
            grad_clip_norm=wanted.grad_clip,
        )

    def create_roles(self, resume_from: ResumePoint | None = None) -> None:
        """Those that the trainer needs; ones that were trained go on from where the run does."""
        self.roles = Roles(self.client, self.service, create=self.create_role_client, mini_bs=self.config.mini_bs)
        saved: Mapping[str, str] = resume_from.state.get("roles", {}) if resume_from is not None else {}
        self.roles.remember(self.global_step, saved)
        self.roles.ensure(self.needed_roles(), resume=saved)

    def needed_roles(self) -> list[Role]:
        """Those that this trainer asks; here none."""
        return []

    def create_role_client(self, service: ServiceClient, role: Role, resume_from: str | None) -> TrainingClient:
        """A run for a role: from its path, else from where the trainer's own run began, with a fresh value head where
        one is needed; from `resume_from` with its optimizer."""
        config, lora = self.config, self.config.model.lora
        options: dict[str, Any] = {"with_sampler": False, "name": f"{config.name}-{role.name}"}
        if resume_from is not None:
            return service.create_training_client_from_state_with_optimizer(resume_from, **options)
        path = role.path if role.path is not None else config.model.path
        if path is not None:
            head = True if role.head == "value" else None  # None: as the checkpoint has it
            return service.create_training_client_from_state(path, value_head=head, **options)
        return service.create_lora_training_client(
            config.model.base,
            lora.r,
            alpha=lora.alpha,
            target_modules=lora.target_modules,
            train_attn=lora.train_attn,
            train_mlp=lora.train_mlp,
            value_head=role.head != "lm",
            seed=lora.seed if lora.seed is not None else config.seed,
            **options,
        )

    def trainer_state(self) -> dict[str, Any]:
        """Roles that are trained are saved with it."""
        state = super().trainer_state()
        engines = [engine for engine in self.engines.all if engine.name == "state"]
        if not engines:
            return state
        kept = {saved.step for engine in self.engines.all for saved in engine.kept}
        self.roles.keep({*kept, self.global_step})
        return state | {"roles": self.roles.save(self.global_step, ttl_seconds=engines[0].config.ttl_seconds)}

    def _release(self) -> None:
        for session in self._rollouts[:]:
            session.__exit__(None, None, None)
        if hasattr(self, "roles"):
            self.roles.close()
        super()._release()

    # Checkpoints

    def save_checkpoint(self, path: str | Path) -> Path:
        """Writes the present adapter in PEFT's format to a folder that is not there yet, and gives it."""
        self._require_init("save_checkpoint")
        if self.service is None:
            raise TrainerError("only a ServiceClient exports checkpoints", stage="checkpoint",
                               hint="give client=ServiceClient(…) instead of a TrainingClient")  # fmt: skip
        self.settle()
        name = f"export-{self.global_step:06d}"
        saved = self.client.save_state(name, ttl_seconds=24 * 3600, overwrite=True).result()
        return self.service.export_checkpoint(saved.path, "peft", path)


def _session_of(trainer: Toolkit, settings: Mapping[str, Any]) -> RolloutSession:
    """A session that its trainer knows of while it is open."""
    from farstep.rollout.session import RolloutSession

    class Known(RolloutSession):
        def __enter__(self) -> Self:
            super().__enter__()
            trainer._rollouts.append(self)
            return self

        async def __aenter__(self) -> Self:
            await super().__aenter__()
            trainer._rollouts.append(self)
            return self

        def _end(self) -> None:
            super()._end()
            if self in trainer._rollouts:
                trainer._rollouts.remove(self)

    return Known(trainer.client, tokenizer=trainer.get_tokenizer(), **settings)
