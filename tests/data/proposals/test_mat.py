"""MATLAB's cells, as SciPy writes them."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rcnn.data.proposals.mat import read_mat

NUMBERS = st.sampled_from(["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5))
)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), max_size=12)


def cell(values: list[Any]) -> np.ndarray:
    found = np.empty((1, len(values)), dtype=object)
    for index, value in enumerate(values):
        found[0, index] = value
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NUMBERS, max_size=4), st.lists(TEXTS, max_size=4), st.booleans())
def test_cells_that_scipy_writes_are_read(tmp_path: Path, boxes: list[Any], texts: list[str], packed: bool) -> None:
    path = tmp_path / "a.mat"
    others = {"other": np.arange(3), "table": {"a": 1}}
    scipy.io.savemat(path, {**others, "boxes": cell(boxes), "images": cell(texts)}, do_compression=packed)
    content = read_mat(path, ("images", "boxes"))
    assert content["images"] == texts
    assert len(content["boxes"]) == len(boxes)
    for found, expected in zip(content["boxes"], boxes, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_variable_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"boxes": np.eye(3)})
    content = read_mat(tmp_path / "a.mat", ("images", "boxes"))
    assert list(content) == ["boxes"]
    assert np.array_equal(content["boxes"], np.eye(3))


def test_structures_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    for value in ({"a": 1}, np.array([[1j]]), cell([cell([{"b": 2}])])):
        scipy.io.savemat(tmp_path / "a.mat", {"boxes": value})
        with pytest.raises(ValueError, match="neither cells nor text nor real numbers"):
            read_mat(tmp_path / "a.mat", ("boxes",))


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_cut_anywhere_is_damaged_or_lacks_a_variable(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"boxes": cell([np.eye(3), np.eye(2)]), "images": cell(["a", "b"])}, do_compression=packed)
    content = path.read_bytes()
    for end in range(0, len(content), 3):
        path.write_bytes(content[:end])
        with contextlib.suppress(ValueError):
            assert len(read_mat(path, ("images", "boxes"))) < 2
