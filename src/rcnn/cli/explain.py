"""`rcnn explain MODEL IMAGE`: pictures of every stage from an image to its detections."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcnn.cli import arguments, screen

if TYPE_CHECKING:
    from rcnn.detector import Detector
    from rcnn.diagnose.explain.follow import Walkthrough
    from rcnn.metrics.types import Truth

SHOWN = 20
TITLES = {
    "anchors": "anchors",
    "objects": "labelled objects",
    "positive": "positive anchors",
    "not_trained": "anchors that are not trained",
    "negative": "negative anchors",
    "sampled": "anchors sampled for the loss",
    "sampled_positive": "positive ones among them",
    "before_nms": "boxes before NMS",
    "proposals": "proposals",
    "detections": "detections",
}


def explain(
    model: arguments.Model,
    words: Annotated[list[str], typer.Argument(metavar="IMAGE", help="One image; and section.key=value.")],
    truth: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data set with the image's boxes, to show training too.")
    ] = None,
    score: Annotated[float | None, typer.Option(min=0, max=1, help="Leave out boxes with a lower score.")] = None,
    out: arguments.Out = Path("runs/explain"),
    html: Annotated[
        bool, typer.Option("--html", help="Write inside.html as well: one page to point and click in.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed for sampling anchors.")] = 0,
    device: arguments.Device = None,
    json: arguments.Json = False,
) -> None:
    """Draw what happens to an image: anchors, labels, samples, objectness, proposals, and the origin of each detection.

    Example: rcnn explain runs/train/exp-1 data/images/a.jpg --truth data/
    """
    from rcnn.cli.files import fresh_folder
    from rcnn.cli.loading import load_detector
    from rcnn.data.formats.find import find_layout
    from rcnn.diagnose.explain.follow import counts, follow
    from rcnn.diagnose.explain.pictures import draw_stages
    from rcnn.errors import printable
    from rcnn.images.decode import image_size
    from rcnn.images.sources import files
    from rcnn.images.stream import read_picture

    image, changes = arguments.one_path(words, "IMAGE")
    if not image.is_dir():
        files(image)
    image_size(image, max_pixels=sys.maxsize)  # what is no image, or no data, is told before weights are loaded
    if truth is not None:
        find_layout(truth)
    with screen.stdout_for_json(json):
        detector = load_detector(model, changes, device or "auto")
        detector.check_proposals(given=False)
        array = read_picture(image, detector.settings)
        known = None if truth is None else _truth_of(image, truth, detector)
        stages = follow(detector, array, known, seed=seed, score=score)
        numbers = counts(stages)
        screen.table(str(image), ["", ""], [[TITLES[key], number] for key, number in numbers.items()])
        _show_ways(stages)
        folder = fresh_folder(out)
        pictures = draw_stages(stages, folder)
        screen.say(f"\n{screen.several(len(pictures), 'picture')}: {pictures[0].parent}; begin with {pictures[0]}")
        page = None
        if html:
            from rcnn.look.inside import write_inside

            page = write_inside(
                stages, detector.settings.rpn, folder / "inside.html", printable(image.name), Path(model).name
            )
            screen.say(f"a page to point and click in: {page}")
    if json:
        told = {"image": image, "counts": numbers, "detections": _trees(stages), "pictures": pictures, "page": page}
        screen.emit(told)


def _truth_of(image: Path, data: Path, detector: "Detector") -> "Truth":
    """Return the boxes of an image in a data set: the image of this path, else the only one of this name.

    Raises:
        DataError: the data has no such image, or several of that name.
    """
    from rcnn.data.formats.find import open_dataset
    from rcnn.errors import DataError
    from rcnn.metrics.types import Truth

    dataset = open_dataset(data, "all", detector.settings.data, names=detector.names, decode=False)
    same = [record for record in dataset.records if record.path.resolve() == image.resolve()]
    same = same or [record for record in dataset.records if record.path.name == image.name]
    if len(same) != 1:
        number = f"{len(same)} images" if same else "no image"
        raise DataError(f"{data}: has {number} of the name {image.name}; give the path of an image of this data set")
    return Truth(same[0].boxes, same[0].labels, same[0].ignore)


def _show_ways(stages: "Walkthrough") -> None:
    """Print a table of the best detections with their proposals and anchors."""
    trees = _trees(stages)
    rows = [
        [
            f"{tree['name']} {tree['score']:.2f}",
            tree["stride"],
            f"{tree['cell'][0]}, {tree['cell'][1]}",
            *(_side_by_side(tree[step]) for step in ("anchor", "proposal", "box")),
            " / ".join(f"{iou:.2f}" for iou in tree["iou_with_truth"] or ()) or "-",
        ]
        for tree in trees[:SHOWN]
    ]
    if rows:
        columns = ["detection", "stride", "cell", "anchor", "proposal", "box", "IoU with the object"]
        more = f" (the best {SHOWN} of {len(trees):,}; all: --json)" if len(trees) > SHOWN else ""
        title = f"From anchor through proposal to box; width x height in pixels of the resized image{more}"
        screen.table(title, columns, rows)


def _side_by_side(box: list[float]) -> str:
    return f"{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f}"


def _trees(stages: "Walkthrough") -> list[dict[str, Any]]:
    """Return every detection with its anchor and proposal, boxes in pixels of the resized image."""
    from rcnn.diagnose.explain.ways import ways

    return [
        {
            "name": way.name,
            "score": way.score,
            "objectness": way.objectness,
            "stride": stages.strides[way.level],
            "cell": list(way.cell),
            **dict(zip(("anchor", "proposal", "box"), way.boxes.tolist(), strict=True)),
            "iou_with_truth": way.truth and list(way.truth),
        }
        for way in ways(stages)
    ]
