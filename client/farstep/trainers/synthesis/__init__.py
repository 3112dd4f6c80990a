"""Synthesis: data made from data, by templates, by changing what there is, or by asking a model.

A name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farstep.trainers.synthesis.augment import AugmentSynthesizer
    from farstep.trainers.synthesis.augmentation import add_noise, swap_in_out
    from farstep.trainers.synthesis.chats import ChatBatch, ChatOutcome, ChatTask, run_chats, run_chats_async
    from farstep.trainers.synthesis.config import SynthesisConfig
    from farstep.trainers.synthesis.llm import LLMSynthesizer
    from farstep.trainers.synthesis.pipeline import synthesize, synthesize_async
    from farstep.trainers.synthesis.result import Failure, SynthesisResult
    from farstep.trainers.synthesis.selection import deduplicate, filter_by_score, split
    from farstep.trainers.synthesis.synthesizer import Made, Synthesizer
    from farstep.trainers.synthesis.template import TemplateSynthesizer

__all__ = [
    "AugmentSynthesizer",
    "ChatBatch",
    "ChatOutcome",
    "ChatTask",
    "Failure",
    "LLMSynthesizer",
    "Made",
    "SynthesisConfig",
    "SynthesisResult",
    "Synthesizer",
    "TemplateSynthesizer",
    "add_noise",
    "deduplicate",
    "filter_by_score",
    "run_chats",
    "run_chats_async",
    "split",
    "swap_in_out",
    "synthesize",
    "synthesize_async",
]

_HERE = "farstep.trainers.synthesis"
_NAMES_OF = {
    f"{_HERE}.augment": "AugmentSynthesizer",
    f"{_HERE}.augmentation": "add_noise swap_in_out",
    f"{_HERE}.chats": "ChatBatch ChatOutcome ChatTask run_chats run_chats_async",
    f"{_HERE}.config": "SynthesisConfig",
    f"{_HERE}.llm": "LLMSynthesizer",
    f"{_HERE}.pipeline": "synthesize synthesize_async",
    f"{_HERE}.result": "Failure SynthesisResult",
    f"{_HERE}.selection": "deduplicate filter_by_score split",
    f"{_HERE}.synthesizer": "Made Synthesizer",
    f"{_HERE}.template": "TemplateSynthesizer",
}
_HOME_OF = {name: home for home, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        found = globals()[name] = getattr(import_module(home), name)
        return found
    raise AttributeError(f"module 'farstep.trainers.synthesis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
