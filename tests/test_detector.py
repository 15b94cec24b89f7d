import copy
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.config import override
from rcnn.detector import Detector
from rcnn.errors import ImageError, NonFiniteError, SettingsError, WeightsError
from rcnn.metrics.overlap import box_iou
from rcnn.model.structures import Batch, NormalisedBatch
from rcnn.model.suppress import NMS
from rcnn.presets import build, settings_of
from rcnn.result import Result
from rcnn.runtime.eager import choose_device
from rcnn.runtime.folded import folded
from rcnn.runtime.precision import chosen_precision, has_bf16
from rcnn.weights.box_targets import LAYER
from rcnn.weights.file import save_weights
from tests.model.tiny import TinyBackbone

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


def test_loading_and_other_settings_draw_no_random_numbers(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "saved.safetensors")
    before = torch.get_rng_state()
    for made in (Detector.load(tmp_path / "saved.safetensors", "cpu"), detector.with_settings(["roi.nms=0.4"])):
        state = made.model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in detector.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def test_images_can_be_paths_arrays_pil_images_or_tensors(detector: Detector, folder: Path) -> None:
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


def test_a_file_names_no_cache_of_its_authors_machine(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = detector.with_settings([f"data.cache={tmp_path / 'cache'}"])
    changed.save(tmp_path / "a.safetensors")
    assert Detector.load(tmp_path / "a.safetensors", "cpu").settings.data.cache is None
    monkeypatch.setattr("rcnn.weights.metadata.portable", lambda settings: settings)  # as another program might
    changed.save(tmp_path / "b.safetensors")
    assert Detector.load(tmp_path / "b.safetensors", "cpu").settings.data.cache is None


def test_with_settings_changes_only_the_settings(detector: Detector, folder: Path) -> None:
    known = {"category_ids": (7, 3), "threshold": 0.3, "summary": {"epoch": 4}, "licence": "CC0"}
    before = Detector(detector.model, detector.settings, ("cat", "dog"), device="cpu", **known)
    other = before.with_settings(["roi.detections=5"])
    assert (before.settings.roi.detections, other.settings.roi.detections) == (9, 5)
    for name in ("names", "device", *known):
        assert getattr(other, name) == getattr(before, name), name
    found, expected = other.predict(folder / "0.png", score=0.0)[0], before.predict(folder / "0.png", score=0.0)[0]
    assert same(found, expected.filter(top=5))
    again = before.with_settings({"roi": {"box_std": (1, 1, 1, 1)}}).predict(folder / "0.png", score=0.0)[0]
    np.testing.assert_allclose(again.boxes, expected.boxes, atol=1e-3)
    with pytest.raises(SettingsError, match=r"^roi.hidden: the weights are made for other layers"):
        before.with_settings(["roi.hidden=17"])


def test_bf16_is_optional_and_returns_float32_results(detector: Detector, folder: Path) -> None:
    half = detector.with_settings(["predict.precision=bf16"])
    assert (half.runtime.precision, detector.runtime.precision) == ("bf16", "float32")
    (exact,), (rounded,) = (one.predict(folder / "0.png", features=True) for one in (detector, half))
    for found in (exact, rounded):
        assert found.features is not None
        assert {part.dtype for part in (found.boxes, found.scores, found.features)} == {np.dtype(np.float32)}
    assert 0 < np.abs(rounded.scores - exact.scores).max() < 0.01
    # By default, the network is used unchanged, bit for bit.
    picture = detector.preprocessor.resize(np.asarray(Image.open(folder / "0.png")))
    batch = detector.preprocessor.collate([picture], [SIZES[0]])
    with torch.inference_mode():
        plain = folded(detector.model).to(memory_format=torch.channels_last)(batch)  # type: ignore[call-overload]
    assert torch.equal(plain.scores[plain.valid], torch.from_numpy(exact.scores))


def test_16_bit_images_in_memory_and_in_files_give_the_same_results(detector: Detector, tmp_path: Path) -> None:
    settings = override(detector.settings, ["data.white=4095"])
    twelve = Detector(detector.model, settings, detector.names, threshold=0.0, device="cpu")
    image = np.random.default_rng(0).integers(0, 4096, (60, 80), dtype=np.uint16)
    Image.fromarray(image).save(tmp_path / "a.png")
    (file,) = twelve.predict(tmp_path / "a.png")
    assert len(file)
    assert all(same(file, found) for found in twelve.predict([image, Image.open(tmp_path / "a.png")]))
    assert not same(file, detector.predict(image)[0])


def test_results_keep_the_order_of_the_images_for_any_batch_size(detector: Detector, folder: Path) -> None:
    alone = [detector.predict(folder / f"{index}.png")[0] for index in range(len(SIZES))]
    for batch in (1, 2, 8):
        together = list(detector.stream(folder, batch=batch))
        assert [(Path(one.path or "").name, one.size) for one in together] == [
            (f"{index}.png", size) for index, size in enumerate(SIZES)
        ]
        assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_images_are_read_lazily(detector: Detector, folder: Path) -> None:
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


def test_the_stored_threshold_is_the_default_score(detector: Detector, folder: Path) -> None:
    every = detector.predict(folder / "0.png", score=0)[0].scores
    middle = float(np.median(every))
    strict = Detector(detector.model, detector.settings, detector.names, threshold=middle, device="cpu")
    assert len(strict.predict(folder / "0.png")[0]) == (every >= np.float32(middle)).sum() < len(every)
    assert len(strict.predict(folder / "0.png", score=0)[0]) == len(every)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("conf", r"did you mean `score=`\?"),
        ("imgsz", r'did you mean `detector.with_settings\(\["imgsz=..."\]\)`\?'),
        ("iou", r'did you mean `detector.with_settings\(\["roi.nms=..."\]\)`\?'),
        ("half", r'\["predict.precision=bf16"\]'),
        ("nonsense", "unexpected keyword argument 'nonsense'"),
    ],
)
def test_argument_names_of_other_programs_get_suggestions(detector: Detector, name: str, answer: str) -> None:
    with pytest.raises(TypeError, match=answer):
        detector.predict([], **{name: 1})  # type: ignore[arg-type]


def test_proposals_are_sorted_and_have_no_classes(detector: Detector, folder: Path) -> None:
    (found,) = detector.propose(folder / "0.png", top=5)
    assert found.names == ("object",)
    assert len(found) == 5
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= (80, 60, 80, 60)).all()


@pytest.mark.parametrize("part", ["rpn.head", "fast_rcnn.predictor", "backbone"])
def test_non_finite_weights_raise(detector: Detector, folder: Path, part: str) -> None:
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


def test_saved_detectors_are_loaded_unchanged(detector: Detector, folder: Path, tmp_path: Path) -> None:
    detector.summary["epoch"] = 3
    detector.save(tmp_path / "a.safetensors")
    loaded = Detector.load(tmp_path / "a.safetensors", "cpu")
    assert (loaded.names, loaded.category_ids, loaded.threshold) == (("cat", "dog"), (7, 3), 0.0)
    assert loaded.settings == detector.settings
    assert loaded.summary == {"epoch": 3}
    assert same(loaded.predict(folder / "0.png")[0], detector.predict(folder / "0.png")[0])
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_detector_can_be_copied_and_pickled_after_predicting(detector: Detector, folder: Path) -> None:
    (found,) = detector.predict(folder / "0.png")
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert same(other.predict(folder / "0.png")[0], found)


def test_the_copy_for_prediction_is_not_pickled(detector: Detector, folder: Path) -> None:
    fresh = detector.with_settings([])
    before = len(pickle.dumps(fresh))
    fresh.predict(folder / "0.png")
    assert len(pickle.dumps(fresh)) == before


def test_a_detector_of_a_file_is_pickled_as_its_path_and_digest(
    detector: Detector, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    detector.save(file)
    changed = Detector.load(file, "cpu").with_settings(["roi.nms=0.3", "predict.score=0.2"])
    changed.threshold = 0.125
    pickled = pickle.dumps(changed)
    assert len(pickled) < 10_000
    loaded = pickle.loads(pickled)
    assert loaded.threshold == 0.125
    assert loaded.settings == changed.settings
    assert same(loaded.predict(folder / "0.png")[0], changed.predict(folder / "0.png")[0])
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(WeightsError, match="is not the file that the detector was pickled with"):
        pickle.loads(pickled)
    file.unlink()
    with pytest.raises(WeightsError, match=r"a.safetensors: can't be read .*copy the file to the same path"):
        pickle.loads(pickled)


@pytest.mark.parametrize("change", ["weights", "suppression", "file"])
def test_a_detector_that_differs_from_its_file_is_pickled_completely(
    detector: Detector, folder: Path, tmp_path: Path, change: str
) -> None:
    file = tmp_path / "a.safetensors"
    detector.save(file)
    loaded = Detector.load(file, "cpu")
    if change == "weights":
        next(loaded.model.parameters()).data.add_(1)
    elif change == "suppression":
        loaded = loaded.with_suppression(detections=NMS(0.1))
    else:
        file.unlink()
    copied = pickle.loads(pickle.dumps(loaded))
    assert copied.suppression.detections == loaded.suppression.detections
    assert same(copied.predict(folder / "0.png")[0], loaded.predict(folder / "0.png")[0])


def test_half_precision_halves_the_file_and_loads_as_float32(detector: Detector, folder: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "whole.safetensors")
    detector.save(tmp_path / "half.safetensors", half=True)
    whole, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half"))
    assert 0.4 < half / whole < 0.6
    loaded = Detector.load(tmp_path / "half.safetensors", "cpu")
    kept, state = detector.model.state_dict(), loaded.model.state_dict()
    for name, tensor in state.items():
        assert tensor.dtype == kept[name].dtype
        least = 2**-24 / (0.1 if name.startswith(LAYER) else 1)  # this layer is stored multiplied by `roi.box_std`
        torch.testing.assert_close(tensor, kept[name], rtol=2**-11, atol=least)
    assert len(loaded.predict(folder / "0.png")[0]) == 9
    loaded.save(tmp_path / "again.safetensors", half=True)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "half.safetensors").read_bytes()


def test_weights_too_large_for_half_precision_raise_and_keep_the_old_file(detector: Detector, tmp_path: Path) -> None:
    model = build(detector.settings, 2)
    with torch.no_grad():
        model.get_parameter("rpn.head.cls.bias").fill_(1e5)
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(WeightsError, match=r"`rpn\.head\.cls\.bias` has numbers up to 100000"):
        Detector(model, detector.settings, detector.names, device="cpu").save(path, half=True)
    assert path.read_bytes() == b"old"


def test_a_compiled_detector_gives_the_same_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector compiles to one graph; the test uses the eager backend."""
    settings = settings_of("tiny-fpn", [*SMALL, "predict.precision=fp16"])
    torch.manual_seed(0)
    detector = Detector(build(settings, 2), settings, ("cat", "dog"), threshold=0.0, device="cpu")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    found = detector.with_settings(["predict.compile=true"])
    for call in (Detector.predict, Detector.propose):
        assert same(call(found, folder / "0.png")[0], call(detector, folder / "0.png")[0])


def test_the_batch_type_defines_the_pixel_format(detector: Detector, folder: Path) -> None:
    """Test `predict` and `detect` with a network that takes uint8 and one that takes floats, like imported networks."""
    array = np.array(Image.open(folder / "0.png"))
    for resize, dtype in (("pillow", torch.uint8), ("interpolate", torch.float32)):
        settings = override(detector.settings, [f"preprocess.resize={resize}"])
        torch.manual_seed(0)
        found = Detector(build(settings, 2), settings, ("cat", "dog"), threshold=0.0, device="cpu")
        preprocessor = found.preprocessor
        batch = preprocessor.collate([preprocessor.resize(array)], [array.shape[:2]])
        assert type(batch) is Batch
        assert batch.images.dtype == dtype
        (expected,) = found.predict(array)
        assert len(expected) > 3
        normalised = NormalisedBatch(found.runner.pixels(batch), *batch[1:])
        for one in (batch, normalised):
            assert same(found.detect(one)[0], expected)
            assert len(found.region_proposals(one)[0]) > 3
        calls = (found.detect, found.region_proposals)
        for call in calls:
            with pytest.raises(SettingsError, match=r"a NormalisedBatch holds floating-point .* torch\.int32"):
                call(NormalisedBatch(batch.images.int(), *batch[1:]))
            with pytest.raises(SettingsError, match=r"a Batch holds pixels .* torch\.int32"):
                call(batch._replace(images=batch.images.int()))
        if resize == "pillow":
            for call in calls:
                with pytest.raises(SettingsError, match=r"takes as torch\.uint8, but these are torch\.float32"):
                    call(Batch(*normalised))
        for one in (batch, normalised, [array, normalised]):
            with pytest.raises(ImageError, match=r"a (Normalised)?Batch was given where images .* `Detector\.detect`"):
                found.predict(one)


def test_auto_precision_depends_on_the_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((6, 1), "float32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert chosen_precision("auto", torch.device("cuda")) == expected
        assert chosen_precision("float32", torch.device("cuda")) == "float32"
    assert chosen_precision("auto", torch.device("cpu")) == "float32"


def test_the_licence_is_saved_and_folders_are_not(detector: Detector, tmp_path: Path) -> None:
    changes = {"data": {"licence": "MIT", "path": "/home/me/pets"}, "train": {"init": "/home/me/start.pth"}}
    settings = override(detector.settings, changes)
    path = tmp_path / "a.safetensors"
    Detector(detector.model, settings, detector.names, device="cpu").save(path)
    loaded = Detector.load(path, "cpu")
    assert (loaded.licence, loaded.settings.data.path) == ("MIT", "pets")
    assert b"/home/me" not in path.read_bytes()
    Detector(detector.model, settings, detector.names, licence="CC0-1.0", device="cpu").save(path)
    assert Detector.load(path, "cpu").licence == "CC0-1.0"


def test_weights_that_do_not_match_their_settings_are_rejected(detector: Detector, tmp_path: Path) -> None:
    wider = override(detector.settings, ["roi.hidden=24"])
    Detector(detector.model, wider, detector.names, device="cpu").save(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors: holds weights, but not .*: `fast_rcnn\.head\.fc6"):
        Detector.load(tmp_path / "a.safetensors", "cpu")


def test_weights_of_other_kinds_are_rejected(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"kind": "checkpoint"})
    with pytest.raises(WeightsError, match=r"a\.safetensors: holds weights, but not a detector"):
        Detector.load(tmp_path / "a.safetensors")


def test_a_detector_without_second_stage_only_proposes(detector: Detector, folder: Path, tmp_path: Path) -> None:
    settings = settings_of("mobilenet-fpn", [*SMALL, "roi.head=none"])
    model = build(settings, 2)
    model.load_state_dict({k: v for k, v in detector.model.state_dict().items() if not k.startswith("fast_rcnn.")})
    first = Detector(model, settings, detector.names, device="cpu")
    with pytest.raises(SettingsError, match=r"no second stage .* `propose` instead of `predict`"):
        first.predict(folder / "0.png")
    first.save(tmp_path / "rpn.safetensors")
    loaded = Detector.load(tmp_path / "rpn.safetensors", "cpu")
    assert same(loaded.propose(folder / "0.png")[0], detector.propose(folder / "0.png")[0])


def test_a_custom_backbone_is_passed_to_load(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    changes = ["model.backbone=custom", "model.levels=[3, 4]", "anchors.sizes=[[16], [32]]", "roi.levels=[3, 4]"]
    settings = settings_of("mobilenet-fpn", [*SMALL, *changes])
    own = Detector(build(settings, 2, backbone=TinyBackbone()), settings, ("cat", "dog"), threshold=0.0, device="cpu")
    own.save(tmp_path / "own.safetensors")
    loaded = Detector.load(tmp_path / "own.safetensors", "cpu", backbone=TinyBackbone())
    assert same(loaded.predict(folder / "0.png")[0], own.predict(folder / "0.png")[0])
    with pytest.raises(WeightsError, match=r"own\.safetensors: .* backbone of your own.*load\(path, backbone=MODULE\)"):
        Detector.load(tmp_path / "own.safetensors", "cpu")
    other, coarse = TinyBackbone(), TinyBackbone()
    other.strides, coarse.strides = (16, 32), (8,)
    for backbone, message in ((other, r"roi\.levels names \[3\]"), (coarse, r"anchors\.sizes has 2 levels")):
        with pytest.raises(WeightsError, match=rf"own\.safetensors: .*{message}"):
            Detector.load(tmp_path / "own.safetensors", "cpu", backbone=backbone)


def test_an_unavailable_device_is_named() -> None:
    for name in ("cuda:99", "gpu"):
        with pytest.raises(SettingsError, match=rf"`{name}` can't be used here"):
            choose_device(name)
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(SettingsError, match="`mps` has no float64, which suppression needs; take cpu"):
        choose_device("mps")


@pytest.mark.parametrize(("capability", "has"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_bf16_requires_gpu_support(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16(torch.device("cuda", 0)) is has


ONE_STAGE = [*SMALL, "roi.head=none", "rpn.classify=classes", "roi.score=0.2"]


def spread(detector: Detector) -> None:
    """Randomise the class logits of a new one-stage detector so that they differ."""
    head = detector.model.rpn.head.cls
    torch.nn.init.normal_(head.weight, std=1.0)
    torch.nn.init.zeros_(head.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_a_one_stage_detector_predicts_proposes_and_saves(folder: Path, tmp_path: Path, loss: str) -> None:
    torch.manual_seed(0)
    settings = settings_of("mobilenet-fpn", [*ONE_STAGE, f"rpn.loss={loss}"])
    made = Detector(build(settings, 2), settings, ("cat", "dog"), threshold=0.0, device="cpu")
    spread(made)
    alone = [made.predict(folder / f"{index}.png")[0] for index in range(len(SIZES))]
    assert all(len(one) == 9 and one.scores.min() > 0.2 for one in alone)
    assert {label for one in alone for label in one.labels.tolist()} == {0, 1}
    assert all(same(a, b) for a, b in zip(made.stream(folder, batch=4), alone, strict=True))
    (proposed,) = made.propose(folder / "0.png", top=5)
    assert (proposed.names, len(proposed)) == (("object",), 5)
    made.save(tmp_path / "a.safetensors")
    assert same(Detector.load(tmp_path / "a.safetensors", "cpu").predict(folder / "0.png")[0], alone[0])
    with pytest.raises(SettingsError, match="a one-stage detector has no feature vectors"):
        made.predict(folder / "0.png", features=True)


def at_scales(detector: Detector, *scales: float, **roi: object) -> Detector:
    settings = override(detector.settings, {"predict": {"scales": scales}, "roi": roi})
    model = build(settings, 2)
    model.load_state_dict(detector.model.state_dict())
    return Detector(model, settings, detector.names, category_ids=(7, 3), threshold=0.0, device="cpu")


def test_a_scale_of_1_changes_nothing(detector: Detector, folder: Path) -> None:
    preprocessor = detector.preprocessor
    for index, size in enumerate(SIZES):
        array = np.asarray(Image.open(folder / f"{index}.png"))
        (plain,) = detector.detect(preprocessor.collate([preprocessor.resize(array)], [size]))
        for one in (detector, at_scales(detector, 1.0)):
            assert same(one.predict(array)[0], plain)


def test_two_scales_combine_the_results_of_each(detector: Detector, folder: Path) -> None:
    whole = {"detections": 500, "score": 0.0}
    both = at_scales(detector, 1.0, 1.7, **whole).predict(folder)
    parts = [at_scales(detector, scale, **whole).predict(folder) for scale in (1.0, 1.7)]
    assert not any(same(*pair) for pair in zip(*parts, strict=True))
    for pooled, *apart in zip(both, *parts, strict=True):
        assert {pooled.path} == {one.path for one in apart}
        assert (np.diff(pooled.scores) <= 0).all()
        height, width = pooled.size
        assert (pooled.boxes >= 0).all()
        assert (pooled.boxes <= (width, height, width, height)).all()
        kept = {(*box, label) for box, label in zip(pooled.boxes.tolist(), pooled.labels.tolist(), strict=True)}
        found = [(*row, label) for one in apart for row, label in zip(one.boxes.tolist(), one.labels, strict=True)]
        assert kept <= set(found)
        for one in apart:
            iou = box_iou(one.boxes, pooled.boxes) * (one.labels[:, None] == pooled.labels)
            better = (iou > 0.5) & (pooled.scores >= one.scores[:, None])
            assert better.any(axis=1).all()  # the same box, or a better one that replaces it


def test_scales_change_neither_order_nor_skipped_images(detector: Detector, folder: Path, tmp_path: Path) -> None:
    pyramid = at_scales(detector, 0.5, 1.0, 1.5)
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [folder / "1.png", tmp_path / "bad.png", *(folder / f"{index}.png" for index in (0, 2, 4, 3))]
    skipped: list[ImageError] = []
    alone = [pyramid.predict(image)[0] for image in images if image.name != "bad.png"]
    for batch in (1, 3):
        skipped.clear()
        together = list(pyramid.stream(images, batch=batch, skip=skipped.append))
        assert [Path(one.path or "").name for one in together] == ["1.png", "0.png", "2.png", "4.png", "3.png"]
        assert all(same(a, b) for a, b in zip(together, alone, strict=True))
        assert len(skipped) == 1
    (with_features,) = pyramid.predict(folder / "0.png", features=True)
    assert with_features.features is not None
    assert with_features.features.shape == (len(with_features), 16)
    assert same(with_features, alone[1])


def test_an_empty_list_of_scales_is_rejected() -> None:
    with pytest.raises(SettingsError, match=r"predict\.scales"):
        settings_of("mobilenet-fpn", ["predict.scales=[]"])


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("predict", {"score": float("nan")}, r"^score=nan: give a number from 0 to 1"),
        ("predict", {"score": 50}, r"^score=50: give a number from 0 to 1"),
        ("predict", {"score": "0.5"}, r"^score='0\.5': give a number from 0 to 1"),
        ("stream", {"batch": 0}, r"^batch=0: give a whole number of at least 1"),
        ("stream", {"batch": 1.5}, r"^batch=1\.5: give a whole number of at least 1"),
        ("propose", {"top": 0}, r"^top=0: give a whole number of at least 1"),
        ("stream_proposals", {"batch": -1}, r"^batch=-1: give a whole number of at least 1"),
    ],
)
def test_arguments_out_of_range_are_rejected_before_any_image_is_read(
    detector: Detector, method: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        getattr(detector, method)(Path("nowhere.png"), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("cat",)}, "^names: the network has 2 classes, got 1"),
        ({"category_ids": (1, 2, 3)}, "^category_ids: the network has 2 classes, got 3"),
        ({"threshold": float("nan")}, "^threshold=nan: give a number from 0 to 1"),
    ],
)
def test_wrong_class_counts_and_thresholds_are_rejected(
    detector: Detector, options: dict[str, object], message: str
) -> None:
    arguments = {"names": detector.names, **options}
    with pytest.raises(SettingsError, match=message):
        Detector(detector.model, detector.settings, device="cpu", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 10, 3), np.uint8), "the image is empty"),
        (Image.new("RGB", (0, 10)), "the image is empty: 0 x 10 pixels"),
        ("", "the path of the images is empty"),
        (None, "NoneType is not an image"),
        ([3], "int is not an image"),
    ],
)
def test_invalid_images_are_rejected(detector: Detector, image: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        detector.predict(image)  # type: ignore[arg-type]


def test_missing_paths_in_a_list_are_skipped(detector: Detector, folder: Path) -> None:
    skipped: list[ImageError] = []
    images = [folder / "0.png", "nowhere.png", "", folder / "1.png"]
    found = list(detector.stream(images, skip=skipped.append))
    assert [result.path for result in found] == [str(images[0]), str(images[3])]
    assert [str(error).partition(":")[0] for error in skipped] == [
        "nowhere.png",
        "the path of the images is empty; `.` is the current folder",
    ]


def test_files_that_vanish_or_become_folders_are_skipped(detector: Detector, folder: Path, tmp_path: Path) -> None:
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes((folder / "0.png").read_bytes())
    skipped: list[ImageError] = []
    results = detector.stream(tmp_path, skip=skipped.append)
    assert next(results).path == str(tmp_path / "0.png")
    (tmp_path / "4.png").unlink()
    (tmp_path / "5.png").unlink()
    (tmp_path / "5.png").mkdir()
    assert [Path(result.path or "").name for result in results] == ["1.png", "2.png", "3.png"]
    assert [str(error).partition(": ")[0] for error in skipped] == [str(tmp_path / f"{index}.png") for index in (4, 5)]
