"""From a configuration to data sets: what trainers call, and `process-data` before them.

It needs a tokenizer, and neither a GPU nor a server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farstep.trainers.config.trainer import TrainerConfig
from farstep.trainers.data.adapters.base import Limits, adapter_for
from farstep.trainers.data.cache import Cache, key_of, source_key
from farstep.trainers.data.collection import RawRows, collected, content_of, given_rows
from farstep.trainers.data.dataset import Dataset
from farstep.trainers.data.processing import Plan, Progress, processed
from farstep.trainers.data.tokens import tokenizer_fingerprint
from farstep.trainers.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Datasets:
    """What to train on, and what to evaluate on, if anything."""

    train: Dataset
    eval: Dataset | None = None


def load(
    config: TrainerConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_data: object = None,
    test_data: object = None,
    rows_per_group: int | None = None,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Datasets:
    """
    Args:
        train_data, test_data: rows (or a `Dataset`) instead of those that the configuration names.
        rows_per_group: sequences that belong together; 2 for dpo and ipo where absent, else 1.
        max_length: what the model takes; the configuration's limits hold where they are lower.
        progress: called with rows done and rows in all.

    Raises:
        DataError: there is nothing to train on, a source or row is wrong, or a cache is missing that must be there.
    """
    groups = rows_per_group if rows_per_group is not None else 2 if config.type in ("dpo", "ipo") else 1
    plan = plan_of(config, max_length=max_length, rows_per_group=groups)
    if plan.config.join_texts and plan.limits.max_length is None:
        raise DataError("to join texts into rows of one length, give that length", field="data.max_length")
    loading = _Loading(config, plan, tokenizer, progress)
    train = _given(train_data, groups) or loading.part("train", train_data)
    held_out = _given(test_data, groups) or loading.part("eval", test_data)
    if train is None:
        raise DataError("there is nothing to train on", field="data.sources", hint="give dataset, or train_data")
    for dataset, name in ((train, "data.sources"), (held_out, "data.eval_sources")):
        if dataset is not None and not len(dataset):
            hint = "" if not dataset.report.truncated else (
                f"prompts fill the {plan.limits.max_length} tokens of a row: raise data.max_length if the model takes "
                "more, or shorten them"
            )  # fmt: skip
            raise DataError(f"no row is left: {dataset.report}", field=name, hint=hint)
    return Datasets(train, held_out)


def plan_of(config: TrainerConfig, *, max_length: int | None, rows_per_group: int) -> Plan:
    """The lowest of the limits: the model's, the adapter's, the data's."""
    limits = [one for one in (max_length, config.data.max_length, config.model.lora.max_length) if one is not None]
    return Plan(config.data, Limits(min(limits, default=None), config.data.max_prompt_length), rows_per_group)


@dataclass(slots=True)
class _Loading:
    """One call of `load`: sources are read at most once, and only if a cache does not have what they give."""

    config: TrainerConfig
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    progress: Progress | None
    sources_rows: tuple[RawRows | None, RawRows | None] | None = None

    def part(self, part: str, data: object) -> Dataset | None:
        raw = None if data is None else given_rows(data, field="train_data" if part == "train" else "test_data")
        settings = self.plan.config
        if raw is None and not (settings.sources if part == "train" else settings.has_eval):
            return None
        cache = Cache(settings.cache_dir) if settings.cache_dir is not None else None
        key = self._key(part, raw) if cache is not None else ""
        found = cache.load(key) if cache is not None else None
        if found is not None:
            return Dataset(found[0], self.plan.rows_per_group, found[1], from_cache=True)
        if settings.fail_on_missing_cache:
            where = f"in {cache.path(key)}" if cache is not None else "data.cache_dir is not set"
            hint = "run process-data with this configuration first"
            raise DataError(f"the data is not in the cache: {where}", field="data.fail_on_missing_cache", hint=hint)
        rows = raw if raw is not None else self._collected(part)
        if rows is None:
            return None
        table, report = processed(rows, self.tokenizer, self.plan, progress=self.progress)
        if cache is not None:
            cache.save(key, table, report, about={"part": part, "name": self.config.name})
        return Dataset(table, self.plan.rows_per_group, report)

    def _collected(self, part: str) -> RawRows | None:
        if self.sources_rows is None:
            self.sources_rows = collected(self.plan.config, seed=self._seed)
        return self.sources_rows[0 if part == "train" else 1]

    @property
    def _seed(self) -> int:
        return self.config.seed if self.plan.config.seed is None else self.plan.config.seed

    def _key(self, part: str, raw: RawRows | None) -> str:
        settings = self.plan.config
        rows: Any
        formats: list[str | None] = []
        if raw is not None:
            rows = hashlib.sha256(b"".join(content_of(one.row) for one in raw)).hexdigest()
        else:
            of_eval = part == "eval" and bool(settings.eval_sources)
            sources = settings.eval_sources if of_eval else settings.sources
            rows, formats = [source_key(source) for source in sources], [source.format for source in sources]
        print_ = tokenizer_fingerprint(self.tokenizer)
        return key_of(self.plan, rows, formats=formats, tokenizer=print_, seed=self._seed, part=part)


def _given(data: object, rows_per_group: int) -> Dataset | None:
    if not isinstance(data, Dataset):
        return None
    if data.rows_per_group != rows_per_group:
        raise DataError(f"groups of {data.rows_per_group} sequences, and this trainer takes {rows_per_group}")
    return data


def process_data(
    config: TrainerConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Datasets:
    """Fills the cache, so that training finds its data there: on a machine without GPU or server.

    `max_length` is part of what is cached: give the model's, or set `data.max_length`.

    Raises:
        DataError: as `load`, and if there is no `data.cache_dir`.
    """
    if config.data.cache_dir is None:
        raise DataError("where is the processed data to go?", field="data.cache_dir",
                        hint="set it, or say --cache-dir FOLDER")  # fmt: skip
    making = config.model_copy(update={"data": config.data.model_copy(update={"fail_on_missing_cache": False})})
    return load(making, tokenizer, max_length=max_length, progress=progress)


def check_rows(rows: object, config: TrainerConfig | None = None, *, field: str = "train_data") -> None:
    """Whether rows are a non-empty list of mappings, each with the keys that it needs. Tokenises nothing.

    Raises:
        DataError: with the row's number, and the keys that it has.
    """
    raw = given_rows(rows, field=field)
    name = config.data.format if config is not None else None
    for one in raw:
        try:
            adapter_for(one.row, name).check(one.row)
        except DataError as error:
            raise one.blamed(error) from error
