"""A predictor for engines: every row of a batch gives one row, whatever its image is."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import rcnn
import rcnn.batch_predictor as batch_predictor
from rcnn.batch_predictor import COLUMNS, BatchPredictor
from rcnn.detector import Detector
from rcnn.errors import SettingsError, WeightsError
from rcnn.presets import build, settings_of
from tests.test_detector import SMALL

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def encoded(array: np.ndarray = PICTURE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    changed = settings_of("mobilenet-fpn", SMALL)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    Detector(build(changed, 2), changed, ("cat", "dog"), threshold=0.0, device="cpu").save(path)
    return path


@pytest.fixture(scope="module")
def predictor(file: Path) -> BatchPredictor:
    return BatchPredictor(file, device="cpu")


def test_rows_equal_the_results_of_the_detector(predictor: BatchPredictor, file: Path) -> None:
    (expected,) = rcnn.load(file, "cpu").predict(PICTURE)
    made = predictor({"bytes": [encoded()], "id": [5]})
    assert [*made] == ["bytes", "id", *COLUMNS]
    assert made["id"] == [5]
    assert np.array_equal(np.float32(made["boxes"][0]), expected.boxes)
    assert np.array_equal(np.float32(made["scores"][0]), expected.scores)
    assert made["labels"][0] == expected.labels.tolist()
    assert made["names"][0] == [one.name for one in expected]
    assert made["error"] == [None]


@pytest.mark.parametrize("kind", ["path", "text", "array", "bytearray", "memoryview", "pillow", "damaged pillow"])
def test_images_come_in_every_form(predictor: BatchPredictor, file: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    values: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "array": PICTURE,
        "bytearray": bytearray(encoded()),
        "memoryview": memoryview(encoded()),
        "pillow": Image.open(io.BytesIO(encoded())),
        "damaged pillow": Image.open(io.BytesIO(encoded()[:5000])),
    }
    made = predictor({"bytes": [values[kind]]})
    if kind == "damaged pillow":
        assert "truncated" in made["error"][0]
    else:
        assert made["boxes"] == predictor({"bytes": [encoded()]})["boxes"]


GOOD, BAD = encoded(), [encoded()[:3000], b"", b"GIF89a", None, 3.5, "/no/such.png", np.zeros((0, 4, 3), np.uint8)]


@given(st.lists(st.sampled_from([None, *range(len(BAD))]), max_size=6), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_every_row_gives_one_row_in_the_same_order(
    predictor: BatchPredictor, rows: list[int | None], batch: int
) -> None:
    several = pickle.loads(pickle.dumps(predictor))
    several._detector, several.batch = predictor.detector, batch
    made = several({"bytes": [GOOD if row is None else BAD[row] for row in rows], "number": rows})
    assert made["number"] == rows
    assert [error is None for error in made["error"]] == [row is None for row in rows]
    assert [len(boxes) > 0 for boxes in made["boxes"]] == [row is None for row in rows]
    assert all(len(made[name]) == len(rows) for name in COLUMNS)


def test_frames_are_accepted_and_results_make_frames(predictor: BatchPredictor) -> None:
    frame = pandas.DataFrame({"bytes": [GOOD, b"x"], "id": [1, 2]}, index=[7, 3])
    made = pandas.DataFrame(predictor(frame))
    assert made["id"].tolist() == [1, 2]
    assert made["error"].isna().tolist() == [True, False]


def test_a_batch_may_be_empty(predictor: BatchPredictor) -> None:
    assert predictor({"bytes": []}) == {name: [] for name in ("bytes", *COLUMNS)}


def test_missing_and_taken_columns_are_refused(predictor: BatchPredictor) -> None:
    with pytest.raises(SettingsError, match=r"no column `bytes`; it has image, id.*column=NAME"):
        predictor({"image": [], "id": []})
    with pytest.raises(SettingsError, match="no column `bytes`; it has none"):
        predictor({})
    with pytest.raises(SettingsError, match="already has a column `boxes`"):
        predictor({"bytes": [], "boxes": []})


def test_faulty_arguments_are_refused_when_the_predictor_is_made(file: Path) -> None:
    with pytest.raises(SettingsError, match="score"):
        BatchPredictor(file, score=float("nan"))
    with pytest.raises(SettingsError, match="batch"):
        BatchPredictor(file, batch=0)
    with pytest.raises(SettingsError, match="precision"):
        BatchPredictor(file, predict={"precision": "float8"})
    with pytest.raises(WeightsError, match="no such file"):
        BatchPredictor("missing.safetensors")


def test_a_pickle_holds_arguments_and_no_weights(file: Path) -> None:
    predictor = BatchPredictor(file, score=0.25, device="cpu", predict={"precision": "float32"})
    made = predictor({"bytes": [GOOD]})
    pickled = pickle.dumps(predictor)
    assert len(pickled) < 10_000
    again = pickle.loads(pickled)
    assert again.detector.settings == predictor.detector.settings
    assert again({"bytes": [GOOD]}) == made


def test_the_threads_of_a_worker_load_the_detector_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, loaded = pickle.loads(pickle.dumps(BatchPredictor(file, device="cpu"))), []
    monkeypatch.setattr(batch_predictor, "load", lambda *arguments: loaded.append(arguments) or rcnn.load(*arguments))
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(predictor, [{"bytes": [GOOD]}] * 3))
    assert made[0] == made[1] == made[2]
    assert len(loaded) == 1
