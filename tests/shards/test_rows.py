from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.errors import DataError, ImageError, UnavailableError
from rcnn.images.sources import NamedImage
from rcnn.result import Result
from rcnn.shards import rows
from rcnn.shards.rows import FORMATS, row_of, row_of_error

from .stub import NAMES, made_up

formats = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
floats = st.floats(0, 1e4, width=32)


@formats
@given(st.lists(st.tuples(st.tuples(floats, floats, floats, floats), st.floats(0, 1, width=32), st.integers(0, 1))))
def test_rows_are_read_back_exactly(form: rows.RowFormat, found: list[tuple[tuple[float, ...], float, int]]) -> None:
    boxes = np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in found], dtype=np.float32)
    labels = np.array([label for _, _, label in found], dtype=np.int64)
    origin = NamedImage(Path("x/a.jpg"), "a.jpg")
    row = row_of(Result(boxes, scores, labels, NAMES, "x/a.jpg", (60, 80), origin=origin))
    with TemporaryDirectory() as folder:
        file = Path(folder, "rows")
        file.write_bytes(b"".join(form.encode([row])))
        (read,) = form.decode(file)
    assert (read["name"], read["path"], read["height"], read["width"]) == ("a.jpg", "x/a.jpg", 60, 80)
    assert np.array_equal(np.array(read["boxes"], dtype=np.float32).reshape(-1, 4), boxes)
    assert np.array_equal(np.array(read["scores"], dtype=np.float32), scores)
    assert read["labels"] == labels.tolist()
    assert read["names"] == [NAMES[label] for label in labels]
    assert read["error"] is None


@formats
def test_large_files_are_written_in_pieces(form: rows.RowFormat, tmp_path: Path) -> None:
    written = [made_up(NamedImage(Path(f"{number}.jpg"), f"{number:04}.jpg")) for number in range(2_500)]
    pieces = [*form.encode(map(row_of, written))]
    assert len(pieces) > 3
    file = tmp_path / f"rows{form.suffix}"
    file.write_bytes(b"".join(pieces))
    assert [row["name"] for row in form.decode(file)] == [result.origin.name for result in written]


@formats
def test_names_that_are_not_utf_8_are_escaped(form: rows.RowFormat, tmp_path: Path) -> None:
    row = row_of_error(NamedImage(Path("\udcff.jpg"), "\udcff.jpg"), ImageError("\udcff.jpg: there is no such file"))
    (tmp_path / "rows").write_bytes(b"".join(form.encode([row])))
    (read,) = form.decode(tmp_path / "rows")
    assert read == row
    assert read["name"] == "\\udcff.jpg"
    assert (read["height"], read["boxes"], read["error"]) == (None, [], "\\udcff.jpg: there is no such file")


@formats
@pytest.mark.parametrize("content", [b"", b"x\n", b"{}\n", b"[1]\n", b"PAR1" * 10])
def test_a_damaged_file_is_named(form: rows.RowFormat, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / f"part{form.suffix}"
    file.write_bytes(content)
    if (form.suffix, content) == (".jsonl", b""):
        assert [*form.decode(file)] == []
        return
    with pytest.raises(DataError, match=f"part{form.suffix}"):
        list(form.decode(file))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UnavailableError, match=r"pip install 'rcnn\[parquet\]', or use --format jsonl"):
        rows.arrow_schema()
