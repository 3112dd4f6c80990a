"""The optimizer and the schedule of its learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from farstep.trainers.config.numbers import Count, Fractional, NonNegative, Number, Positive
from farstep.trainers.config.section import Section

_Beta = Annotated[Fractional, Field(lt=1)]


class OptimizerConfig(Section):
    """Adam with decoupled weight decay. `lr` is the highest that the schedule reaches."""

    name: Literal["adamw"] = "adamw"
    lr: NonNegative = 1e-4
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: Annotated[Number, Field(gt=0)] = 1e-12
    weight_decay: NonNegative = 0.0
    grad_clip: NonNegative = Field(default=1.0, description="the largest norm of the gradient; 0 does not clip")

    @field_validator("name", mode="before")
    @classmethod
    def _spelling(cls, value: object) -> object:
        """Other systems name an implementation; here there is one, the worker's."""
        others = {"adam", "adamw_torch", "adamw_torch_fused", "adamw_hf", "fused_adam", "fusedadam", "cpu_adam"}
        return "adamw" if isinstance(value, str) and value.lower() in others else value


class SchedulerConfig(Section):
    """lr(step) = `optimizer.lr` × warm-up × decay, of optimizer steps. `warmup_steps` excludes `warmup_ratio`.

    `wsd` stays at the top and decays over its last `decay_steps` (or `decay_ratio` of all steps).
    """

    name: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    warmup_steps: Count | None = None
    warmup_ratio: Fractional | None = None
    min_lr_ratio: Fractional = 0.0
    decay: Literal["linear", "cosine", "sqrt"] = Field(default="linear", description="wsd: the form of its end")
    decay_steps: Positive | None = None
    decay_ratio: Fractional | None = None

    @field_validator("name", mode="before")
    @classmethod
    def _spelling(cls, value: object) -> object:
        others = {"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine", "warmup_stable_decay": "wsd"}
        return others.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_each(self) -> SchedulerConfig:
        for steps, ratio in (("warmup_steps", "warmup_ratio"), ("decay_steps", "decay_ratio")):
            if getattr(self, steps) is not None and getattr(self, ratio) is not None:
                raise ValueError(f"{steps} and {ratio} exclude each other: give one")
        if self.name != "wsd" and (self.decay_steps is not None or self.decay_ratio is not None):
            raise ValueError(f"decay_steps and decay_ratio belong to wsd, not to {self.name}")
        return self

    def num_warmup_steps(self, horizon: int) -> int:
        """Of `horizon` optimizer steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round((self.warmup_ratio or 0.0) * horizon)
