"""The pictures of a run."""

from pathlib import Path

import pytest

from rcnn.training.train import train
from tests.training.pieces import FEW_PROPOSALS, OPTIONS, SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_a_run_that_ended_before_its_first_pictures_were_drawn_draws_them_when_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise KilledError

    options = {**OPTIONS, "epochs": 1, "overrides": [*SMALL, *FEW_PROPOSALS]}
    expected = train(data, runs=tmp_path / "whole", **options).folder / "plots"
    monkeypatch.setattr("rcnn.training.run_pictures.contact_sheet", end)
    with pytest.raises(KilledError):
        train(data, runs=tmp_path / "killed", **options)
    monkeypatch.undo()
    (folder,) = (tmp_path / "killed").iterdir()
    assert not (folder / "plots/train-batch-1.jpg").exists()
    train(resume=folder, quiet=True)
    assert {path.name for path in (folder / "plots").iterdir()} == {path.name for path in expected.iterdir()}
    for name in ("labels.png", "train-batch-1.jpg"):
        assert (folder / "plots" / name).read_bytes() == (expected / name).read_bytes()
