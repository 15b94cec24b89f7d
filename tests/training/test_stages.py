"""A scheme is defined by its list of stages alone."""

from pathlib import Path

import pytest
import torch

from rcnn.errors import SettingsError
from rcnn.training import schemes
from rcnn.training.checkpoint import read_stage
from rcnn.training.configure import choose_settings
from rcnn.training.schemes import EXTERNAL, RECALL, SCHEMES, Stage
from rcnn.training.train import train
from rcnn.weights.metadata import read_detector
from tests.training.pieces import OPTIONS, assert_same
from tests.training.test_alternating import OVERRIDES

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
NAME = "joint-full"
"""The scheme whose stages are replaced here."""


def test_a_new_scheme_is_a_list_of_stages(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An RPN, a second stage on its backbone, and finally all parts together; also resumed after its end."""
    stages = (
        Stage("RPN", ("backbone", "rpn"), rpn_alone=True, best=RECALL),
        Stage("second stage", ("fast_rcnn",), start={"backbone": 1, "rpn": 1}, proposals=1),
        Stage("everything", start={"backbone": 1, "rpn": 1, "fast_rcnn": 2}),
    )
    monkeypatch.setitem(SCHEMES, NAME, stages)
    run = train(data, overrides=[*OVERRIDES, f"train.scheme={NAME}"], runs=tmp_path, **{**OPTIONS, "epochs": 1})
    assert [row["stage"] for row in run.rows] == [1, 2, 3]
    files = {str(path.relative_to(run.folder)) for path in (run.folder / "stages").rglob("*.*")}
    assert files == {
        *("stages/1/best.safetensors", "stages/1/last.safetensors", "stages/1/train.safetensors"),
        *("stages/2/best.safetensors", "stages/2/last.safetensors"),
    }
    first, second = (read_detector(run.folder / f"stages/{number}/best.safetensors")[0] for number in (1, 2))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    last = read_detector(run.last)[0]
    assert last.keys() == second.keys()
    moved = {name.split(".")[0] for name, tensor in last.items() if not torch.equal(tensor, second[name])}
    assert moved == {"backbone", "rpn", "fast_rcnn"}
    (checkpoint,) = (run.folder / "checkpoints").iterdir()
    assert read_stage(checkpoint, 3) == 2
    log = (run.folder / "log.txt").read_text()
    assert [f"stage {i + 1} of 3: {stages[i].title}" in log for i in range(3)] == [True] * 3
    assert_same(train(resume=run.folder, quiet=True), run)


def test_the_stages_of_a_scheme_decide_which_settings_it_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"train.scheme={NAME}", "train.proposals=x.json"]
    with pytest.raises(SettingsError, match=r"only train\.scheme=fast-rcnn reads train\.proposals=x\.json"):
        choose_settings("x", None, "tiny-fpn", overrides, {})
    monkeypatch.setitem(SCHEMES, NAME, (Stage(proposals=EXTERNAL, own_rpn=False),))
    choose_settings("x", None, "tiny-fpn", overrides, {})
    with pytest.raises(SettingsError, match=r"only train\.scheme=joint-full or fast-rcnn reads"):
        choose_settings("x", None, "tiny-fpn", ["train.proposals=x.json"], {})
    alone = [f"train.scheme={NAME}", "roi.head=none"]
    monkeypatch.setitem(SCHEMES, NAME, (Stage(),))
    with pytest.raises(SettingsError, match=r"needs a second stage"):
        choose_settings("x", None, "tiny-fpn", alone, {})
    monkeypatch.setitem(SCHEMES, NAME, (Stage(needs_second=False),))
    choose_settings("x", None, "tiny-fpn", alone, {})


def test_no_other_file_of_training_compares_the_name_of_a_scheme() -> None:
    folder = Path(schemes.__file__).parent
    quoted = [f'"{name}"' for name in SCHEMES]
    found = [path.name for path in folder.rglob("*.py") if any(name in path.read_text() for name in quoted)]
    assert found == ["schemes.py"]
