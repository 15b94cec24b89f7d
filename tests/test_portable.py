"""The settings of `tests.portable` do what they say: each changes the bits that it should, and no more."""

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.portable import (
    EXEMPT,
    FLOATS,
    NO_FLOATS,
    PROBE,
    SETTINGS,
    TESTS,
    environment,
    onednn_instructions,
    unchanged,
)

LIBRARIES = {"ATEN_CPU_CAPABILITY": "ATen", "ONEDNN_MAX_CPU_ISA": "oneDNN", "MKL_CBWR": "MKL"}
"""Variable -> library whose bits it changes. `MKL_ENABLE_INSTRUCTIONS` need not change them: both kernels fuse."""


@cache
def probe(setting: str | None) -> dict[str, Any]:
    words = [sys.executable, "-c", PROBE]
    return json.loads(subprocess.run(words, env=environment(setting), capture_output=True, check=True).stdout)


@pytest.mark.parametrize("setting", ["avx2", "sse41"])
def test_a_setting_for_older_cpus_changes_the_bits_of_every_library_that_it_limits(setting: str) -> None:
    native, limited = probe(None), probe(setting)
    if reason := unchanged(setting):
        assert limited["bits"] == native["bits"], reason
        return
    assert limited["ATen"] == SETTINGS[setting]["ATEN_CPU_CAPABILITY"].upper() != native["ATen"]
    for variable, library in LIBRARIES.items():
        if variable in SETTINGS[setting]:
            assert limited["bits"][library] != native["bits"][library], library


def test_a_setting_for_cpus_without_bfloat16_takes_its_instructions_away() -> None:
    assert unchanged("avx512") or "float16" not in onednn_instructions("avx512")


@pytest.mark.parametrize("setting", ["avx2", "sse41"])
def test_bfloat16_is_no_default_under_an_older_cpus_setting(setting: str) -> None:
    assert not probe(setting)["bf16"]


def test_every_test_that_is_named_exists() -> None:
    assert all((TESTS / name).exists() for name in (*FLOATS, *NO_FLOATS))
    for file, _, test in (name.partition("::") for tests in EXEMPT.values() for name in tests):
        assert f"def {test}(" in (TESTS / file).read_text(encoding="utf-8")
