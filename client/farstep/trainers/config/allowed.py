"""`Allowed`: what a configuration may name that reaches beyond itself. Whoever wrote it may be anybody.

A user's own configuration may name anything. A server that runs other people's allows `NOTHING` of this, or what it
chooses; the names of models, data sets of the hub, https addresses and rows remain. Judges settings, and reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farstep.trainers.config.sources import BlobConfig, CallableConfig, FileConfig, HuggingFaceConfig, SourceConfig
from farstep.trainers.errors import ConfigError

if TYPE_CHECKING:
    from farstep.trainers.config.trainer import TrainerConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Allowed:
    """
    Args:
        code: Python: files, "module:function", functions, hooks, and what a library is to do with free arguments.
        files: places on this machine, to read and to write.
        environment: variables of this process, whose content is sent somewhere.
        plain_http: addresses that anybody on the way reads and changes.
        private_addresses: of this machine and of the networks that it is in.
        trackers: of others, with this machine's accounts.
    """

    code: bool = True
    files: bool = True
    environment: bool = True
    plain_http: bool = True
    private_addresses: bool = True
    trackers: bool = True

    def check(self, config: TrainerConfig) -> None:
        """
        Raises:
            ConfigError: naming the first setting that is not allowed here.
        """
        for ability, field, what in _named(config):
            if not getattr(self, ability):
                raise ConfigError(f"{what} may not be named here", field=field, hint=_HINTS.get(ability, ""))


ANYTHING = Allowed()
NOTHING = Allowed(code=False, files=False, environment=False, plain_http=False, private_addresses=False, trackers=False)

_HINTS = {
    "code": "only what is registered where this runs",
    "files": "rows, an https address, or a data set of the hub",
    "environment": "give token",
    "plain_http": "https",
    "private_addresses": "a public address",
}

_Named = Iterator[tuple[str, str, str]]


def _named(config: TrainerConfig) -> _Named:
    """(ability, field, what) of every setting that needs one."""
    if config.code:
        yield "code", "code", "Python files"
    if config.hooks:
        yield "code", "hooks", "functions"
    for name in ("sources", "eval_sources"):
        for index, source in enumerate(getattr(config.data, name)):
            yield from _of_source(source, f"data.{name}[{index}]")
    yield from _functions(config)
    yield from _places(config)
    for index, tracker in enumerate(config.trackers):
        if tracker.name != "jsonl":
            yield "trackers", f"trackers[{index}].name", f"the tracker {tracker.name!r}"


def _of_source(source: SourceConfig, field: str) -> _Named:
    match source:
        case CallableConfig():
            yield "code", f"{field}.function", "functions"
        case FileConfig():
            yield "files", f"{field}.path", "files of this machine"
        case HuggingFaceConfig():
            if not _HUB_ID.fullmatch(source.name):
                yield "files", f"{field}.name", "folders of this machine"
            if source.kwargs:
                yield "code", f"{field}.kwargs", "arguments of load_dataset"
        case BlobConfig():
            if source.token_env is not None:
                yield "environment", f"{field}.token_env", "variables of the environment"
            if source.allow_http:
                yield "plain_http", f"{field}.allow_http", "plain http"
            if source.allow_private:
                yield "private_addresses", f"{field}.allow_private", "private addresses"


def _functions(config: TrainerConfig) -> _Named:
    operators: Any = getattr(config, "operators", None)
    for section, name in ((config.rl, "reward"), (config.rl, "agent"), (operators, "reward"), (operators, "agent")):
        if section is not None and getattr(section, name) is not None:
            yield "code", f"{'rl' if section is config.rl else 'operators'}.{name}", "functions"


def _places(config: TrainerConfig) -> _Named:
    operators: Any = getattr(config, "operators", None)
    places = {
        "data.cache_dir": config.data.cache_dir,
        "kill_switch_path": config.kill_switch_path,
        "operators.checkpoint_dir": getattr(operators, "checkpoint_dir", None),
        "operators.resume_from": getattr(operators, "resume_from", None),
    }
    for index, engine in enumerate(config.checkpoint):
        places[f"checkpoint[{index}].output_dir"] = engine.output_dir
    for index, tracker in enumerate(config.trackers):
        places |= {f"trackers[{index}].dir": tracker.dir, f"trackers[{index}].path": tracker.path}
    if config.output_dir != type(config).model_fields["output_dir"].default:
        places["output_dir"] = config.output_dir
    if config.model.tokenizer is not None and not _HUB_ID.fullmatch(config.model.tokenizer):
        places["model.tokenizer"] = config.model.tokenizer
    for field, place in places.items():
        if place is not None:
            yield "files", field, "places on this machine"
