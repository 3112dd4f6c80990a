"""The configuration of a trainer: one strict model for all of them, from YAML, mappings or keywords alike.

Whichever way it came, it is the same object: names of other systems and short forms are put in their place first
(`normal`), then the trainer's own defaults (`defaults`), then everything is checked. It reads no data, asks no server,
and needs neither torch nor a GPU. It is frozen; `merged` makes another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from farstep.trainers.config.algorithms import PreferenceConfig, RLConfig, SamplingConfig
from farstep.trainers.config.checkpoints import CheckpointConfig
from farstep.trainers.config.data import DataConfig
from farstep.trainers.config.defaults import DEFAULTS, READERS, with_defaults
from farstep.trainers.config.mistakes import from_validation
from farstep.trainers.config.model import ModelConfig, Name
from farstep.trainers.config.normal import normalized
from farstep.trainers.config.numbers import Count, Positive, Whole
from farstep.trainers.config.optimization import OptimizerConfig, SchedulerConfig
from farstep.trainers.config.section import Section
from farstep.trainers.config.tracking import EarlyStoppingConfig, TrackerConfig
from farstep.trainers.errors import ConfigError

DRY_RUN_ROWS, DRY_RUN_STEPS, DRY_RUN_SUFFIX = 50, 10, "-dry-run"


class TrainerConfig(Section):
    """Every setting of every trainer, with its default.

    `batch_size` is examples (prompts in RL) of an optimizer step, `mini_bs` rows of a pass over the model. `max_steps`
    wins over `epochs`. A subclass may add fields of its own; other things of the user's go into `extra`.

    Raises:
        ConfigError: (also a ValueError) with the place of the mistake.
    """

    type: Name = "sft"
    name: Name = "farstep-run"
    model: ModelConfig
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    preference: PreferenceConfig = PreferenceConfig()
    rl: RLConfig = RLConfig()
    sampling: SamplingConfig = SamplingConfig()
    checkpoint: tuple[CheckpointConfig, ...] = (CheckpointConfig(),)
    trackers: tuple[TrackerConfig, ...] = ()
    early_stopping: EarlyStoppingConfig | None = None

    epochs: Positive = 1
    max_steps: Positive | None = None
    batch_size: Positive = 8
    mini_bs: Positive | None = Field(
        default=None, description="the whole batch where absent: the worker packs by itself"
    )
    gradient_accumulation_steps: Positive | None = Field(
        default=None, description="passes of an optimizer step; all of a batch's where absent"
    )
    min_iterations: Count = Field(default=0, description="repeat the data until an epoch has so many batches")
    exit_iteration: Count = Field(default=0, description="end after this step; the schedule stays that of max_steps")
    exit_iteration_this_run: Count = 0
    eval_interval: Count = Field(default=0, description="optimizer steps between evaluations")
    log_interval: Positive = 1
    sample_log_count: Count = Field(default=0, description="completions shown at each evaluation")
    overfit_first_batch: bool = False
    seed: Whole = 42
    output_dir: Name = "farstep-runs"
    report: bool = Field(default=True, description="write report.html into the run's folder when it ends")
    kill_switch_path: Name | None = Field(default=None, description="a file whose appearance ends the run")
    callback_errors: Literal["raise", "log"] = "raise"
    code: tuple[Name, ...] = Field(
        default=(), description="Python files to load first: trainers and sources of one's own"
    )
    skip_validation: bool = False
    dry_run: bool = False
    hooks: tuple[tuple[str, Callable[..., Any]], ...] = ()
    extra: Mapping[str, Any] = {}

    unserialized: ClassVar[frozenset[str]] = frozenset({"hooks"})

    def __init__(self, /, **settings: Any) -> None:
        values, written = normalized(settings, own=frozenset(type(self).model_fields))
        kind = values.get("type", type(self).model_fields["type"].default)
        values = with_defaults(values, DEFAULTS.get(kind, {}) if isinstance(kind, str) else {})
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise from_validation(error, type(self), written) from error

    @field_validator("checkpoint", mode="after")
    @classmethod
    def _one_resumes(cls, value: tuple[CheckpointConfig, ...]) -> tuple[CheckpointConfig, ...]:
        if sum(one.auto_resume and one.enabled for one in value) > 1:
            raise ValueError("only one may have auto_resume: which of them would be resumed from?")
        places = [(one.output_dir, one.name) for one in value if one.type == "export" and one.enabled]
        if len(set(places)) < len(places):
            raise ValueError("one export would write over another: give one of them a name, or another output_dir")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for section, readers in READERS.items():
            given = getattr(self, section)
            if self.type in DEFAULTS and self.type not in readers and given != type(given)():
                raise ConfigError(
                    f"the trainer {self.type!r} has no such settings",
                    field=section,
                    hint=f"of {', '.join(sorted(readers))}",
                )
        if self.data.max_prompt_length is not None and self.type in ("sft", "causal"):
            raise ConfigError(
                f"the trainer {self.type!r} has no limit of its own for prompts",
                field="data.max_prompt_length",
                hint="data.max_length cuts whole rows; dpo cuts prompts, and RL skips rows, over this",
            )
        if self.data.has_eval and not self.eval_interval:
            raise ConfigError(
                "missing: there is data to evaluate on, and nothing says how often",
                field="eval_interval",
                hint="optimizer steps between evaluations",
            )
        return self

    def check_evaluation(self, *, test_data: bool = False) -> None:
        """`eval_interval` is set exactly when there is something to evaluate on; `test_data`: it is given elsewhere.

        Raises:
            ConfigError: it is not.
        """
        has_data = self.data.has_eval or test_data
        if not self.eval_interval:
            self._check_nobody_waits()
        if test_data and self.data.train_eval_share:
            raise ConfigError("there is test data already", field="data.train_eval_split", hint="give one of them")
        if self.eval_interval and not has_data:
            raise ConfigError(
                "there is nothing to evaluate on",
                field="eval_interval",
                hint="give data.eval_sources, data.train_eval_split or test data",
            )
        if has_data and not self.eval_interval:
            raise ConfigError("missing: there is data to evaluate on", field="eval_interval")

    def _check_nobody_waits(self) -> None:
        """For evaluations, where there will be none."""
        waiting = {"early_stopping": self.early_stopping is not None}
        waiting |= {f"checkpoint[{index}].keep_best": bool(one.keep_best) for index, one in enumerate(self.checkpoint)}
        for field, waits in waiting.items():
            if waits:
                raise ConfigError("goes by evaluations, and there are none", field=field,
                                  hint="give test data and eval_interval")  # fmt: skip

    def merged(self, changes: Mapping[str, Any]) -> Self:
        """This configuration with `changes`, section by section; lists are replaced whole.

        Raises:
            ConfigError: an unknown or wrong setting, or another `type`.
        """
        cls = type(self)
        values, written = normalized(changes, own=frozenset(cls.model_fields))
        if values.get("type", self.type) != self.type:
            raise ConfigError(f"is {self.type!r} and cannot become {values['type']!r}", field="type")
        known = {name: getattr(self, name) for name in cls.model_fields}
        try:
            return cls(**_overlaid(known, values))
        except ConfigError as error:
            raise ConfigError(error.message, field=written.get(error.field, error.field), hint=error.hint) from error

    def for_dry_run(self) -> Self:
        """The same run in small: at most 50 rows and 10 steps, through every stage, with a checkpoint at its end.

        It has a name, and so a folder, of its own: what the run itself has saved stays where it is.
        """
        steps = min(self.max_steps or DRY_RUN_STEPS, DRY_RUN_STEPS)
        rows = min(self.data.max_rows or DRY_RUN_ROWS, DRY_RUN_ROWS)
        saved = tuple(
            one.model_copy(update={"save_end_of_training": True, "auto_resume": False}) for one in self.checkpoint
        )
        return self.model_copy(
            update={
                "dry_run": True,
                "name": f"{self.name.removesuffix(DRY_RUN_SUFFIX)}{DRY_RUN_SUFFIX}",
                "max_steps": steps,
                "min_iterations": min(self.min_iterations, steps),
                "eval_interval": min(self.eval_interval, steps),
                "log_interval": 1,
                "data": self.data.model_copy(update={"max_rows": rows}),
                "checkpoint": saved or (CheckpointConfig(),),
            }
        )

    def resolved(self, form: str = "yaml") -> str:
        """Every setting with its value, as `yaml` or as `python` that makes this object. Without tokens."""
        from farstep.trainers.config.resolved import as_python, as_yaml

        match form:
            case "yaml":
                return as_yaml(self)
            case "python":
                return as_python(self)
            case _:
                raise ValueError(f"form: {form!r} is neither 'yaml' nor 'python'")


def _overlaid(known: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(known)
    for key, change in changes.items():
        present = merged.get(key)
        if isinstance(change, Mapping) and isinstance(present, Section):
            merged[key] = _overlaid({name: getattr(present, name) for name in type(present).model_fields}, change)
        else:
            merged[key] = change
    return merged
