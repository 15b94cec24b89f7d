"""`rcnn explain MODEL IMAGE`: pictures of every step from an image to its detections."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcnn.cli import arguments, screen
from rcnn.errors import DataError, plural, printable
from rcnn.images.storage import Location, absolute

if TYPE_CHECKING:
    from rcnn.detector import Detector
    from rcnn.diagnose.explain.follow import Explanation
    from rcnn.metrics.types import Truth

MAX_ROWS = 20
"""Number of detections in the table, the best ones."""

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
    html: Annotated[bool, typer.Option("--html", help="Also write inside.html, an interactive page.")] = False,
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
    from rcnn.diagnose.explain.follow import follow
    from rcnn.diagnose.explain.pictures import draw_explanation
    from rcnn.images.decode import image_size
    from rcnn.images.sources import files
    from rcnn.images.stream import read_picture

    image, changes = arguments.one_path(words, "IMAGE")
    if not (image.is_dir() if isinstance(image, Path) else False):
        files(image)
    image_size(image, max_pixels=sys.maxsize)  # raises before weights are loaded, as does the next line
    if truth is not None:
        find_layout(truth)
    with screen.json_document(json) as output:
        detector = load_detector(model, changes, device or "auto")
        detector.check_proposals(given=False)
        array = read_picture(image, detector.settings)
        objects = None if truth is None else _truth_of(image, truth, detector)
        explanation = follow(detector, array, objects, seed=seed, score=score)
        counts, origins = explanation.counts(), _origins(explanation)
        screen.table(str(image), ["", ""], [[TITLES[key], number] for key, number in counts.items()])
        if origins:
            _show_origins(origins)
        folder = fresh_folder(out)
        pictures = draw_explanation(explanation, folder)
        screen.say(f"\n{plural(len(pictures), 'picture')}: {pictures[0].parent}; begin with {pictures[0]}")
        page = None
        if html:
            from rcnn.look.explain import write_page

            name, model = printable(image.name), Path(model).name
            page = write_page(explanation, detector.settings.rpn, folder / "inside.html", name, model)
            screen.say(f"an interactive page: {page}")
        output |= {"image": image, "counts": counts, "detections": origins, "pictures": pictures, "page": page}


def _truth_of(image: Location, data: Path, detector: "Detector") -> "Truth":
    """Return the boxes of an image in a data set: the image with this path, else the only one with this name.

    Raises:
        DataError: the data has no such image, or several with that name.
    """
    from rcnn.data.formats.find import open_dataset
    from rcnn.metrics.types import Truth

    dataset = open_dataset(data, "all", detector.settings.data, names=detector.names, decode=False)
    same = [record for record in dataset.records if absolute(record.path, "") == absolute(image, "")]
    same = same or [record for record in dataset.records if record.path.name == image.name]
    if len(same) != 1:
        number = f"{len(same)} images" if same else "no image"
        raise DataError(f"{data}: has {number} named {image.name}; give the path of an image of this data set")
    return Truth(same[0].boxes, same[0].labels, same[0].ignore)


def _show_origins(origins: list[dict[str, Any]]) -> None:
    """Print a table of the best detections with their proposals and anchors."""
    rows = [
        [
            f"{origin['name']} {origin['score']:.2f}",
            origin["stride"],
            "{}, {}".format(*origin["cell"]),
            *(
                f"{right - left:.0f} x {bottom - top:.0f}"
                for left, top, right, bottom in (origin["anchor"], origin["proposal"], *origin["stages"], origin["box"])
            ),
            " / ".join(f"{iou:.2f}" for iou in origin["iou_with_truth"] or ()) or "-",
        ]
        for origin in origins
    ]
    heads = [f"after head {number}" for number in range(1, 1 + max((len(one["stages"]) for one in origins), default=0))]
    columns = ["detection", "stride", "cell", "anchor", "proposal", *heads, "box", "IoU with the object"]
    title = "From anchor through proposal to box; width x height in pixels of the resized image"
    screen.table(title, columns, rows, MAX_ROWS, "--json")


def _origins(explanation: "Explanation") -> list[dict[str, Any]]:
    """Return every detection with its anchor, its proposal, and the boxes between the heads (`stages`).

    Boxes are in pixels of the resized image.
    """
    return [
        {
            "name": origin.name,
            "score": origin.score,
            "objectness": origin.objectness,
            "stride": explanation.strides[origin.level],
            "cell": list(origin.cell),
            "anchor": origin.boxes[0].tolist(),
            "proposal": origin.boxes[1].tolist(),
            "stages": origin.boxes[2:-1].tolist(),
            "box": origin.boxes[-1].tolist(),
            "iou_with_truth": origin.ious and list(origin.ious),
        }
        for origin in explanation.origins()
    ]
