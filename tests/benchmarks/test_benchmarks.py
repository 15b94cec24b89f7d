"""Every script of `benchmarks` runs at its smallest size on synthetic data, and fails if its claim does not hold.

Scripts that need a GPU, a browser or minutes only print their help.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import rcnn
from rcnn.data.synthetic import synthesise
from rcnn.exporting.parity import Parity
from tests.benchmarks import made_up

FOLDER = Path(__file__).parents[2] / "benchmarks"
SOURCE = FOLDER.parent / "src"


def module(script: str) -> Any:
    """Import a script as a module. Scripts import each other by name, without a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return import_module(script)


class Data(NamedTuple):
    """Paths for the arguments of scripts.

    Attributes:
        shapes: a data set of three splits, of 64 x 96 pixels.
        smears: a data set of synthetic blood cells.
        picture: a picture of `smears`.
        detector: weights file of a small detector.
        mobilenet: weights file of a backbone.
        exported: folder for exported files, which scripts share.
        out: folder to write to.
    """

    shapes: str
    smears: str
    picture: str
    detector: str
    mobilenet: str
    exported: str
    out: str


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("benchmarks")
    for seed, (split, images) in enumerate({"train": 8, "val": 2, "test": 2}.items()):
        synthesise(folder / "shapes", images, split=split, size=(64, 96), seed=seed)
    smears = made_up.write_smears(folder / "smears")
    parts = {
        "shapes": folder / "shapes",
        "smears": smears,
        "picture": smears / "JPEGImages/000.jpg",
        "detector": folder / "tiny-fpn.safetensors",
        "mobilenet": made_up.write_mobilenet(folder / "mobilenet.safetensors"),
        "exported": folder / "exported",
        "out": folder / "runs",
    }
    (folder / "exported").mkdir()
    # The detector and its name are those of `runtimes`, so that both of its parts and `deploy` share one export.
    module("runtimes").random_detector("tiny-fpn", (64, 96)).save(parts["detector"])
    return Data(**{name: str(path) for name, path in parts.items()})


SMALL = ("preprocess.short=64", "preprocess.long=96")
QUICK = ("data.workers=0", "train.warmup=0", *SMALL)

RUN: dict[str, tuple[Callable[[Data], list[str]], str]] = {
    "audit": (
        lambda d: [
            *(d.smears, "--split", "all", "--share", "0.5", "--model", d.detector),
            *("--set", "data.workers=0", "--out", f"{d.out}/audit"),
        ],
        "| spurious_label | ",
    ),
    "batch_invariance": (lambda d: [d.detector, f"{d.smears}/JPEGImages", "--images", "4"], "batches of 8: "),
    "blood_cells_speed": (
        lambda d: ["--runs", "1", "--size", "48", "64", "--short", "64"],
        "rcnn predict, start to saved picture",
    ),
    "busy_machine": (
        lambda _: ["--busy", "1", "--steps", "4", "--turns", "1", "--side", "64"],
        "threads beside busy processes: ",
    ),
    "cpu_peers": (
        lambda d: [
            *(d.smears, "--weights", d.detector, "--runs", "1", "--pictures", "1", "--images", "0"),
            *("--only", "rcnn, PyTorch", "torchvision, MobileNetV3-FPN"),
        ],
        "| rcnn, PyTorch | 448 x 608 | float32 | ",
    ),
    "deploy": (
        lambda d: [d.picture, "--runs", "1", "--files", d.exported, "--weights", d.detector],
        "rcnn predict   first line after",
    ),
    "runtimes": (
        lambda d: [
            *(d.smears, "--runs", "1", "--files", d.exported, "--weights", d.detector, "--pictures", "2"),
            *("--network", "tiny-fpn", "--size", "64", "96"),
        ],
        "tiny-fpn, 64 x 96, random weights",
    ),
    "export_parity": (lambda d: ["--only", "tiny-fpn", "--side", "96"], "tiny-fpn "),
    "fine_tuning": (
        lambda d: [
            *(d.shapes, "--imagenet", d.mobilenet, "--epochs", "1", "--threads", "1", "--out", f"{d.out}/fine-tuning"),
            *QUICK,
        ],
        "from nothing",
    ),
    "fitted_anchors": (
        lambda d: [
            *("shapes", "--epochs", "1", "--seeds", "1", "--init", "none", "--images", "4", "2"),
            *("--out", f"{d.out}/fitted-anchors", *QUICK),
        ],
        "mean    off",
    ),
    "gigapixel": (
        lambda d: [d.detector, d.picture, "--megapixels", "0.3", "--tile", "160"],
        "memory: ",
    ),
    "graph_process": (
        lambda d: [f"{d.exported}/tiny-fpn.onnx", "--weights", d.detector, "--size", "64", "96", "--runs", "2"],
        "memory: peak of the child",
    ),
    "infer_vs_torchvision": (
        lambda d: ["--runs", "1", "--threads", "1", "--size", "64", "96", "--proposals", "50"],
        "rcnn / this",
    ),
    "large_pictures": (lambda d: [d.detector, d.smears, "--grid", "2", "--tile", "160"], "canvas, windows"),
    "loading": (lambda d: [d.shapes, "--sides", "64", "--epochs", "1"], "64 px: "),
    "look_load": (
        lambda d: [
            *("--model", d.detector, "--half-open", "20", "--uploads", "18", "--megabytes", "0.1"),
            *("--computing", "8", "--pictures", "4", "--seconds", "1"),
        ],
        "16 pictures taken, 2 uploads refused",
    ),
    "memory": (
        lambda d: [
            *("--batch", "1", "--size", "64", "96", "--steps", "1", "--images", "10"),
            *("--model", "tiny-fpn", "--picture", "64", "96"),
        ],
        "1,530 windows of 64 x 96, tiny-fpn: peak ",
    ),
    "metrics_scale": (
        lambda _: ["--images", "20", "--boxes", "400", "--voc", "5", "30", "--turns", "1"],
        "COCO's numbers are the same, bit for bit",
    ),
    "parity_torchvision": (
        lambda d: [
            *("--images", "1", "--short", "64", "--proposals", "50"),
            *("--arch", "fasterrcnn_mobilenet_v3_large_320_fpn"),
        ],
        "perturbed  float32",
    ),
    "recipes": (
        lambda d: [
            *(d.shapes, "--recipes", "default", "cascade", "--epochs", "0.5", "--test"),
            *("--init", d.mobilenet, "--set", "train.batch=1", *SMALL),
            *("--out", f"{d.out}/recipes", "--results", f"{d.out}/recipes.jsonl"),
        ],
        "| cascade train.batch=1 preprocess.short=64 preprocess.long=96 | ",
    ),
    "read_coco": (lambda d: ["--images", "20", "--annotations", "50", "--turns", "1"], "pycocotools: 20 images, 50"),
    "second_start": (lambda d: ["--images", "20", "--annotations", "50"], "  process 1: "),
    "sharded_predict": (lambda d: ["--names", "100", "2000"], "2,000 names: "),
    "suppression": (
        lambda d: [d.detector, d.smears, "--split", "all", "--nms", "0.4", "0.6", "--sigma", "0.5"],
        "Soft-NMS 0.5   AP ",
    ),
    "train_vs_torchvision": (
        lambda d: [
            *(d.shapes, "--init", d.mobilenet, "--runs", "1", "--batch", "1", "--epochs", "1"),
            *("--only", "torchvision", "mobilenet-fpn, float32", "--settings", *SMALL, "data.workers=0"),
        ],
        "mobilenet-fpn, float32: mean AP",
    ),
}
"""Script -> its arguments, and a part of its output near the end."""
ARGUMENTS_ONLY = {"gpu_vs_torchvision": "a GPU; test_gpu_vs_torchvision.py", "look": "a browser and minutes"}
"""Script -> its requirements, or its test file."""


def start(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new process, as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "RCNN_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py"), *words], capture_output=True, text=True, env=environment
    )


def test_every_script_runs_or_prints_its_help() -> None:
    assert not RUN.keys() & ARGUMENTS_ONLY.keys()
    assert RUN.keys() | ARGUMENTS_ONLY.keys() == {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.more
@pytest.mark.parametrize("script", RUN)
def test_a_script_runs_on_synthetic_data(script: str, data: Data) -> None:
    words, text = RUN[script]
    ended = start(script, *words(data))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert text in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.parametrize("script", ARGUMENTS_ONLY)
def test_a_script_prints_its_help(script: str) -> None:
    ended = start(script, "--help")
    assert ended.returncode == 0, ended.stderr
    assert f"python benchmarks/{script}.py" in ended.stdout


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run the `main` of a module in this process, which must exit with a sentence about its claim."""
    threads, tf32 = torch.get_num_threads(), (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)

    def run(script: Any, sentence: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [script.__file__, *words])
        with pytest.raises(SystemExit, match=sentence) as ended:
            script.main()
        assert isinstance(ended.value.code, str)  # Python prints it, and exits with 1

    yield run
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


SOME_LOST = Parity(detections=1000, agreed=900, proposals=1, proposals_agreed=1)


def test_infer_fails_if_detections_disagree(fails: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    script = module("infer_vs_torchvision")
    assert script.SHARE >= 0.99
    monkeypatch.setattr(script, "SCORE", -1.0)
    sentence = r"^Only 0\.0000 of the detections of rcnn and of `torchvision` agree .* at least 0\.99 must"
    fails(script, sentence, "--runs", "1", "--threads", "1", "--size", "64", "96", "--proposals", "20")


def test_a_pair_has_one_box_score_and_label() -> None:
    paired = module("infer_vs_torchvision").paired
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30]]), torch.tensor([0.9, 0.5])
    found = {"boxes": boxes, "scores": scores, "labels": torch.tensor([1, 2])}
    assert paired(found, found) == 1.0
    for key, value in (("boxes", boxes + 0.06), ("scores", scores + 2e-3), ("labels", torch.tensor([2, 1]))):
        assert paired(found, {**found, key: value}) == 0.0
    first = {key: value[:1] for key, value in found.items()}
    none = {key: value[:0] for key, value in found.items()}
    assert paired(found, first) == paired(first, found) == 0.5
    assert paired(found, none) == paired(none, none) == 0.0


def test_batch_invariance_fails_if_a_number_differs(
    fails: Callable[..., None], data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = module("batch_invariance")
    same, turns = script.same, iter(range(100))
    monkeypatch.setattr(script, "same", lambda a, b: next(turns) != 3 and same(a, b))
    folder = f"{data.smears}/JPEGImages"
    fails(script, "^Detections of 1 images depend on their batch", data.detector, folder, "--images", "4")


def test_parity_fails_if_a_detection_is_unexplained(
    fails: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = module("parity_torchvision")
    monkeypatch.setattr(script, "PAIR", dict.fromkeys(script.PAIR, (-1.0, -1.0)))
    monkeypatch.setattr(script, "perturb", lambda *_: None)
    words = RUN["parity_torchvision"][0](None)  # type: ignore[arg-type]
    fails(script, "^Detections differ from torchvision's.*random weights in torch.float64; .*torch.float32", *words)


def test_export_parity_fails_if_boxes_differ(fails: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    script = module("export_parity")
    steps = ("save_onnx", "to_onnx", "save_openvino", "to_openvino")
    monkeypatch.setattr(script, "graph_files", SimpleNamespace(**dict.fromkeys(steps, lambda *_: None)))
    runtime = SimpleNamespace(name="onnxruntime")
    monkeypatch.setattr(rcnn, "load", lambda file: SimpleNamespace(runtime=runtime), raising=False)
    monkeypatch.setattr(script, "compare", lambda *_: SOME_LOST)
    sentence = r"^Less than 0\.995 of the boxes are the detector's: tiny-fpn in onnxruntime; tiny-fpn in"
    fails(script, sentence, "--only", "tiny-fpn", "--side", "64")


def test_runtimes_fails_if_detections_in_float32_differ(
    fails: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = module("runtimes")
    parities = {"eager": Parity(detections=9, agreed=9), "OpenVINO": SOME_LOST, "OpenVINO bf16": SOME_LOST}
    assert script.disagreeing("a", parities) == ["a, OpenVINO (900 of 1000 detections)"]
    assert script.disagreeing("a", {"onnxruntime": Parity()}) == ["a, onnxruntime (0 of 0 detections)"]
    monkeypatch.setattr(script, "random", lambda *_: ["a, OpenVINO"])
    fails(script, r"^Less than 0\.995 of the detections are those of PyTorch: a, OpenVINO$", "x", "--only", "random")


@pytest.mark.parametrize("program", ["rcnn", "pycocotools"])
def test_read_coco_fails_if_a_reader_does_not_find_everything(
    program: str, fails: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = module("read_coco")
    monkeypatch.setattr("rcnn.data.image_checks.image_size", None)  # the script replaces it
    file = script.make(tmp_path, 3, 5)
    words = ("--images", "4", "--annotations", "5", "--one", program, str(file))
    fails(script, rf"^{program} read \(3, 5\) images and boxes of 4 and 5", *words)
