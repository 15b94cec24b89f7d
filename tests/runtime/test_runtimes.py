"""Exported files in onnxruntime and OpenVINO, as detectors; the graphs are those of `graphs`."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import rcnn
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset
from rcnn.detector import Detector
from rcnn.errors import ImageError, NonFiniteError, SettingsError, UnavailableError, WeightsError
from rcnn.evaluate import evaluate, val
from rcnn.model.structures import Batch, NormalisedBatch
from rcnn.runtime import packages
from rcnn.runtime.by_suffix import RUNTIMES
from rcnn.runtime.graph import GraphRuntime
from rcnn.runtime.onnx import OnnxRuntime
from rcnn.runtime.openvino import OpenVinoRuntime
from tests.runtime import graphs

WHITE = np.full((60, 80, 3), 255, dtype=np.uint8)  # resized to 64 x 85, in a bucket of 64 x 96
PLACES = [[8.0, 12.0, 40.0, 36.0], [40.0, 30.0, 80.0, 60.0]]
SUFFIXES = tuple(graphs.WRITE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Suffix -> a file of any size."""
    folder = tmp_path_factory.mktemp("exported")
    one = graphs.detector()
    return {suffix: graphs.own(write(folder / f"a.{suffix}", one)) for suffix, write in graphs.WRITE.items()}


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Suffix -> a file for 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("fixed")
    one = graphs.detector()
    return {suffix: graphs.own(write(folder / f"a.{suffix}", one, (64, 64))) for suffix, write in graphs.WRITE.items()}


def batch_of(found: Detector, count: int = 1) -> Batch:
    return found.preprocessor.collate([found.preprocessor.resize(WHITE)] * count, [WHITE.shape[:2]] * count)


def runtime(found: Detector) -> GraphRuntime:
    assert isinstance(found.runtime, GraphRuntime)
    return found.runtime


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_signal_is_handled_after_two_detectors_are_deleted(files: dict[str, Path], suffix: str) -> None:
    """OpenVINO changes the stack for signals: see `packages.openvino_core`."""
    found = [rcnn.load(files[suffix]) for _ in range(2)]
    while found:  # in the order of their creation
        found.pop(0)
    signals = []
    before = signal.signal(signal.SIGTERM, lambda *_: signals.append(True))
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_a_detector(files: dict[str, Path], suffix: str) -> None:
    found = rcnn.load(files[suffix])
    assert (found.names, found.category_ids, found.threshold, found.licence) == (graphs.NAMES, (7, 3), 0.25, "CC0")
    assert (found.runtime.name, found.device.type) == ({"onnx": "onnxruntime", "xml": "openvino"}[suffix], "cpu")
    assert runtime(found).metadata.parity == {"images": 6, "agreement": 1.0}
    for images, batch in ((WHITE, 1), ([WHITE, WHITE[:50], WHITE], 2)):
        results = found.predict(images, batch=batch)
        np.testing.assert_allclose(results[-1].boxes, PLACES, atol=1e-4)
        np.testing.assert_allclose(results[-1].scores, [0.848438, 0.565625], atol=1e-5)  # 85 of 96 columns are white
        assert results[-1].labels.tolist() == [1, 0]
    (proposed,) = found.propose(WHITE)
    np.testing.assert_allclose(proposed.boxes, PLACES, atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_sees_windows(files: dict[str, Path], suffix: str) -> None:
    found = rcnn.load(files[suffix]).with_settings(["predict.tile=80", "predict.overlap=0"])
    wide = np.concatenate([WHITE] * 2, axis=1)
    views = found.viewer.views((60, 160))
    assert [(view.left, view.width) for view in views] == [(0, 80), (40, 80), (80, 80)]
    for result in (*found.predict(wide, batch=2), *found.propose(wide)):
        seen = {tuple(box) for box in result.boxes.round(3).tolist()}
        assert seen >= {(8.0, 12.0, 40.0, 36.0), (88.0, 12.0, 120.0, 36.0), (120.0, 30.0, 160.0, 60.0)}
        assert result.size == (60, 160)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_indices_that_a_graph_lacks_are_minus_one(files: dict[str, Path], suffix: str) -> None:
    found = rcnn.load(files[suffix])
    pass_ = found.runtime.execute(batch_of(found, 2))
    assert (pass_.levels, pass_.rpn, pass_.rois) == ((), None, ())
    assert pass_.proposals is not None
    assert pass_.detections is not None
    assert pass_.finite.tolist() == [True, True]
    for part in (pass_.proposals.level, pass_.proposals.anchor, pass_.detections.proposal):
        assert part.dtype == torch.int64
        assert part.tolist() == [[-1] * 3] * 2
    assert pass_.detections.valid.tolist() == [[True, True, False]] * 2
    assert pass_.detections.labels.dtype == torch.int64


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_region_proposal_network_alone_proposes(tmp_path: Path, suffix: str) -> None:
    path = graphs.WRITE[suffix](tmp_path / f"a.{suffix}", graphs.detector("roi.head=none"))
    found = rcnn.load(path)
    assert len(found.propose(WHITE)[0]) == 2
    pass_ = found.runtime.execute(batch_of(found))
    assert pass_.detections is not None
    assert [tuple(part.shape) for part in pass_.detections] == [(1, 0, 4), (1, 0), (1, 0), (1, 0), (1, 0), (1,)]
    with pytest.raises(SettingsError, match="can't predict classes"):
        found.predict(WHITE)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_of_interpolate_are_floats(tmp_path: Path, suffix: str) -> None:
    path = graphs.WRITE[suffix](tmp_path / f"a.{suffix}", graphs.detector("preprocess.resize=interpolate"))
    found = rcnn.load(path)
    np.testing.assert_allclose(found.predict(WHITE)[0].scores, [0.848438, 0.565625], atol=1e-5)
    batch = batch_of(rcnn.load(graphs.write_onnx(tmp_path / "b.onnx", graphs.detector())))
    with pytest.raises(SettingsError, match=r"takes pixels of 0\.\.255 as torch\.float32, but these are torch\.uint8"):
        found.detect(batch)


@pytest.mark.parametrize("resize", ["pillow", "interpolate"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_normalises_images_itself(tmp_path: Path, suffix: str, resize: str) -> None:
    path = graphs.WRITE[suffix](tmp_path / f"a.{suffix}", graphs.detector(f"preprocess.resize={resize}"))
    found = rcnn.load(path)
    batch = batch_of(found)
    floats = (batch.images.float() / 255 - 0.5) / 0.25
    for images in (floats, batch.images, floats.double()):
        with pytest.raises(SettingsError, match=r"normalises images itself, but was given a NormalisedBatch; give it"):
            found.detect(NormalisedBatch(images, *batch[1:]))
        with pytest.raises(ImageError, match="a NormalisedBatch was given where images are expected"):
            found.predict(NormalisedBatch(images, *batch[1:]))
    wrong = floats if resize == "pillow" else floats.double()
    with pytest.raises(SettingsError, match=rf"takes pixels of 0\.\.255 as .*, but these are {wrong.dtype}; prepare"):
        found.detect(Batch(wrong, *batch[1:]))
    assert len(found.detect(batch)[0]) == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_fit_into_a_file_of_one_size(fixed: dict[str, Path], suffix: str) -> None:
    found = rcnn.load(fixed[suffix])
    assert found.runtime.size == (64, 64)
    wide, tall = np.zeros((40, 160, 3), dtype=np.uint8), np.zeros((300, 100, 3), dtype=np.uint8)
    results = found.predict([WHITE, wide, tall], batch=3)
    np.testing.assert_allclose(results[0].boxes, PLACES, atol=1e-4)
    np.testing.assert_allclose(results[1].boxes[1], [80, 20, 160, 40], atol=1e-4)
    np.testing.assert_allclose(results[0].scores[0], 0.9 * (0.5 + 0.5 * 48 / 64), atol=1e-5)  # resized to 48 x 64
    batch = batch_of(rcnn.load(graphs.write_onnx(fixed[suffix].parent / "free.onnx", graphs.detector())))
    with pytest.raises(SettingsError, match="exported for images of 64 x 64, got 64 x 96"):
        found.detect(batch)
    for change in ("preprocess.short=32", "preprocess.long=80", "predict.scales=[1,2]"):
        key = change.partition("=")[0]
        with pytest.raises(SettingsError, match=rf"^{key}: fixed in the exported file .* without a size$"):
            found.with_settings([change])
    assert found.with_settings(["val.batch=3"]).runtime is found.runtime


def test_sides_are_multiples(files: dict[str, Path]) -> None:
    found = rcnn.load(files["onnx"])
    batch = Batch(torch.zeros(1, 3, 64, 80, dtype=torch.uint8), *(torch.tensor([[64.0, 80.0]]),) * 3)
    with pytest.raises(SettingsError, match="sides are multiples of 32, got 64 x 80"):
        found.detect(batch)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_settings_outside_the_graph_change(files: dict[str, Path], suffix: str) -> None:
    found = rcnn.load(files[suffix])
    elsewhere = ("data.white=255", "train.seed=3", "augment.flip=0", "val.batch=1")
    other = found.with_settings(["preprocess.short=32", "predict.score=0.7", *elsewhere])
    assert other.runtime is found.runtime
    assert other.settings.predict.score == 0.7
    assert other.preprocessor.bucket((60, 80)) == (32, 64)
    assert other.threshold == found.threshold
    np.testing.assert_allclose(other.predict(WHITE)[0].boxes, PLACES, atol=1e-4)
    assert len(found.with_settings(["predict.scales=[1,2]"]).predict(WHITE)[0]) == 2
    network = ("roi.nms=0.3", "rpn.post_test=10", "anchors.ratios=[1]")
    for change in (*network, "preprocess.multiple=64", "preprocess.mean=[0,0,0]"):
        with pytest.raises(
            SettingsError, match=rf"^{change.partition('=')[0]}: fixed in the exported file .* setting$"
        ):
            found.with_settings([change])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_methods_that_need_the_network_are_refused(files: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    found = rcnn.load(files[suffix])
    save, features = lambda: found.save(tmp_path / "a.safetensors"), lambda: found.predict(WHITE, features=True)
    for call in (lambda: found.model, save, features):
        with pytest.raises(SettingsError, match=rf"a file for {found.runtime.name} only detects and proposes"):
            call()
    batch = batch_of(found)
    proposals = found.runtime.execute(batch).proposals
    for call in (lambda: found.runtime.execute(batch, proposals), lambda: found.check_proposals(given=True)):
        with pytest.raises(SettingsError, match="uses only its own proposals"):
            call()
    with pytest.raises(SettingsError, match=r"runs on the CPU here; got `cuda:1`"):
        rcnn.load(files[suffix], "cuda:1")


@pytest.fixture
def shapes(tmp_path: Path) -> Dataset:
    """Two images labelled with the first box of `graphs`, in the second image with the other class."""
    for folder in ("labels", "images"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for index, label in enumerate((1, 0)):
        Image.fromarray(WHITE).save(tmp_path / f"data/images/{index}.png")
        (tmp_path / f"data/labels/{index}.txt").write_text(f"{label} 0.3 0.4 0.4 0.4\n")
    (tmp_path / "data/data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [circle, square]\n")
    return open_dataset(tmp_path / "data/data.yaml", "val", graphs.detector().settings.data, names=graphs.NAMES)


@pytest.mark.parametrize("size", ["free", "fixed"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_scored_without_losses(
    files: dict[str, Path], fixed: dict[str, Path], suffix: str, size: str, shapes: Dataset
) -> None:
    found = rcnn.load((files if size == "free" else fixed)[suffix])
    metrics = evaluate(found, shapes, batch=3)
    assert metrics.losses == {}
    assert metrics.coco.per_class_ap.tolist() == [0.0, 1.0]
    assert metrics.proposals.ar[0] > 0.99
    with pytest.raises(SettingsError, match="only detects and proposes"):
        val(found, shapes.root / "data.yaml" if shapes.root.is_dir() else shapes.root, losses=True)


def test_precision_is_set_in_openvino_and_refused_by_onnxruntime(files: dict[str, Path]) -> None:
    found = rcnn.load(files["xml"])
    other = found.with_settings(["predict.precision=bf16"])
    hints = [runtime(one).running.compiled.get_property("INFERENCE_PRECISION_HINT") for one in (found, other)]  # type: ignore[attr-defined]
    has_bf16 = "BF16" in packages.openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert [hint.to_string() for hint in hints] == ["f32", "bf16" if has_bf16 else "f32"]
    assert (found.runtime.precision, other.runtime.precision) == ("float32", "bf16")
    assert runtime(other.with_settings(["predict.precision=float32"])).precision == "float32"
    for precision in ("bf16", "fp16"):
        with pytest.raises(SettingsError, match=r"onnxruntime computes in float32; set predict.precision=float32"):
            rcnn.load(files["onnx"]).with_settings([f"predict.precision={precision}"])
    with pytest.raises(SettingsError, match=r"predict\.precision=fp16: openvino computes in float32 or bf16"):
        found.with_settings(["predict.precision=fp16"])
    for path in files.values():  # on a CPU
        assert runtime(rcnn.load(path).with_settings(["predict.precision=auto"])).precision == "float32"


def test_the_precision_of_a_file_is_that_of_its_export(tmp_path: Path) -> None:
    one = graphs.detector("predict.precision=bf16")
    assert rcnn.load(graphs.write_openvino(tmp_path / "a.xml", one)).runtime.precision == "bf16"
    with pytest.raises(SettingsError, match="onnxruntime computes in float32"):
        rcnn.load(graphs.write_onnx(tmp_path / "a.onnx", one))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_of_torch(files: dict[str, Path], threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        first, second = rcnn.load(files["onnx"]).runtime, rcnn.load(files["xml"]).runtime
    finally:
        torch.set_num_threads(before)
    assert first.running.session.get_session_options().intra_op_num_threads == threads  # type: ignore[attr-defined]
    assert second.running.compiled.get_property("INFERENCE_NUM_THREADS") == threads  # type: ignore[attr-defined]


def test_entries_are_where_other_programs_look(files: dict[str, Path]) -> None:
    model = packages.openvino().Core().read_model(files["xml"])
    session = packages.onnxruntime().InferenceSession(str(files["onnx"]), providers=["CPUExecutionProvider"])
    names = '{"0": "circle", "1": "square"}'
    for name, text in (("names", names), ("imgsz", "[64, 96]"), ("stride", "32"), ("task", "detect")):
        assert model.get_rt_info(["model_info", name]).astype(str) == text
        assert session.get_modelmeta().custom_metadata_map[name] == text


@pytest.mark.parametrize(("suffix", "missing"), [("onnx", "onnxruntime"), ("onnx", "onnx"), ("xml", "openvino")])
def test_a_missing_package_is_named(
    files: dict[str, Path], suffix: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    extra = "openvino" if suffix == "xml" else "onnx"
    with pytest.raises(UnavailableError, match=rf"the package {missing}, .* get it by: pip install 'rcnn\[{extra}\]'$"):
        rcnn.load(files[suffix])


@pytest.mark.parametrize("changes", [{"labels": [1, 2, 0]}, {"labels": [-1, 0, 0]}])
def test_labels_of_no_class_are_refused(tmp_path: Path, changes: dict[str, list[int]]) -> None:
    found = rcnn.load(graphs.write_onnx(tmp_path / "a.onnx", graphs.detector(), **changes))
    with pytest.raises(WeightsError, match="its outputs don't belong together"):
        found.predict(WHITE)


def test_results_that_are_not_finite_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PLACES", graphs.PLACES * np.float32(np.nan))
    found = rcnn.load(graphs.write_onnx(tmp_path / "a.onnx", graphs.detector()))
    for call in (found.predict, found.propose):
        with pytest.raises(NonFiniteError):
            call(WHITE)


def test_a_graph_that_fails_is_named(tmp_path: Path) -> None:
    found = rcnn.load(graphs.write_onnx(tmp_path / "a.onnx", graphs.detector(), batch=1))
    assert len(found.predict([WHITE, WHITE])) == 2
    with pytest.raises(WeightsError, match=r"fails on images of \(2, 3, 64, 96\): .* invalid dimensions for input"):
        found.predict([WHITE, WHITE], batch=2)
    found = rcnn.load(graphs.write_openvino(tmp_path / "a.xml", graphs.detector(), batch=1))
    with pytest.raises(WeightsError, match=r"fails on images of \(2, 3, 64, 96\): Can't set the input tensor"):
        found.predict([WHITE, WHITE], batch=2)


def test_a_graph_with_other_ports_is_refused(tmp_path: Path) -> None:
    one, alone = graphs.detector(), graphs.detector("roi.head=none")
    models = graphs.model(alone), graphs.model(one), graphs.model(one)
    onnx.helper.set_model_props(models[0], {entry.key: entry.value for entry in models[1].metadata_props})
    models[1].graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    models[2].graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    for made, message in zip(
        models,
        (
            "its graph has no output `boxes` of float32 with 3 axes",
            "its graph has no input `images` of uint8 with 4 axes",
            "its graph requires an input `more`",
        ),
        strict=True,
    ):
        (tmp_path / "a.onnx").write_bytes(made.SerializeToString())
        with pytest.raises(WeightsError, match=message):
            rcnn.load(tmp_path / "a.onnx")


def test_contents_count_weights(files: dict[str, Path]) -> None:
    held, _ = OnnxRuntime.read(files["onnx"])
    assert (held.tensors, held.parameters, held.types) == (9, 12 + 3 + 3 + 3, ("float32",))
    assert held.bytes == files["onnx"].stat().st_size
    held, _ = OpenVinoRuntime.read(files["xml"])
    assert held.types == ("float32",)
    assert held.parameters >= 12 + 3 + 3
    assert held.bytes == files["xml"].stat().st_size + files["xml"].with_suffix(".bin").stat().st_size


def test_a_runtime_is_added_in_one_table(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MadeUp(OnnxRuntime):
        name = "made up"

    monkeypatch.setitem(RUNTIMES, ".made-up", MadeUp)
    found = rcnn.load(shutil.copy(files["onnx"], tmp_path / "a.made-up"))
    assert found.runtime.name == "made up"
    assert len(found.predict(WHITE)[0]) == 2


def test_loading_a_file_makes_no_requests(files: dict[str, Path]) -> None:
    """Run in a new process, since the telemetry of openvino starts with its import."""
    program = f"""
import rcnn.open_model  # with torch, whose import looks for libraries
{graphs.NOTE_REQUESTS}
import numpy, rcnn, time
from rcnn.runtime.packages import openvino
for file in sys.argv[1:]:
    assert len(rcnn.load(file).predict(numpy.full((60, 80, 3), 255, dtype=numpy.uint8))[0]) == 2
openvino().convert_model(sys.argv[1])
assert "openvino_telemetry.main" not in sys.modules
"""
    environment = {"PATH": "", "HOME": str(files["xml"].parent), "PYTHONPATH": ":".join(sys.path)}
    environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]  # where they are listed as exports of this user
    run = subprocess.run(
        [sys.executable, "-c", program, files["onnx"], files["xml"]],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr
    assert not (files["xml"].parent / "intel").exists()


def test_events_of_onnxruntime_are_switched_off(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("onnxruntime.disable_telemetry_events", lambda: calls.append("off"))
    rcnn.load(files["onnx"])
    assert calls


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_detector_is_pickled_as_the_path_and_digest_of_its_file(
    files: dict[str, Path], tmp_path: Path, suffix: str
) -> None:
    for file in files[suffix].parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / files[suffix].name
    detector = Detector.load(path).with_settings(["predict.graph_seconds=50", "predict.score=0.5"])
    expected = detector.predict(WHITE)[0]
    pickled = pickle.dumps(detector)
    assert len(pickled) < 12_000
    again = pickle.loads(pickled)
    assert again.settings == detector.settings
    assert runtime(again).limits == runtime(detector).limits
    assert np.array_equal(again.predict(WHITE)[0].boxes, expected.boxes)
    changed = path.with_suffix(".bin") if suffix == "xml" else path
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(WeightsError, match="is not the file that the detector was pickled with"):
        pickle.loads(pickled)
