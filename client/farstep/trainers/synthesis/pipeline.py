"""filter → dedupe → synthesize → split: from the items there are to those that are trained and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farstep.trainers.chat import waited_for
from farstep.trainers.errors import DataError, TrainerError
from farstep.trainers.synthesis.config import SynthesisConfig
from farstep.trainers.synthesis.result import Item, SynthesisResult
from farstep.trainers.synthesis.selection import deduplicate, filter_by_score, split
from farstep.trainers.synthesis.synthesizer import Made, Synthesizer


async def synthesize_async(
    items: Sequence[Item],
    config: SynthesisConfig | Mapping[str, Any] | None = None,
    *,
    synthesizer: Synthesizer | None = None,
    **about: Any,
) -> SynthesisResult:
    """
    Args:
        items: what there is; may be empty where the synthesizer needs nothing.
        config: a `SynthesisConfig`, or its settings.
        synthesizer: None: the one of the configuration's `strategy`, made with `about` (llm: `chat=…`; template:
            `template=…`, `values=…`; augment: `augmentations=…`).

    What is made goes through the same filter, and what equals an item that is there already is left out, so that
    train and test share nothing.

    Raises:
        ConfigError, DataError: naming the setting or item.
        TrainerError: nothing at all could be made.
    """
    settings = config if isinstance(config, SynthesisConfig) else SynthesisConfig(**dict(config or {}))
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise DataError(f"a {type(item).__name__}, not a mapping", field=f"items[{index}]")
    maker = synthesizer if synthesizer is not None else _maker(settings, about)
    key = settings.dedupe_key or None
    good = filter_by_score(items, settings.min_score, key=settings.score_key)
    given = deduplicate(good, key)
    made = await maker.make(given, settings.num_samples, seed=settings.seed) if settings.num_samples else Made([])
    if settings.num_samples and not made.items and made.failures:
        raise TrainerError(f"none of {settings.num_samples} items could be made, first: {made.failures[0].reason}",
                           field="num_samples", stage="synthesis")  # fmt: skip
    new = filter_by_score(made.items, settings.min_score, key=settings.score_key)
    together = deduplicate([*given, *new], key)
    kept = together if settings.keep_given else together[len(given) :]
    train, test = split(kept, settings.train_ratio, seed=settings.seed, key=key)
    metadata = {
        "strategy": maker.name or type(maker).__name__,
        "seed": settings.seed,
        "given": len(items),
        "made": len(made.items),
        "failed": len(made.failures),
        "filtered": len(items) - len(good) + len(made.items) - len(new),
        "duplicates": len(good) + len(new) - len(together),
    }
    return SynthesisResult(kept, train, test, made.failures, metadata)


synthesize = waited_for(synthesize_async)


def _maker(settings: SynthesisConfig, about: Mapping[str, Any]) -> Synthesizer:
    options = dict(about)
    if settings.strategy == "llm":
        for name in ("max_running", "max_attempts", "path"):
            options.setdefault(name, getattr(settings, name))
    try:
        return Synthesizer.get(settings.strategy)(**options)
    except TypeError as error:
        raise DataError(f"cannot be made of this: {error}", field=f"strategy {settings.strategy!r}") from error
