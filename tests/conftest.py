"""Property tests look at new examples on a developer's machine and at the same ones in every run of CI.

Tests that want a GPU are skipped where there is none. Those that leave threads behind come last.
"""

import gc
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

pytest_plugins = [
    "tests.pages",
    "tests.remote",
]  # one browser for all tests of pages; a server for those of remote data

LAST = [
    "runtime/test_hostile_files.py",
    *("exporting/test_export.py", "fuzz", "exporting/test_translate.py", "cli/test_import_export.py", "exporting"),
    *("runtime", "cli/test_benchmark.py", "test_deploy.py", "cli/test_exported.py", "images/test_large.py"),
]
"""Tests that run exported files or libvips: a process with their threads can't well be forked.

The first forks a process for a file before there are any; then come the long ones.
"""


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> None:
    """Restore the default handlers, since a shell makes commands that it starts in the background ignore signals."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests out of the user's cache, where exports are listed. The fonts of matplotlib stay where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are written, with nothing drawn: most of the time of a small command is matplotlib's."""
    monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)


def pytest_collection_finish() -> None:
    """Have the garbage collector leave what the libraries hold alone, and come less often: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent

    @cache
    def place(path: Path) -> int:
        return next((place for place, last in enumerate(LAST, 1) if path.is_relative_to(tests / last)), 0)

    items.sort(key=lambda item: place(item.path))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))
