import gc
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.dataset import Dataset, Record, Records
from rcnn.images.views import View
from tests.limits import MB, in_child

SIDES = st.integers(1, 1 << 40)
TEXTS = st.text(st.characters(codec=None, exclude_characters="\0"), min_size=1, max_size=8)  # with lone surrogates


@st.composite
def records(draw: st.DrawFn) -> Record:
    count = draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    view = st.builds(View, SIDES, SIDES, SIDES, SIDES, st.tuples(SIDES, SIDES))
    return Record(
        path=Path(draw(TEXTS), draw(TEXTS)),
        name=draw(TEXTS),
        id=draw(st.integers() | TEXTS | st.just("7")),
        size=draw(st.tuples(SIDES, SIDES)),
        boxes=rng.random((count, 4)),
        labels=rng.integers(0, 9, count),
        ignore=rng.random(count) < 0.5,
        view=draw(st.none() | view),
        file_size=draw(st.none() | st.tuples(SIDES, SIDES)),
    )


def assert_same(one: Record, other: Record) -> None:
    for field in fields(Record):
        mine, yours = getattr(one, field.name), getattr(other, field.name)
        assert type(mine) is type(yours)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == yours.dtype
            np.testing.assert_array_equal(mine, yours)
        else:
            assert mine == yours


@given(given_records=st.lists(records(), max_size=5), start=st.integers(-6, 6), step=st.sampled_from([-2, -1, 1, 2, 3]))
def test_records_are_those_that_were_given(given_records: list[Record], start: int, step: int) -> None:
    kept = Records(given_records)
    assert len(kept) == len(given_records)
    for one, other in zip(kept, given_records, strict=True):
        assert_same(one, other)
    for index in range(-len(given_records), len(given_records)):
        assert_same(kept[index], given_records[index])
    for one, other in zip(kept[start::step][::-1], given_records[start::step][::-1], strict=True):
        assert_same(one, other)
    part, expected = kept[start::step], given_records[start::step]
    assert [*part.names()] == [record.name for record in expected]
    assert part.sizes.tolist() == [[*record.size] for record in expected]
    assert part.counts.tolist() == [len(record.labels) for record in expected]
    for one, other in zip(pickle.loads(pickle.dumps(part)), expected, strict=True):
        assert_same(one, other)
    for index in (len(given_records), -len(given_records) - 1):
        with pytest.raises(IndexError):
            kept[index]


def many(count: int) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"images/{number:012}.jpg"
        labels, ignore = np.zeros(7, np.int64), np.zeros(7, bool)
        yield Record(Path("/data", name), name, number, (480, 640), rng.random((7, 4)), labels, ignore)


def test_iteration_in_pieces_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcnn.data.dataset.MADE_TOGETHER", 3)
    assert [record.id for record in Records(many(11))] == [*range(11)]


def test_any_sequence_of_a_data_set_becomes_flat() -> None:
    dataset = Dataset(Path("d"), "voc", "train", ("a",), (1,), tuple(many(3)))  # type: ignore[arg-type]
    assert isinstance(dataset.records, Records)
    assert replace(dataset, records=dataset.records[:2]).records.sizes.shape == (2, 2)
    assert [image.name for image in dataset] == [record.name for record in many(3)]


def private() -> int:
    """Memory of this process that it does not share, bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def fork_and_read() -> None:
    """Fail if a forked process that reads all records copies them."""
    count = 50_000

    def read(images: list[Record] | Records, least: int, most: int) -> None:
        gc.disable()
        before = private()
        for index in range(count):
            record = images[index]
            assert len(record.path.name) + len(record.boxes) + len(record.labels) + len(record.ignore)
        grown = private() - before
        assert least <= grown <= most, f"{grown / MB:.1f} MB were copied"

    flat = Records(many(count))
    in_child(lambda: read(flat, 0, 12 * MB))
    as_list = list(flat)  # made later, since pathlib shares equal parts of paths
    in_child(lambda: read(as_list, 25 * MB, 200 * MB))  # what the test finds in objects


def test_a_forked_process_that_reads_all_records_copies_none() -> None:
    """In a new process: the gaps that other tests leave in the heap of this one lie on many pages."""
    code = f"from {__name__} import fork_and_read; fork_and_read()"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
