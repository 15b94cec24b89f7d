"""Export every preset to ONNX and OpenVINO, compare the files with the detector, and time the export.

    python benchmarks/export_parity.py [--only PRESET ...] [--side 256]

Presets have their own layers and random weights, scaled until detections and proposals differ from each other, with 4
classes, and once with 91. `blood-cells` has trained weights, its three classes repeated with some noise up to 91. Three
pictures of made-up boxes are used, each alone and in a batch of two. This takes about 15 minutes on one core.

A file must match 0.995 of the detections and of the proposals (`rcnn.exporting.parity`), or the command fails in the
end.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import rcnn
from rcnn.detector import Detector
from rcnn.exporting import export, graph_files
from rcnn.exporting.parity import SHARE, Parity, compare
from rcnn.presets import PRESETS, build, settings_of
from rcnn.runtime.graph import entries

CASES = {
    **{name: (name, 4) for name in PRESETS},
    "resnet50-fpn, 91 classes": ("resnet50-fpn", 91),
    "blood-cells, 91 classes": ("blood-cells", 91),
    "tiny-fpn, RoI warp": ("tiny-fpn", 4, "roi.pool=warp"),
    "tiny-fpn, adaptive RoI align": ("tiny-fpn", 4, "roi.sampling_ratio=0"),
    "tiny-fpn, RPN alone": ("tiny-fpn", 4, "roi.head=none"),
}


def calm(detector: Detector) -> None:
    """Scale random layers one after another so that the output of each for a picture has a standard deviation of 1."""

    def scale(layer: nn.Module, _: object, out: Tensor) -> Tensor:
        spread = out.std().clamp(min=1e-6)
        layer.weight.div_(spread)
        return out / spread

    layers = [layer for layer in detector.model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    preprocessor = detector.preprocessor
    with torch.no_grad():
        detector.model.eval()(next(export.batches(preprocessor, export.made_up(preprocessor))))
    for hook in hooks:
        hook.remove()


def random_detector(preset: str, classes: int, changes: list[str]) -> Detector:
    """Return a preset with random weights that are scaled until boxes differ."""
    torch.manual_seed(0)
    settings = settings_of(preset, [*changes, "roi.score=0.005"])
    detector = Detector(build(settings, classes), settings, names_of(classes), device="cpu", threshold=0.0)
    calm(detector)
    return detector


def many_classes(classes: int, changes: list[str]) -> Detector:
    """Return `blood-cells` with its classes repeated: trained scores and boxes, and one group per class."""
    torch.manual_seed(0)
    trained = rcnn.load("blood-cells", device="cpu")
    settings = trained.with_settings([*changes, "roi.score=0.02"]).settings
    weights = trained.model.state_dict()
    rows = torch.arange(classes) % len(trained.names)
    for layer in ("fast_rcnn.predictor.cls.weight", "fast_rcnn.predictor.cls.bias"):
        scores, background = weights[layer][rows], weights[layer][-1:]
        scores += 0.1 * scores.std() * torch.randn_like(scores)
        weights[layer] = torch.cat([scores, background])
    for layer in ("fast_rcnn.predictor.reg.weight", "fast_rcnn.predictor.reg.bias"):
        changes_of_boxes = weights[layer].unflatten(0, (-1, 4))
        weights[layer] = changes_of_boxes[rows].flatten(0, 1)
    model = build(settings, classes)
    model.load_state_dict(weights)
    return Detector(model, settings, names_of(classes), device="cpu", threshold=0.0)


def names_of(classes: int) -> list[str]:
    return [f"class_{number}" for number in range(classes)]


def told(parity: Parity) -> str:
    share = f"{parity.agreed}/{parity.detections}, {parity.proposals_agreed}/{parity.proposals}"
    return f"{share} ({parity.pixels:.0e} px)" + ("" if parity.holds else " DISAGREES")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--side", type=int, default=256, help="shorter side of the pictures")
    options = parser.parse_args()
    wrong: list[str] = []
    print(f"{'':30}{'export':>8}  onnxruntime: detections, proposals; OpenVINO")
    for name in options.only:
        preset, classes, *changes = CASES[name]
        changes += [f"preprocess.short={options.side}", f"preprocess.long={2 * options.side}", "rpn.post_test=100"]
        trained = preset == "blood-cells"
        detector = many_classes(classes, changes) if trained else random_detector(preset, classes, changes)
        with TemporaryDirectory() as folder:
            onnx, openvino = Path(folder, "net.onnx"), Path(folder, "net.xml")
            begun = time.perf_counter()
            graph_files.save_onnx(graph_files.to_onnx(detector.model), onnx, entries(detector))
            seconds = time.perf_counter() - begun
            graph_files.save_openvino(graph_files.to_openvino(onnx), openvino, entries(detector))
            results = []
            for file in (onnx, openvino):
                theirs, preprocessor = rcnn.load(file), detector.preprocessor
                shown = export.batches(preprocessor, export.made_up(preprocessor))
                parity = compare(detector.runtime, theirs.runtime, shown)
                results.append(told(parity))
                wrong += [] if parity.holds else [f"{name} in {theirs.runtime.name}"]
        print(f"{name:30}{seconds:6.1f} s  {'; '.join(results)}", flush=True)
    if wrong:
        sys.exit(f"Less than {SHARE} of the boxes are the detector's: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
