"""Synthesis: data made from data, by templates, by changing what there is, or by asking a model.

A name is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from farstep._lazy import lazy

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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "farstep.trainers.synthesis.augment": "AugmentSynthesizer",
        "farstep.trainers.synthesis.augmentation": "add_noise swap_in_out",
        "farstep.trainers.synthesis.chats": "ChatBatch ChatOutcome ChatTask run_chats run_chats_async",
        "farstep.trainers.synthesis.config": "SynthesisConfig",
        "farstep.trainers.synthesis.llm": "LLMSynthesizer",
        "farstep.trainers.synthesis.pipeline": "synthesize synthesize_async",
        "farstep.trainers.synthesis.result": "Failure SynthesisResult",
        "farstep.trainers.synthesis.selection": "deduplicate filter_by_score split",
        "farstep.trainers.synthesis.synthesizer": "Made Synthesizer",
        "farstep.trainers.synthesis.template": "TemplateSynthesizer",
    },
)
