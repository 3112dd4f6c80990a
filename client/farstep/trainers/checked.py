"""`Checked`: the part of a trainer that takes its inputs and says what is wrong with them, before anything is paid for.

The checks may come in any order and again and again, until training begins. `mark_validated` wants those that the
trainer `needs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from farstep.trainers.checks import check_agent, probe_reward, resolve_function
from farstep.trainers.errors import ConfigError, TrainerError
from farstep.trainers.lifecycle import Lifecycle, TrainerState
from farstep.trainers.parts import check_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from farstep.trainers.config import TrainerConfig

ConfigLike = Any  # a TrainerConfig, a mapping, a path, YAML text, or a dataclass


class Checked:
    """Of a trainer."""

    name: ClassVar[str]
    config_class: ClassVar[type[TrainerConfig] | None] = None
    config_defaults: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[Sequence[str]] = ("dataset", "config")
    rows_per_group: ClassVar[int] = 1
    row_names: ClassVar[Sequence[str]] = ()  # of the rows of a group, in the report
    requires_rollout: ClassVar[bool] = False

    def __init__(self, config: ConfigLike | None) -> None:
        self._lifecycle = Lifecycle(self.needs)
        self._config = self._parsed(config) if config is not None else None
        self._agent: Any = None
        self._train_data: Any = None
        self._test_data: Any = None
        self._reward_fn: Callable[..., Any] | None = None

    @property
    def state(self) -> TrainerState:
        return self._lifecycle.state

    @property
    def config(self) -> TrainerConfig:
        """Raises ConfigError where none was given yet."""
        if self._config is None:
            raise ConfigError("this trainer has no configuration", hint="give one to the constructor or check_config")
        return self._config

    @property
    def given_rows(self) -> Any:
        """The rows to train on that were given beside the configuration; None where its sources count."""
        return self._train_data

    @property
    def given_agent(self) -> Any:
        """Of rollouts; None where there is none."""
        return self._agent

    @property
    def has_reward(self) -> bool:
        return self._reward_fn is not None

    def check_agent(self, agent: Any) -> None:
        """Takes the agent of rollouts: a function, something with `run_agent`, or "module:function"."""
        with self._checking("agent"):
            self._agent = check_agent(agent)

    def check_dataset(self, train_data: Any = None, test_data: Any = None) -> None:
        """Takes the data: lists of rows (mappings or TrainSequences); None: the configuration's sources.

        Raises:
            TrainerError: naming the row and the keys that it has; or there are neither rows nor sources.
        """
        with self._checking("dataset"):
            if train_data is None and not (self._config is not None and self._config.data.sources):
                raise TrainerError("there is nothing to train on", field="train_data", stage="validate",
                                   hint="give rows here, or data.sources in the configuration")  # fmt: skip
            for field, rows in (("train_data", train_data), ("test_data", test_data)):
                if rows is not None and not (field == "test_data" and rows == []):
                    self._check_rows(rows, field)
            self._train_data = train_data
            self._test_data = test_data

    def check_reward(self, reward_fn: Any = None, *, probe: Any = None) -> None:
        """Takes the reward function, or "module:function", which is looked up now.

        Args:
            probe: a row to try it on; it has to give a finite number.

        Raises:
            TrainerError: there is none and this trainer needs one; or it cannot be found, called, or used.
        """
        with self._checking("reward"):
            if reward_fn is None:
                if "reward" in self.needs:
                    raise TrainerError(f"the trainer {self.name!r} needs a reward function", field="reward_fn",
                                       stage="validate")  # fmt: skip
                self._reward_fn = None
                return
            function = resolve_function(reward_fn, field="reward_fn")
            if probe is not None:
                probe_reward(function, probe)
            self._reward_fn = function

    def check_config(self, config: ConfigLike | None = None) -> None:
        """Takes a configuration: a mapping changes the known settings of the present one, an object replaces it.

        Raises:
            ConfigError: naming the setting.
        """
        with self._checking("config"):
            if isinstance(config, Mapping) and self._config is not None:
                self._config = self._config.merged(config)
            elif config is not None:
                self._config = self._parsed(config)
            checked = self.config
            if checked.model.lora.load_in_4bit:
                raise ConfigError(
                    "no server of ours loads models in 4 bits",
                    field="model.lora.load_in_4bit",
                    hint="leave it out: the adapter is trained beside the model as it is",
                )
            if not checked.skip_validation:
                check_parts(type(self), checked)
            if checked.dry_run:
                self._config = checked.for_dry_run()

    def mark_validated(self) -> None:
        """Raises TrainerError where a needed check has not passed, or this is not the time."""
        self._lifecycle.mark_validated()

    def validate(self) -> None:
        """All checks that are needed, on what the constructor was given."""
        self.check_config()
        if self._agent is not None or "agent" in self.needs:
            self.check_agent(self._agent)
        self.check_dataset(self._train_data, self._test_data)
        self.check_reward(self._reward_fn)
        self.config.check_evaluation(test_data=bool(self._test_data))
        self.mark_validated()

    def _check_rows(self, rows: Any, field: str) -> None:
        from farstep.trainers.row_sources import check_given

        check_given(rows, type(self), self._config, field=field)

    @contextmanager
    def _checking(self, check: str) -> Iterator[None]:
        self._lifecycle.may_check(check)
        try:
            yield
        except BaseException:
            self._lifecycle.failed(check)
            raise
        self._lifecycle.passed(check)

    @classmethod
    def _parsed(cls, config: ConfigLike) -> TrainerConfig:
        """As an object of this trainer's class; what it leaves open is as this trainer, or its parent, has it."""
        from farstep.trainers.config import TrainerConfig, load_config
        from farstep.trainers.config.defaults import with_defaults
        from farstep.trainers.config.load import settings_of
        from farstep.trainers.config.normal import normalized

        config_class = cls.config_class or TrainerConfig
        if isinstance(config, config_class):
            return cls._of_this_type(config)
        settings = {"type": cls.name or "sft", **settings_of(config)}
        if not isinstance(config, TrainerConfig) and (defaults := cls._own_defaults()):
            settings, _ = normalized(settings, own=frozenset(config_class.model_fields))
            settings = with_defaults(settings, defaults)
        return cls._of_this_type(load_config(settings, config_class))

    @classmethod
    def _own_defaults(cls) -> Mapping[str, Any]:
        """Of `config_defaults` and of the nearest parent that has a name with defaults; none for such a one itself."""
        from farstep.trainers.config.defaults import DEFAULTS, with_defaults

        found: dict[str, Any] = {}
        for base in cls.__mro__:
            found = with_defaults(found, vars(base).get("config_defaults", {}))
            if (name := vars(base).get("name", "")) in DEFAULTS:
                return with_defaults(found, DEFAULTS[name]) if found or name != cls.name else {}
        return found

    @classmethod
    def _of_this_type(cls, config: TrainerConfig) -> TrainerConfig:
        from farstep.trainers.registry import Registered

        known = {getattr(base, "name", "") for base in cls.__mro__ if issubclass(base, Registered)}
        if cls.name and config.type not in known:
            raise ConfigError(f"{config.type!r} is another trainer than {cls.name!r}", field="type",
                              hint=f"Trainer.get({config.type!r}) gives its class")  # fmt: skip
        return config.for_dry_run() if config.dry_run else config
