"""A detector in PyTorch, in bfloat16, in onnxruntime and in OpenVINO, in turn and in one run; AP of `blood-cells`.

    python benchmarks/engines.py BCCD [--only blood-cells] [--runs 7] [--files FOLDER]

CPU time of one thread, medians, and the median of the ratios to float32 in PyTorch, run by run. `blood-cells` sees
pictures of BCCD, and is compared on them lying, upright and cut square, in batches of 1, 2 and 4; `resnet50-fpn`, with
random weights that are scaled until the boxes differ, sees one of 800 x 1088, beside torchvision's
`fasterrcnn_resnet50_fpn` as its own legacy exporter writes it, in onnxruntime. Exported files are kept in the folder of
--files and used again. Some 15 minutes.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch

import rcnn
from export_parity import calm
from infer_vs_torchvision import SHAPE, torchvision_detector
from rcnn.detector import Detector
from rcnn.engine.parity import compare
from rcnn.exchange import exported
from rcnn.model.structures import Batch
from rcnn.preprocess.stream import read_picture
from rcnn.presets import build, settings_of

SHOWN = 8
"""Pictures of BCCD that the engines agree on."""


def engines(detector: Detector, folder: Path, name: str) -> dict[str, Detector]:
    """The same detector on every engine; files that are not there yet are written."""
    found = {"eager": detector, "eager bf16": detector.with_settings(["predict.precision=bf16"])}
    for title, suffix in (("onnxruntime", "onnx"), ("OpenVINO", "xml")):
        file = folder / f"{name}.{suffix}"
        if not file.exists():
            exported.write(detector, file)
        found[title] = rcnn.load(file)
    found["OpenVINO bf16"] = found["OpenVINO"].with_settings(["predict.precision=bf16"])
    return found


def timed(programs: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """CPU seconds of each program, run in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(runs + 1):
        for name, program in programs.items():
            begun = time.process_time()
            program()
            if number:
                times[name].append(time.process_time() - begun)
    return times


def report(title: str, times: dict[str, list[float]], notes: dict[str, str]) -> None:
    print(f"\n{title}")
    for name, seconds in times.items():
        ratio = statistics.median(mine / plain for mine, plain in zip(seconds, times["eager"], strict=True))
        print(f"{name:28} {statistics.median(seconds):7.4f} s  {ratio:5.2f}  {notes.get(name, '')}", flush=True)


def agreement(found: dict[str, Detector], batches: list[Batch]) -> dict[str, str]:
    """What share of its detections each engine has in common with the first."""
    parities = {name: compare(found["eager"].engine, one.engine, batches) for name, one in found.items()}
    return {name: f"agrees on {parity.agreed} of {parity.detections}" for name, parity in parities.items()}


def blood_cells(data: Path, folder: Path, runs: int) -> None:
    detector = rcnn.load("blood-cells", device="cpu")
    found, door = engines(detector, folder, "blood-cells"), detector.preprocessor
    pictures = [read_picture(path, detector.settings) for path in sorted(data.glob("JPEGImages/*.jpg"))[:SHOWN]]
    upright, square = [picture.swapaxes(0, 1) for picture in pictures], [picture[:, :480] for picture in pictures]
    batches = []
    for same in (pictures, upright, square):
        shape = same[0].shape
        for count in (1, 2, 4):
            parts = [same[start : start + count] for start in range(0, SHOWN, count)]
            batches += [door.collate([door.resize(one) for one in part], [shape[:2]] * count) for part in parts]
    notes = agreement(found, batches)
    for name, one in found.items():
        scores = rcnn.val(one, data, split="test", losses=False)
        notes[name] += f"; AP {scores.ap:.4f}, AP50 {scores.ap50:.4f} on the test images"
    times = timed({name: partial(one.engine.run, batches[0]) for name, one in found.items()}, runs)
    height, width = batches[0].images.shape[2:]
    report(f"blood-cells, {height} x {width}", times, notes)


def resnet50(folder: Path, runs: int) -> None:
    torch.manual_seed(0)
    settings = settings_of("resnet50-fpn", ["preprocess.short=800", "preprocess.long=1333", "rpn.post_test=1000"])
    names = [f"class_{number}" for number in range(90)]
    detector = Detector(build(settings, len(names)), settings, names, device="cpu", threshold=0.0)
    calm(detector)
    door = detector.preprocessor
    lying = list(exported.made_up(door))[1]
    batch = door.collate([door.resize(lying, SHAPE)], [SHAPE])
    found = engines(detector, folder, "resnet50-fpn")
    programs: dict[str, Callable[[], object]] = {name: partial(one.engine.run, batch) for name, one in found.items()}
    if theirs := torchvision_exported(folder / "torchvision.onnx"):
        pixels = (batch.images[0].float() / 255).numpy()
        programs["torchvision in onnxruntime"] = lambda: theirs.run(None, {theirs.get_inputs()[0].name: pixels})
    times, (height, width) = timed(programs, runs), batch.images.shape[2:]
    report(f"resnet50-fpn, {height} x {width}, random weights", times, agreement(found, [batch]))


def torchvision_exported(path: Path) -> onnxruntime.InferenceSession | None:
    """Torchvision's detector through `torch.onnx.export(..., dynamo=False)`; None where that fails."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(torchvision_detector(), ([torch.rand(3, *SHAPE)],), path, dynamo=False)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        print(f"torchvision's detector does not export: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="BCCD")
    parser.add_argument("--only", choices=("blood-cells", "resnet50-fpn"))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--files", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.only != "resnet50-fpn":
            blood_cells(options.data, folder, options.runs)
        if options.only != "blood-cells":
            resnet50(folder, options.runs)


if __name__ == "__main__":
    main()
