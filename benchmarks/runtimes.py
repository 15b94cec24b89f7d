"""A detector in PyTorch, onnxruntime and OpenVINO, in bfloat16 and in int8, in one run; AP of `blood-cells`.

    python benchmarks/runtimes.py BCCD [--only trained] [--runs 7] [--files FOLDER]
        [--weights blood-cells] [--pictures 8] [--network resnet50-fpn] [--size 800 1088]

Prints medians of the CPU time of one thread, and the median ratio to float32 in PyTorch, run by run. `blood-cells`
predicts pictures of BCCD, one by one, and is compared on them in landscape, in portrait and cut square, in batches of
1, 2 and 4; then it is timed from the files of the pictures to the boxes. Its int8 file is calibrated on BCCD's training
images.
`resnet50-fpn`, with random weights that are scaled until the boxes differ, predicts one of 800 x 1088, and so does
torchvision's `fasterrcnn_resnet50_fpn` in onnxruntime, as exported by the legacy exporter. Exported files are kept in
the folder of --files and reused. This takes about 15 minutes.

In float32, onnxruntime and OpenVINO must match 0.995 of the detections of PyTorch (`rcnn.exporting.parity`), or the
command fails in the end. In bfloat16 and int8, scores differ by more than that limit, so no agreement is claimed.
With `ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI`, OpenVINO computes as on a CPU without AMX.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch

import rcnn
from export_parity import calm
from infer_vs_torchvision import SHAPE, torchvision_detector
from rcnn.data.formats.find import open_dataset
from rcnn.detector import Detector
from rcnn.exporting import export, int8
from rcnn.exporting.graph_files import save_openvino
from rcnn.exporting.parity import SHARE, Parity, compare
from rcnn.images.stream import read_picture
from rcnn.model.structures import Batch
from rcnn.presets import build, settings_of
from rcnn.runtime.by_suffix import files_of
from rcnn.runtime.graph import entries
from rcnn.runtime.own_exports import remember

Inputs = Callable[[Detector], Iterable[int8.Inputs]]


def runtimes(detector: Detector, folder: Path, name: str, calibration: Inputs) -> dict[str, Detector]:
    """Return the same detector on every runtime; missing files are written."""
    found = {"eager": detector, "eager bf16": detector.with_settings(["predict.precision=bf16"])}
    for title, suffix in (("onnxruntime", "onnx"), ("OpenVINO", "xml")):
        file = folder / f"{name}.{suffix}"
        if not file.exists():
            export.export(detector, file)
        found[title] = rcnn.load(file)
    found["OpenVINO bf16"] = found["OpenVINO"].with_settings(["predict.precision=bf16"])
    file = folder / f"{name}-int8.xml"
    if not file.exists():
        model = int8.quantise(folder / f"{name}.xml", calibration(found["OpenVINO"]))
        save_openvino(model, file, entries(detector))
        remember(files_of(file))
    return found | {"OpenVINO int8": rcnn.load(file)}


def timed(programs: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each program, run in turn; the first round is not counted."""
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


def agreement(found: dict[str, Detector], batches: list[Batch]) -> dict[str, Parity]:
    """Return the agreement of each runtime with the first."""
    return {name: compare(found["eager"].runtime, one.runtime, batches) for name, one in found.items()}


def noted(parities: dict[str, Parity]) -> dict[str, str]:
    return {name: f"agrees on {parity.agreed} of {parity.detections}" for name, parity in parities.items()}


def disagreeing(title: str, parities: dict[str, Parity]) -> list[str]:
    """Return the runtimes in float32 whose agreement is below the claim."""
    found = {name: parity for name, parity in parities.items() if not name.endswith(("bf16", "int8"))}
    lost = {name: one for name, one in found.items() if not (one.detections and one.holds)}
    return [f"{title}, {name} ({one.agreed} of {one.detections} detections)" for name, one in lost.items()]


def trained(weights: str, data: Path, folder: Path, runs: int, shown: int) -> list[str]:
    """Print times, agreement and AP, and return the runtimes that disagree."""
    detector, name = rcnn.load(weights, device="cpu"), Path(weights).stem
    train = open_dataset(data, "train", names=detector.names)
    found = runtimes(detector, folder, name, lambda exported: int8.Calibration(exported, train))
    preprocessor, files = detector.preprocessor, sorted(data.glob("JPEGImages/*.jpg"))[:shown]
    pictures = [read_picture(path, detector.settings) for path in files]
    upright = [picture.swapaxes(0, 1) for picture in pictures]
    square = [picture[:, : picture.shape[0]] for picture in pictures]
    batches = []
    for same in (pictures, upright, square):
        shape = same[0].shape
        for count in (1, 2, 4):
            parts = [same[start : start + count] for start in range(0, shown, count)]
            batches += [
                preprocessor.collate([preprocessor.resize(one) for one in part], [shape[:2]] * len(part))
                for part in parts
            ]
    parities = agreement(found, batches)
    notes = noted(parities)
    for runtime, one in found.items():
        scores = rcnn.val(one, data, split="test", losses=False)
        notes[runtime] += f"; AP {scores.ap:.4f}, AP50 {scores.ap50:.4f} on the test images"
    # Several pictures in each turn, so that the caches hold the numbers of one program, as in use.
    alone = [preprocessor.collate([preprocessor.resize(one)], [one.shape[:2]]) for one in pictures]
    times = timed({runtime: partial(execute_all, one, alone) for runtime, one in found.items()}, runs)
    height, width = batches[0].images.shape[2:]
    report(f"{name}, {len(alone)} pictures of {height} x {width}", times, notes)
    whole = timed({runtime: partial(predict_alone, one, files) for runtime, one in found.items()}, runs)
    report(f"{name}, {len(files)} pictures, from file to boxes", whole, {})
    return disagreeing(name, parities)


def execute_all(detector: Detector, batches: list[Batch]) -> None:
    """Run batches through the network."""
    for batch in batches:
        detector.runtime.execute(batch)


def predict_alone(detector: Detector, files: list[Path]) -> None:
    """Predict pictures one by one."""
    for file in files:
        detector.predict(file)


def random_detector(network: str, size: tuple[int, int]) -> Detector:
    """Return a preset with random weights that are scaled until boxes differ."""
    torch.manual_seed(0)
    short, long = min(size), max(max(size), min(size) * 5 // 3)
    changes = [f"preprocess.short={short}", f"preprocess.long={long}", "rpn.post_test=1000"]
    settings = settings_of(network, changes)
    names = [f"class_{number}" for number in range(90)]
    detector = Detector(build(settings, len(names)), settings, names, device="cpu", threshold=0.0)
    calm(detector)
    return detector


def random(network: str, folder: Path, runs: int, size: tuple[int, int]) -> list[str]:
    """Print times and agreement, and return the runtimes that disagree."""
    detector = random_detector(network, size)
    preprocessor = detector.preprocessor
    lying = list(export.made_up(preprocessor))[1]
    batch = preprocessor.collate([preprocessor.resize(lying, size)], [size])
    inputs = {"images": batch.images.numpy(), "sizes": batch.sizes.numpy()}
    found = runtimes(detector, folder, network, lambda _: [inputs])
    programs: dict[str, Callable[[], object]] = {
        name: partial(one.runtime.execute, batch) for name, one in found.items()
    }
    if theirs := torchvision_exported(folder / "torchvision.onnx", size):
        pixels = (batch.images[0].float() / 255).numpy()
        programs["torchvision in onnxruntime"] = lambda: theirs.run(None, {theirs.get_inputs()[0].name: pixels})
    parities = agreement(found, [batch])
    times, (height, width) = timed(programs, runs), batch.images.shape[2:]
    report(f"{network}, {height} x {width}, random weights", times, noted(parities))
    return disagreeing(network, parities)


def torchvision_exported(path: Path, size: tuple[int, int]) -> onnxruntime.InferenceSession | None:
    """Return torchvision's detector from `torch.onnx.export(..., dynamo=False)`, or None if that fails."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(torchvision_detector(size), ([torch.rand(3, *size)],), path, dynamo=False)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        print(f"torchvision's detector does not export: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="BCCD")
    parser.add_argument("--only", choices=("trained", "random"), help="the first part, or the second")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--weights", default="blood-cells", help="the trained detector")
    parser.add_argument("--network", default="resnet50-fpn", help="the preset with random weights")
    parser.add_argument("--pictures", type=int, default=8, help="of BCCD, that the runtimes are compared on")
    size = {"type": int, "nargs": 2, "default": SHAPE, "metavar": ("HEIGHT", "WIDTH")}
    parser.add_argument("--size", **size, help="of the image of --network, multiples of 32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []
    with TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.only != "random":
            wrong += trained(options.weights, options.data, folder, options.runs, options.pictures)
        if options.only != "trained":
            wrong += random(options.network, folder, options.runs, (options.size[0], options.size[1]))
    if wrong:
        sys.exit(f"Less than {SHARE} of the detections are those of PyTorch: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
