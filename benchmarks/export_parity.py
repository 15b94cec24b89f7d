"""Every preset as ONNX and for OpenVINO: do the files give the detector's boxes, and how long does an export take?

    python benchmarks/export_parity.py [--only PRESET ...] [--side 256]

Layers as they ship, with random weights that are scaled until detections and proposals differ from each other; 4
classes, and 91 once. Three pictures of made-up boxes, each alone and in a batch of two. Some 5 minutes on two cores.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import rcnn
from rcnn.detector import Detector
from rcnn.engine import export
from rcnn.engine.metadata import entries
from rcnn.engine.parity import Parity, compare
from rcnn.exchange import exported
from rcnn.presets import PRESETS, build, settings_of

CASES = {
    **{name: (name, 4) for name in PRESETS},
    "resnet50-fpn, 91 classes": ("resnet50-fpn", 91),
    "tiny-fpn, RoI warp": ("tiny-fpn", 4, "roi.pool=warp"),
    "tiny-fpn, adaptive RoI align": ("tiny-fpn", 4, "roi.sampling_ratio=0"),
    "tiny-fpn, RPN alone": ("tiny-fpn", 4, "roi.head=none"),
}


def calm(detector: Detector) -> None:
    """Scale random layers one after another until what each says of a picture has a deviation of 1."""

    def scale(layer: nn.Module, _: object, out: Tensor) -> Tensor:
        spread = out.std().clamp(min=1e-6)
        layer.weight.div_(spread)
        return out / spread

    layers = [layer for layer in detector.model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    door = detector.preprocessor
    with torch.no_grad():
        detector.model.eval()(next(exported.batches(door, exported.made_up(door))))
    for hook in hooks:
        hook.remove()


def told(parity: Parity) -> str:
    share = f"{parity.agreed}/{parity.detections}, {parity.proposals_agreed}/{parity.proposals}"
    return f"{share} ({parity.pixels:.0e} px)" + ("" if parity.holds else " DISAGREES")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--side", type=int, default=256, help="shorter side of the pictures")
    options = parser.parse_args()
    print(f"{'':30}{'export':>8}  onnxruntime: detections, proposals; OpenVINO")
    for name in options.only:
        preset, classes, *changes = CASES[name]
        torch.manual_seed(0)
        sizes = (f"preprocess.short={options.side}", f"preprocess.long={2 * options.side}")
        settings = settings_of(preset, [*sizes, "rpn.post_test=100", "roi.score=0.005", *changes])
        names = [f"class_{number}" for number in range(classes)]
        detector = Detector(build(settings, classes), settings, names, device="cpu", threshold=0.0)
        calm(detector)
        with TemporaryDirectory() as folder:
            onnx, openvino = Path(folder, "net.onnx"), Path(folder, "net.xml")
            begun = time.perf_counter()
            export.save_onnx(export.to_onnx(detector.model), onnx, entries(detector))
            seconds = time.perf_counter() - begun
            export.save_openvino(export.to_openvino(onnx), openvino, entries(detector))
            results = []
            for file in (onnx, openvino):
                theirs, door = rcnn.load(file), detector.preprocessor
                shown = exported.batches(door, exported.made_up(door))
                results.append(told(compare(detector.engine, theirs.engine, shown)))
        print(f"{name:30}{seconds:6.1f} s  {'; '.join(results)}", flush=True)


if __name__ == "__main__":
    main()
