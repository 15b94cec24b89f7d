from pathlib import Path

import pytest

from rcnn.errors import SettingsError
from rcnn.paper.workspace import ResultsTable


def test_rows_are_read_back_and_new_columns_are_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    first = ResultsTable(path, ("row", "seed"))
    first.add({"row": "RPN, 300", "seed": 0, "ap": 0.1 + 0.2})
    first.add({"row": "SS", "seed": "", "ar": 5}, {"row": "RPN, 300", "seed": 1, "ap": 2})
    assert path.read_text().splitlines()[0] == "row,seed,ap,ar"
    again = ResultsTable(path, ("row", "seed"))
    assert ("RPN, 300", 0) in again
    assert ("SS", "") in again
    assert ("SS", 0) not in again
    assert [float(row["ap"]) for row in again if row["ap"]] == [0.1 + 0.2, 2]
    again.add({"row": "SS", "seed": "", "ar": 6})
    assert len(list(ResultsTable(path, ("row", "seed")))) == 3


@pytest.mark.parametrize("text", ["nothing of this kind\n1\n", "row,seed,ap\nSS,0\n", "row,seed\nSS,0,5\n"])
def test_another_table_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"results\.csv: not a table of results"):
        ResultsTable(path, ("row", "seed"))
    assert path.read_text() == text
