"""Make the file of a packaged detector from the weights of a training.

    python scripts/package_detector.py LAST.safetensors OUT.safetensors --threshold 0.7

The statistics of batch norms are merged into their weights and biases, and numbers are stored as float16.
"""

import argparse
from pathlib import Path

import torch

import rcnn
from rcnn.backbones.norm import FrozenBatchNorm2d, scale_and_shift


def main() -> None:
    """Parse, merge, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threshold", type=float, required=True)
    options = parser.parse_args()
    detector = rcnn.load(options.weights, device="cpu")
    with torch.no_grad():
        for module in detector.model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                scale, shift = scale_and_shift(module)
                module.weight.copy_(scale)
                module.bias.copy_(shift)
                module.running_mean.zero_()
                module.running_var.fill_(1 - module.eps)
    detector.threshold = options.threshold
    detector.summary = {name: fact for name, fact in detector.summary.items() if name == "scale"}
    detector.save(options.out, half=True)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
