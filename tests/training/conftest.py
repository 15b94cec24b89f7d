"""Fixtures of the runs that these tests train."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.pieces import shapes, threads, without_pictures


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Results are equal to the bit for equal numbers of threads; the processes that are killed have one."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes(tmp_path_factory.mktemp("data"), 6, 2)
