"""Tests that need a CUDA device: `make test-gpu`. Elsewhere each is skipped, and says why."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "tests/gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="no CUDA device: run `make test-gpu` where there is one"))
