"""Property tests look at new examples on a developer's machine and at the same ones in every run of CI.

Tests that want a GPU are skipped where there is none.
"""

import gc
import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_finish() -> None:
    """Have the garbage collector leave what the libraries hold alone, and come less often: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Processes of xdist share the last modules; those with the longest fixtures come first, lest both make them.
    items.sort(key=lambda item: not item.path.name.startswith("test_torchrun"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))
