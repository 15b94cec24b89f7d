from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.config import SettingsError
from rcnn.detector import Detector, NonFiniteError, choose_device, files
from rcnn.preprocess.decode import ImageError
from rcnn.presets import build, settings_of
from rcnn.result import Result
from rcnn.weights.file import WeightsError, save_weights

SMALL = [
    *("preprocess.short=64", "preprocess.long=96", "model.channels=8", "roi.hidden=16", "roi.detections=9"),
    *("rpn.pre_test=50", "rpn.post_test=20"),
]
SIZES = [(60, 80), (80, 60), (60, 80), (60, 80), (50, 50)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    settings = settings_of("mobilenet-fpn", SMALL)
    return Detector(build(settings, 2), settings, ("cat", "dog"), category_ids=(7, 3), threshold=0.0, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index, size in enumerate(SIZES):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def same(first: Result, second: Result) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in ("boxes", "scores", "labels")]
    return first.size == second.size and all(np.array_equal(a, b) for a, b in pairs)


def test_an_image_may_be_a_file_an_array_a_picture_or_a_tensor(detector: Detector, folder: Path) -> None:
    path = folder / "0.png"
    picture = Image.open(path)
    array = np.asarray(picture)
    (expected,) = detector.predict(path)
    assert len(expected) == 9
    assert expected.path == str(path)
    for image in (str(path), array, picture, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        (found,) = detector.predict(image)
        assert same(found, expected)
    assert detector.predict(array)[0].path is None
    assert len(detector.predict([path, array, picture])) == 3


def test_results_come_in_the_order_of_the_images_whatever_the_batch(detector: Detector, folder: Path) -> None:
    alone = [detector.predict(folder / f"{index}.png")[0] for index in range(len(SIZES))]
    for batch in (1, 2, 8):
        together = list(detector.stream(folder, batch=batch))
        assert [(Path(one.path or "").name, one.size) for one in together] == [
            (f"{index}.png", size) for index, size in enumerate(SIZES)
        ]
        assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_images_are_read_when_their_turn_comes(detector: Detector, folder: Path) -> None:
    stream = detector.stream([folder / "0.png", folder / "nowhere.png"])
    assert next(stream).size == SIZES[0]
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        next(stream)


def test_each_box_has_its_features_on_request(detector: Detector, folder: Path) -> None:
    with_features, without = detector.predict(folder / "0.png", features=True)[0], detector.predict(folder / "0.png")[0]
    assert without.features is None
    assert with_features.features is not None
    assert with_features.features.shape == (len(with_features), 16)
    assert same(with_features, without)


def test_scores_are_cut_at_the_stored_threshold_unless_told(detector: Detector, folder: Path) -> None:
    every = detector.predict(folder / "0.png", score=0)[0].scores
    middle = float(np.median(every))
    strict = Detector(detector.model, detector.settings, detector.names, threshold=middle, device="cpu")
    assert len(strict.predict(folder / "0.png")[0]) == (every >= np.float32(middle)).sum() < len(every)
    assert len(strict.predict(folder / "0.png", score=0)[0]) == len(every)


def test_proposals_are_the_best_first_without_classes(detector: Detector, folder: Path) -> None:
    (found,) = detector.propose(folder / "0.png", top=5)
    assert found.names == ("object",)
    assert len(found) == 5
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= (80, 60, 80, 60)).all()


@pytest.mark.parametrize("part", ["rpn.head", "fast_rcnn.predictor", "backbone"])
def test_weights_that_are_not_finite_are_an_error(detector: Detector, folder: Path, part: str) -> None:
    model = build(detector.settings, 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.fill_(torch.nan)
    broken = Detector(model, detector.settings, detector.names, device="cpu")
    with pytest.raises(NonFiniteError, match="not finite"):
        broken.predict(folder / "0.png")
    if part != "fast_rcnn.predictor":
        with pytest.raises(NonFiniteError, match="not finite"):
            broken.propose(folder / "0.png")


def test_what_is_saved_is_loaded(detector: Detector, folder: Path, tmp_path: Path) -> None:
    detector.summary["epoch"] = 3
    detector.save(tmp_path / "a.safetensors")
    loaded = Detector.load(tmp_path / "a.safetensors", "cpu")
    assert (loaded.names, loaded.category_ids, loaded.threshold) == (("cat", "dog"), (7, 3), 0.0)
    assert loaded.settings == detector.settings
    assert loaded.summary == {"epoch": 3}
    assert same(loaded.predict(folder / "0.png")[0], detector.predict(folder / "0.png")[0])
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"kind": "checkpoint"})
    with pytest.raises(WeightsError, match=r"a\.safetensors: holds weights, but not a detector"):
        Detector.load(tmp_path / "a.safetensors")


def test_a_device_that_is_not_here_is_named() -> None:
    for name in ("cuda:99", "gpu"):
        with pytest.raises(SettingsError, match=rf"`{name}` can't be used here"):
            choose_device(name)
    assert choose_device("cpu").type == "cpu"


def test_folders_are_searched_to_the_bottom_and_globs_are_sorted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/b/2.JPG", "a/1.png", "a/notes.txt"):
        (tmp_path / name).touch()
    assert files(tmp_path / "a") == [tmp_path / "a/1.png", tmp_path / "a/b/2.JPG"]
    assert files(f"{tmp_path}/a*") == files(tmp_path / "a")
    assert files(f"{folder}/[12].png") == [folder / "1.png", folder / "2.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in this folder"):
        files(tmp_path / "empty")
    with pytest.raises(ImageError, match="no such file, folder or glob"):
        files(tmp_path / "*.png")
