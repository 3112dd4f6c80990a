"""A preflight: everything about a trainer that can be found wrong without a server or a GPU, looked at before both.

Rows are read and their forms checked, functions are looked up, packages are asked for; nothing is trained or sampled.
Each thing that is looked at is one `Finding`; what is missing says how to get it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from farstep.errors import FarstepError, MissingExtraError
from farstep.trainers.errors import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from farstep.trainers.config import TrainerConfig
    from farstep.trainers.trainer import Trainer

Verdict = Literal["ok", "wrong", "missing", "skipped"]
EMBEDDED = "farstep/tiny"


@dataclass(frozen=True, slots=True)
class Finding:
    """`missing`: a package; `skipped`: it cannot be looked at here, and is no fault."""

    what: str
    verdict: Verdict
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        return self.verdict in ("wrong", "missing")


def preflight(trainer: Trainer, *, with_tokens: bool = True) -> Iterator[Finding]:
    """Findings in the order in which things are needed.

    Args:
        with_tokens: whether rows are made tokens of as well, where the model's tokenizer is on this machine.
    """
    config = trainer.config
    yield Finding("configuration", "ok", f"{trainer.name}, {config.model.base}")
    packages = list(_packages(trainer))
    yield from packages
    yield _looked("trainer", lambda: _validated(trainer))
    if trainer.has_reward:
        yield _looked("reward", lambda: _rewarding(trainer))
    if trainer.given_agent is not None:
        yield Finding("agent", "ok", _name_of(trainer.given_agent))
    if any(package.is_bad for package in packages):
        yield Finding("data", "skipped", "what is missing comes first")
        return
    data = _looked("data", lambda: _read(trainer))
    yield data
    if with_tokens and not data.is_bad and "_check_rows" not in vars(type(trainer)):
        yield _tokens(trainer)


def local_tokenizer(config: TrainerConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer without a server: the one that `model.tokenizer` names, or the base model's own.

    Raises:
        MissingExtraError: transformers is not installed.
        TrainerError: it is neither on this machine nor to be had from the hub.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        hint = "pip install 'farstep[tokenizers]'"
        raise MissingExtraError("a tokenizer needs transformers", hint=hint) from error
    name = config.model.tokenizer or config.model.base
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(_place_of(name), trust_remote_code=False)
    except Exception as error:
        raise TrainerError(
            f"no tokenizer {name!r} on this machine or the hub: {type(error).__name__}: {str(error).splitlines()[0]}",
            field="model.tokenizer",
            stage="data",
            hint="name one, or a folder that has one",
        ) from error
    return found


def _place_of(name: str) -> str:
    """The embedded model lies in its package; that need not be imported for its files to be found."""
    spec = find_spec("farstep_model") if name == EMBEDDED else None
    if spec is None or spec.origin is None:
        return name
    return str(Path(spec.origin).parent / "embedded" / "weights")


def _looked(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except MissingExtraError as error:
        return Finding(what, "missing", str(error))
    except FarstepError as error:
        return Finding(what, "wrong", str(error))


def _packages(trainer: Trainer) -> Iterator[Finding]:
    from farstep.trainers.trackers.base import Tracker

    config = trainer.config
    for each in config.trackers:
        if each.enabled:
            yield _looked(f"tracker {each.name}", lambda name=each.name: Tracker.get(name).require() or "")  # type: ignore[misc]
    sources = [*config.data.sources, *config.data.eval_sources]
    needed = [("datasets", "data", "data sets of the hub")] if any(one.type == "huggingface" for one in sources) else []
    if trainer.has_own_loss:
        needed.append(("torch", "", "a loss of one's own"))
    for package, extra, why in needed:
        if find_spec(package) is None:
            hint = f"pip install 'farstep[{extra}]'" if extra else f"pip install {package}"
            yield Finding(f"package {package}", "missing", f"{why}: {hint}")
        else:
            yield Finding(f"package {package}", "ok", why)


def _validated(trainer: Trainer) -> str:
    from farstep.trainers.lifecycle import TrainerState

    if trainer.state is TrainerState.CREATED:
        trainer.validate()
    return f"needs {', '.join(trainer.needs)}"


def _rewarding(trainer: Trainer) -> str:
    from farstep.rollout.rewards import Reward

    Reward(trainer.reward_fn)
    return _name_of(trainer.reward_fn)


def _name_of(given: Any) -> str:
    from farstep.trainers.config.code import without_code_prefix

    module = without_code_prefix(str(getattr(given, "__module__", "")))
    return f"{module}:{getattr(given, '__qualname__', type(given).__name__)}"


def _read(trainer: Trainer) -> str:
    """Every row of every source, as far as that goes without a tokenizer."""
    from farstep.trainers.data.adapters.base import adapter_for
    from farstep.trainers.data.collection import collected
    from farstep.trainers.errors import DataError

    config = trainer.config
    if trainer.given_rows is not None:
        return f"{len(trainer.given_rows):,} rows that were given"
    seed = config.seed if config.data.seed is None else config.data.seed
    train, held_out = collected(config.data, seed=seed)
    told = []
    has_own_rows = "_check_rows" in vars(type(trainer))  # what its rows mean is the trainer's own affair
    for rows, name in ((train, "rows"), (held_out, "rows to evaluate on")):
        if rows is None:
            continue
        for one in () if has_own_rows else rows:
            row = one.named()
            try:
                adapter_for(row, one.reading.format or config.data.format).check(row)
            except DataError as error:
                raise one.blamed(error) from error
        told.append(f"{len(rows):,} {name}")
    return ", ".join(told) or "none"


def _tokens(trainer: Trainer) -> Finding:
    """What the rows come to, where a tokenizer is at hand."""
    from farstep.trainers.data.load import load

    if trainer.requires_rollout:
        return Finding("tokens", "skipped", "prompts become tokens as they are asked")
    try:
        tokenizer = local_tokenizer(trainer.config)
    except FarstepError as error:
        return Finding("tokens", "skipped", str(error))
    from farstep.trainers.row_sources import is_sequences

    if is_sequences(trainer.given_rows):
        return Finding("tokens", "ok", "given as tokens")
    return _looked(
        "tokens",
        lambda: str(
            load(
                trainer.config, tokenizer, train_data=trainer.given_rows, rows_per_group=trainer.rows_per_group
            ).train.report
        ),
    )
