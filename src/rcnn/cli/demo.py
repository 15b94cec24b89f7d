"""`rcnn demo`: a complete run on synthetic data, from images through training to scores and a report."""

from pathlib import Path
from typing import Annotated

import typer

from rcnn.cli import arguments, screen

RECIPE = (
    "train.epochs=9",
    "val.every=5",
    "augment.scale=[0.9,1.1]",
    "augment.brightness=0",
    "augment.contrast=0",
    "augment.saturation=0",
    "augment.hue=0",
)
"""Changes of the settings of `tiny-fpn`, which starts from random weights. The shapes need no colour jitter."""

SPLITS = {"train": (500, 1), "val": (40, 2), "test": (100, 3)}
"""Split -> (number of images, seed)."""


def demo(
    words: Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="Other settings.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("demo"),
    device: arguments.Device = None,
    seed: arguments.Seed = None,
    json: arguments.Json = False,
) -> None:
    """Train and score on synthetic data, in a few minutes and without a network connection.

    Example: rcnn demo --out /tmp/demo
    """
    from rcnn.cli.files import empty_folder
    from rcnn.cli.val import show, summary
    from rcnn.data.formats.find import open_dataset
    from rcnn.data.synthetic import synthesise
    from rcnn.detector import Detector
    from rcnn.evaluate import evaluate
    from rcnn.presets import settings_of
    from rcnn.report.page import keep_scores, render
    from rcnn.report.parts import PAGE
    from rcnn.report.scores import ScoredDetector
    from rcnn.report.subject import read_subject
    from rcnn.training.train import train
    from rcnn.weights.file import atomic_write

    changes = [*RECIPE, *arguments.assignments({"train.device": device, "train.seed": seed}), *(words or [])]
    settings_of("tiny-fpn", changes)  # a wrong setting is reported before hundreds of images are made
    with screen.json_document(json) as output:
        data = empty_folder(out) / "data"
        for split, (images, data_seed) in SPLITS.items():
            synthesise(data, images, split=split, seed=data_seed)
        counts = ", ".join(f"{images} {split}" for split, (images, _) in SPLITS.items())
        screen.say(f"{data}: synthetic images of shapes: {counts}")
        run = train(data, model="tiny-fpn", overrides=changes, name="demo", runs=out / "train")
        detector = Detector.load(run.best, device=device or "auto")
        dataset = open_dataset(data, "test", detector.settings.data, names=detector.names)
        metrics = evaluate(detector, dataset)
        screen.say(f"\nOn {len(dataset)} images from another seed, not used in training:")
        show(metrics)
        keep_scores(out, dataset, metrics, ScoredDetector.of(detector))
        subject, page = read_subject(run.folder), out / PAGE
        subject.add(read_subject(out))
        atomic_write(page, render([subject], "rcnn demo").encode())
        screen.say(f"\nPictures: {page}")
        screen.say("Next, with your own images (VOC, COCO, YOLO or CSV, recognised by itself): rcnn train path/to/data")
        output |= {"folder": run.folder, "report": page, **summary(metrics)}
