"""The embedded model's tokenizer, with its own chat template or another."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoTokenizer

from farstep.rollout.spans import Spans
from farstep_model.embedded import model_dir


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_dir())


@pytest.fixture
def spans(tokenizer: Any) -> Spans:
    return Spans(tokenizer)


@pytest.fixture
def spans_with() -> Callable[[str], Spans]:
    """Spans of a chat template of the test's own."""

    def make(template: str) -> Spans:
        tokenizer = AutoTokenizer.from_pretrained(model_dir())
        tokenizer.chat_template = template
        return Spans(tokenizer)

    return make
