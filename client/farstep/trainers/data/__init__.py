"""The data of trainers: sources, row adapters, chat templates with exact masks, mixing, cache, batches.

It needs no torch and no GPU; a tokenizer is asked for when rows become tokens.
"""

from farstep.trainers.data.adapters.base import Limits, NothingToTrain, RowAdapter, adapter_for
from farstep.trainers.data.dataset import Dataset, Group
from farstep.trainers.data.load import Datasets, check_rows, load, process_data
from farstep.trainers.data.loader import Batch, Cursor, Loader
from farstep.trainers.data.prompts import PromptBatch, PromptItem, PromptLoader, load_prompt_batches, prompt_loader
from farstep.trainers.data.report import DataReport
from farstep.trainers.data.sources.base import Source

__all__ = [
    "Batch",
    "Cursor",
    "DataReport",
    "Dataset",
    "Datasets",
    "Group",
    "Limits",
    "Loader",
    "NothingToTrain",
    "PromptBatch",
    "PromptItem",
    "PromptLoader",
    "RowAdapter",
    "Source",
    "adapter_for",
    "check_rows",
    "load",
    "load_prompt_batches",
    "process_data",
    "prompt_loader",
]
