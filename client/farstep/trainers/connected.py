"""`Connected`: a trainer's run on a trainer process: which one, how it begins, and the tokenizer of its model.

A client that was given is used as it is and never closed; one that is made here is the trainer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farstep.trainers.checked import Checked, ConfigLike
from farstep.trainers.errors import TrainerError
from farstep.trainers.hooks import hooked
from farstep.trainers.resume import ResumePoint, taken_over
from farstep.training import TrainingClient

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from farstep.service import ServiceClient


class Connected(Checked):
    """Of a trainer."""

    client: TrainingClient

    def __init__(self, config: ConfigLike | None, client: ServiceClient | TrainingClient | None) -> None:
        super().__init__(config)
        self._given_client = client
        self.service: ServiceClient | None = None
        self._owns_service = False
        self._tokenizer: PreTrainedTokenizerBase | None = None

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
        return self.requires_rollout or self.config.sample_log_count > 0 or self._reward_fn is not None

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
