"""Compare initial weights: the same short training from `blood-cells`, from ImageNet and from random weights.

    python benchmarks/fine_tuning.py path/to/data [--imagenet FILE] [--epochs 4] [--threads 1] [--seed 0]
        [--split test] [--out runs/fine-tuning] [section.key=value ...]

One training after the other with equal settings; then each is scored once on `--split`. Prints scores, minutes of
wall clock and of CPU (validation included), and draws AP on the validation images in OUT/curves.png.
"""

import argparse
import time
from pathlib import Path

import torch

import rcnn
from rcnn.draw import PALETTE
from rcnn.plots.figure import LEGEND, new_figure, save, style


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("settings", nargs="*", help="changes of all trainings")
    parser.add_argument("--imagenet", default="imagenet", help="the backbone's weights, as of `rcnn train --init`")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, default=Path("runs/fine-tuning"))
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    figure, ((axes,),) = new_figure(1, 1, 7.0, 4.2)
    style(axes, f"{options.data.resolve().name}: AP on validation images", "epoch", "AP .50:.95")
    starts = {"blood-cells": "blood-cells", "ImageNet": options.imagenet, "nothing": "none"}
    for ink, (name, init) in zip(PALETTE, starts.items(), strict=False):
        wall, cpu = time.perf_counter(), time.process_time()
        run = rcnn.train(
            options.data,
            overrides=options.settings,
            name=name,
            runs=options.out,
            init=init,
            epochs=options.epochs,
            seed=options.seed,
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found = rcnn.val(run.detector, options.data, split=options.split, losses=False)
        print(
            f"from {name:12} {wall / 60:5.1f} minutes, {cpu / 60:5.1f} of CPU"
            f"   {options.split}: AP50 {found.ap50:.4f}   AP {found.ap:.4f}",
            flush=True,
        )
        label = f"{name} ({options.split}: AP50 {found.ap50:.3f})"
        epochs = [0, *(row["epoch"] for row in run.rows)]
        axes.plot(epochs, [0, *(row["ap"] for row in run.rows)], label=label, color=ink)
    axes.set(ylim=(0, 1), xlim=(0, options.epochs))
    axes.legend(**LEGEND, loc="upper left", title="start")
    save(figure, options.out / "curves.png")


if __name__ == "__main__":
    main()
