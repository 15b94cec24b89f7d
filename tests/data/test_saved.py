"""Data sets in files of arrays: they come back the same, and arrays that contradict each other are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.data.dataset import Dataset, Fault, Record, Records
from rcnn.data.saved import load_datasets, save_datasets
from rcnn.errors import WeightsError
from rcnn.images.storage import location
from rcnn.images.views import View
from rcnn.weights.file import save_weights
from tests.data.test_list_cache import as_tuple, text_of

TEXT = st.text(st.characters(exclude_categories=()), max_size=4)
"""Any text, also with bytes of names that are not UTF-8, as Python represents them."""


@st.composite
def a_record(draw: st.DrawFn) -> Record:
    count = draw(st.integers(0, 3))
    height, width = draw(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)))
    view = View(1, 2, 3, 4, (5, 6)) if draw(st.booleans()) else None
    return Record(
        Path(f"/data/{draw(TEXT).replace(chr(0), '')}"),
        draw(TEXT),
        draw(st.integers(-(10**20), 10**20) | TEXT),
        (height, width),
        np.array(draw(st.lists(st.floats(-1e9, 1e9), min_size=4 * count, max_size=4 * count))).reshape(-1, 4),
        np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), np.int64),
        np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool),
        view,
        (7, 8) if view else None,
    )


RECORDS = st.lists(a_record(), max_size=4)


def dataset(records: Records) -> Dataset:
    faults = (Fault("a.xml:3", "is \udc80 wrong", "mendable", "a"), Fault("b", "is wrong", "damaged"))
    return Dataset(Path("/data"), "voc", "train", ("a", "\u00e9", "c"), (3, 1, 7), records, faults, ("a note",))


def test_the_folder_of_remote_data_is_still_an_address(tmp_path: Path) -> None:
    root, file = location("s3://bucket/a//b"), tmp_path / "sets.safetensors"
    save_datasets(file, [replace(dataset(Records([])), root=root)])
    (loaded,) = load_datasets(file)
    assert loaded.root == root


@settings(max_examples=30)
@given(RECORDS, RECORDS, st.booleans(), st.data())
def test_data_sets_come_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, one: list[Record], other: list[Record], mapped: bool, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("saved") / "a"
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(other), max_size=len(other))), bool)
    sets = [dataset(Records(one)), dataset(Records(other).select(chosen))]
    save_datasets(file, sets)
    assert text_of(load_datasets(file, mapped=mapped)) == text_of(sets)
    names = [record.name for record, is_chosen in zip(other, chosen, strict=True) if is_chosen]
    assert [*sets[1].records.names()] == names


@settings(max_examples=100)
@given(st.lists(a_record(), min_size=1, max_size=3), st.data())
def test_arrays_are_refused_or_can_be_used(records: list[Record], data: st.DataObject) -> None:
    arrays = {name: array.copy() for name, array in Records(records).arrays().items()}
    name = data.draw(st.sampled_from([*arrays]))
    array = arrays[name]
    if data.draw(st.booleans()) and array.size:
        flat = array.reshape(-1)
        kinds = {"b": st.booleans(), "f": st.floats(), "u": st.integers(0, 255)}
        limits = st.sampled_from([-1, 0, 1, 5, 10**6, 2**62, -(2**62), 2**63 - 1, -(2**63)])
        flat[data.draw(st.integers(0, array.size - 1))] = data.draw(kinds.get(array.dtype.kind, limits))
    else:
        changes = [array[:-1], array.reshape(-1), np.concatenate([array, array]), array.astype(np.float32)]
        arrays[name] = changes[data.draw(st.integers(0, 3))]
    try:
        found = Records.from_arrays(arrays)
    except ValueError:
        return
    assert len([as_tuple(record) for record in found]) == len(found)
    assert len([*found.names()]) == len([*found.paths()]) == len(found.sizes) == len(found)
    assert len(found.labels) == len(found.boxes) == found.counts.sum()


def test_an_array_is_missing() -> None:
    arrays = Records(()).arrays()
    del arrays["rows"]
    with pytest.raises(KeyError):
        Records.from_arrays(arrays)


def test_labels_have_a_class(tmp_path: Path) -> None:
    record = Record(Path("a"), "a", "a", (9, 9), np.zeros((1, 4)), np.array([3]), np.array([False]))
    save_datasets(tmp_path / "a", [dataset(Records([record]))])
    with pytest.raises(ValueError, match="labels and classes"):
        load_datasets(tmp_path / "a")


def test_a_file_of_another_kind_or_without_content_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "a", {}, {"kind": "checkpoint"})
    with pytest.raises(ValueError, match="another kind, checkpoint"):
        load_datasets(tmp_path / "a")
    for content in (b"", b"\x80\x04N."):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(WeightsError):
            load_datasets(tmp_path / "a")
