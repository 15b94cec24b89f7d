"""An HTML page with a detector's predictions on images that it wasn't trained on, and the plots of its training."""

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rcnn.cli import screen

if TYPE_CHECKING:
    from rcnn.data.dataset import Dataset
    from rcnn.detector import Detector
    from rcnn.evaluate import Metrics

PAIRS = 12
"""Number of images shown, with ground truth and predictions side by side."""

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}
img {{ max-width: 100% }}
td, th {{ padding: 0.2em 1em; text-align: right }} td:first-child, th:first-child {{ text-align: left }}
</style>
<h1>{title}</h1>
<table><tr><th>class</th><th>boxes</th><th>AP</th><th>AP50</th></tr>
{rows}
</table>
{pictures}
"""


def write_report(
    folder: Path, title: str, detector: "Detector", dataset: "Dataset", metrics: "Metrics", plots: Path
) -> Path:
    """Write `report.html` and its mosaic into a folder, and return the path of the page.

    Args:
        folder: where to write.
        title: title of the page.
        detector: its threshold decides which boxes are drawn.
        dataset: the images that `metrics` are of.
        metrics: scores, and the predictions of each image.
        plots: folder of the training's plots.
    """
    from rcnn.insight.mosaic import compare

    records, shown = dataset.records[:PAIRS], metrics.predictions[:PAIRS]
    compare(records, shown, detector.threshold, detector.settings, dataset.names, folder / "test.jpg")
    pictures = [folder / "test.jpg", *sorted(file for file in plots.iterdir() if file.suffix in (".png", ".jpg"))]
    figures = [
        f'<h2>{escape(picture.stem.replace("_", " "))}</h2>\n<img src="{escape(os.path.relpath(picture, folder))}">'
        for picture in pictures
    ]
    numbers = [[row["class"], row["boxes"], row["ap"], row["ap50"]] for row in metrics.by_class()]
    numbers.append(["all", int(metrics.coco.counts.sum()), metrics.ap, metrics.ap50])
    rows = ["<tr>" + "".join(f"<td>{escape(screen.cell(value))}</td>" for value in row) + "</tr>" for row in numbers]
    page = folder / "report.html"
    text = PAGE.format(title=escape(title), rows="\n".join(rows), pictures="\n".join(figures))
    page.write_text(text, encoding="utf-8")
    return page
