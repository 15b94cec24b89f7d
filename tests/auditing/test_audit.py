"""Audits: what they write, how an interrupted one goes on, and what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnn.auditing import audit as module
from rcnn.auditing.audit import audit, open_audit
from rcnn.auditing.sheet import draw_audit
from rcnn.data.convert import convert
from rcnn.data.formats.find import open_dataset
from rcnn.data.synthetic import synthesise
from rcnn.detector import Detector
from rcnn.errors import DataError, SettingsError
from rcnn.presets import build, settings_of
from tests.training.pieces import FEW_PROPOSALS, SMALL, without_pictures

TINY = [*SMALL, *FEW_PROPOSALS, "train.epochs=1", "train.batch=4", "train.device=cpu", "data.workers=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "shapes"
    for split, count in (("train", 6), ("test", 2)):
        synthesise(folder, count, split=split, size=(64, 96), seed=count)
    return folder


@pytest.fixture(scope="module")
def detector() -> Detector:
    settings = settings_of("tiny-fpn", [*SMALL, *FEW_PROPOSALS, "train.init=none"])
    return Detector(build(settings, 3), settings, ("disc", "square", "triangle"))


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_audit_continues_and_trains_no_fold_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    before = sorted(path.stat().st_mtime_ns for path in data.rglob("*"))
    original = module.evaluate

    def interrupted(detector: Detector, dataset: Any, **options: Any) -> Any:
        if (tmp_path / "a/predictions/1.json").exists():
            raise KeyboardInterrupt
        return original(detector, dataset, **options)

    monkeypatch.setattr(module, "evaluate", interrupted)
    options: dict[str, Any] = {"folds": 2, "model": "tiny-fpn", "overrides": TINY}
    with pytest.raises(KeyboardInterrupt):
        audit(data, tmp_path / "a", say=said.append, **options)
    assert said[0].endswith(f"the same command with --out {tmp_path / 'a'} continues")
    assert said[1:] == [f"fold {n} of 2: 4 images to train on, 4 to predict" for n in (1, 2)]
    runs = sorted((tmp_path / "a/runs").iterdir())
    monkeypatch.setattr(module, "evaluate", original)
    result = audit(data, tmp_path / "a", **options)
    assert [run.name for run in runs] == ["fold-1-1", "fold-2-1"]
    assert sorted((tmp_path / "a/runs").iterdir()) == runs
    whole = open_dataset(data, "all")
    assert [*result.dataset.records.names()] == [*whole.records.names()]
    assert len(result.predictions) == 8
    for fold in ("1", "2"):  # no image is predicted by a detector that has learned it
        train, val = (open_dataset(tmp_path / f"a/folds/{fold}", split) for split in ("train", "val"))  # type: ignore[arg-type]
        assert len({*train.records.paths()} | {*val.records.paths()}) == 8
    assert sorted(path.stat().st_mtime_ns for path in data.rglob("*")) == before
    assert audit(data, tmp_path / "a", **options).to_json() == result.to_json()
    opened = open_audit(tmp_path / "a")
    assert (opened.to_json(), opened.settings) == (result.to_json(), result.settings)
    (tmp_path / "a/predictions/2.json").unlink()
    with pytest.raises(SettingsError, match=r"a: this audit is not finished: 1 of 2 folds are predicted; to continue"):
        open_audit(tmp_path / "a")


def test_a_detector_predicts_all_images(data: Path, tmp_path: Path, detector: Detector) -> None:
    found = audit(data, tmp_path / "a", model=detector)
    assert not (tmp_path / "a/runs").exists()
    document = json.loads((tmp_path / "a/audit.json").read_text())
    assert document == {"data": str(data), **json.loads(json.dumps(found.to_json()))}
    assert document["images"] == 8
    assert sum(document["counts"].values()) == len(document["suggestions"])
    draw_audit(found, found.folder / "audit.jpg")
    assert (tmp_path / "a/audit.jpg").stat().st_size > 1000


def test_the_folder_of_another_audit_is_refused(data: Path, tmp_path: Path, detector: Detector) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"full: is not empty, and holds no audit; give a new or empty folder"):
        audit(data, tmp_path / "full", model=detector)
    audit(data, tmp_path / "a", model=detector)
    with pytest.raises(SettingsError, match=r"a: holds another audit \(overrides \[\], now \['data.holdout=0.2'\]\)"):
        audit(data, tmp_path / "a", model=detector, overrides=["data.holdout=0.2"])
    copy = tmp_path / "copy"
    convert(open_dataset(data, "all"), "coco", copy)
    audit(copy, tmp_path / "b", model=detector)
    file = copy / "annotations/all.json"
    tree = json.loads(file.read_text())
    tree["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(tree))
    with pytest.raises(SettingsError, match=r"b: the data have changed since this audit began; give a new folder"):
        audit(copy, tmp_path / "b", model=detector)
    (tmp_path / "a/audit.yaml").write_text("{")
    with pytest.raises(SettingsError, match=r"audit\.yaml: can't be read as the plan of an audit"):
        audit(data, tmp_path / "a", model=detector)


def test_an_audit_is_opened_with_the_classes_and_settings_of_its_detector(data: Path, tmp_path: Path) -> None:
    settings = settings_of("tiny-fpn", [*SMALL, *FEW_PROPOSALS, "data.classes={disc: round, triangle: round}"])
    detector = Detector(build(settings, 2), settings, ("square", "round"))
    made = audit(data, tmp_path / "a", model=detector)
    opened = open_audit(tmp_path / "a")
    assert opened.dataset.names == ("square", "round")
    assert opened.settings == made.settings
    assert opened.to_json() == made.to_json()
    for one, other in zip(made.predictions, opened.predictions, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.006)


def test_what_is_no_audit_of_these_data_is_not_opened(data: Path, tmp_path: Path, detector: Detector) -> None:
    copy, folder = tmp_path / "copy", tmp_path / "a"
    convert(open_dataset(data, "all"), "coco", copy)
    audit(copy, folder, model=detector)
    plan = (folder / "audit.yaml").read_text()
    for content in ("{", "3", "data: 3", plan.replace("folds: 1", "folds: 0"), plan.replace("names:", "name:")):
        (folder / "audit.yaml").write_text(content)
        with pytest.raises(SettingsError, match=r"audit\.yaml: can't be read as the plan of an audit"):
            open_audit(folder)
    (folder / "audit.yaml").write_text(plan)
    with pytest.raises(SettingsError, match=r"nowhere/audit\.yaml: can't be read as the plan of an audit"):
        open_audit(tmp_path / "nowhere")
    file = copy / "annotations/all.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    with pytest.raises(SettingsError, match=r"a: the data \(.*copy\) have changed since this audit; audit them again"):
        open_audit(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"[1]", b'[{"boxes": [[1]], "scores": [1], "labels": [1]}]', b"\xff"])
def test_damaged_predictions_are_named(content: bytes, data: Path, tmp_path: Path, detector: Detector) -> None:
    audit(data, tmp_path / "a", model=detector)
    (tmp_path / "a/predictions/1.json").write_bytes(content)
    with pytest.raises(DataError, match=r"1\.json: can't be read as predictions: .*; delete it to predict again"):
        audit(data, tmp_path / "a", model=detector)


def test_predictions_are_kept_to_hundredths_of_pixels(data: Path, tmp_path: Path, detector: Detector) -> None:
    first, again = (audit(data, tmp_path / "a", model=detector).predictions for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.006)
        assert one.labels.tolist() == other.labels.tolist()


def test_too_few_images_are_refused_before_a_folder_is_made(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8 images are too few for 5 folds: at least 10 are needed"):
        audit(data, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(SettingsError, match="folds"):
        audit(data, tmp_path / "a", folds=1)
