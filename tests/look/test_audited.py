"""The pages of an audit: its predictions are the detections, and no model is loaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcnn.config import Settings
from rcnn.errors import DataError
from rcnn.look.album import Album
from rcnn.look.finder import KnownDetections
from rcnn.metrics.types import Prediction
from tests.pages import HOSTILE, SIZE, client_of, png

from .test_labels import SAME, SEEN, Desk, data_of, prediction_of

NONE = Prediction(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def known(data: Path) -> KnownDetections:
    """Return detections of the images 7 and 5."""
    predictions = {str(data / f"images/{number}.png"): prediction_of(SEEN) for number in (5, 7)}
    return KnownDetections(Settings(), HOSTILE, predictions)


def failing() -> KnownDetections:
    raise DataError("the predictions are damaged")


@pytest.fixture
def album(tmp_path: Path) -> Album:
    data = data_of(tmp_path / "data", HOSTILE)
    album = Album(lambda: known(data), data)
    album.open()
    return album


def test_the_pages_show_what_the_audit_has_predicted(album: Album, tmp_path: Path) -> None:
    client = client_of(album, tmp_path)
    state = client.get("/api/state").json()
    assert (state["predicts"], state["drops"], state["nms"], state["done"]) == (True, False, None, 3)
    assert state["mistakes"]
    assert state["notes"][-1] == "Pictures of which no detections are known: 1."
    picture = client.get("/api/pictures/0").json()
    assert [round(one["score"], 3) for one in picture["detections"]] == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert (picture["width"], picture["height"], picture["fault"]) == (*SIZE[::-1], "")
    assert "no detections are known of this picture" in client.get("/api/pictures/1").json()["fault"]
    assert client.get("/api/pictures/0?nms=0.3").status_code == 400
    assert client.post("/api/pictures", content=png(), headers=SAME).status_code == 409
    assert "no model" in client.get("/api/pictures/0/explain").json()["fault"]


def test_the_threshold_is_that_of_the_best_f1_score(album: Album) -> None:
    assert 0 < album.threshold <= 0.5  # the only right detection has a score of 0.5


def test_the_questions_are_about_the_predictions_of_the_audit(album: Album, tmp_path: Path) -> None:
    desk = Desk(client_of(album, tmp_path), tmp_path)
    state = desk.state()
    assert (state["fault"], state["waiting"]) == ("", 10)
    assert {one["picture"] for one in state["suggestions"]} == {0, 2}
    assert desk.judge(state["suggestions"][0], "change")["folder"] == str(tmp_path / "copy")


def test_the_corrected_copy_is_shown_with_the_predictions_of_the_audit(album: Album, tmp_path: Path) -> None:
    desk = Desk(client_of(album, tmp_path), tmp_path)
    state = desk.state()
    desk.judge_all(state["suggestions"][:5], "change")
    corrected = Album(lambda: known(tmp_path / "data"), tmp_path / "copy")
    corrected.open()
    state = Desk(client_of(corrected, tmp_path), tmp_path).state()
    assert {one["picture"] for one in state["suggestions"]} == {2}


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: KnownDetections(Settings(), HOSTILE, {"/elsewhere/7.png": NONE}), "no detections are known of these"),
        (failing, "damaged"),
    ],
)
def test_detections_of_other_pictures_are_refused(
    load: Callable[[], KnownDetections], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        Album(load, data_of(tmp_path / "data", HOSTILE)).open()
