from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from PIL import Image

from rcnn.data.dataset import Record
from rcnn.metrics.confusion import confusion_matrix
from rcnn.metrics.curves import precision_recall
from rcnn.metrics.proposal_recall import proposal_recall
from rcnn.metrics.types import Prediction, Truth
from rcnn.plots import run_plots as plots
from rcnn.plots.run_plots import plot_confusion, plot_curves, plot_history, plot_labels, plot_proposal_recall


def images(count: int, classes: int) -> tuple[list[Truth], list[Prediction]]:
    rng = np.random.default_rng(0)
    truths = []
    for _ in range(count):
        low = rng.uniform(0, 200, (4, 2))
        boxes = np.concatenate((low, low + rng.uniform(5, 150, (4, 2))), 1)
        truths.append(Truth(boxes, rng.integers(0, classes, 4), np.zeros(4, bool)))
    return truths, [Prediction(t.boxes + rng.normal(0, 3, (4, 4)), rng.random(4), t.labels) for t in truths]


@pytest.fixture
def plot(tmp_path: Path) -> Iterator[Path]:
    """The path of a plot. At the end it must be the only file, and a complete picture."""
    yield tmp_path / "p.png"
    (path,) = tmp_path.iterdir()
    with Image.open(path) as picture:
        picture.load()
        assert picture.width >= 1000
        assert len(picture.convert("L").getcolors() or []) > 5


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures of the plots in a test, laid out as for a file."""
    saved: list[Figure] = []

    def save(figure: Figure, path: Path) -> None:
        figure.draw_without_rendering()
        saved.append(figure)

    monkeypatch.setattr(plots, "save", save)
    return saved


def whole(axis: Axis) -> bool:
    """Return whether the visible ticks are integers."""
    low, high = sorted(axis.get_view_interval())
    return all(tick == round(tick) for tick in axis.get_majorticklocs() if low <= tick <= high)


def test_legends_do_not_cover_the_plots(figures: list[Figure]) -> None:
    rows = [ROW | {"epoch": epoch, "ap50": 0.1, "ap75": 0.01} for epoch in range(1, 20)]
    plot_history(rows, Path())
    truths, predictions = images(6, 3)
    plot_proposal_recall(proposal_recall(truths, [(p.boxes, p.scores) for p in predictions]), Path())
    plot_curves(precision_recall(truths, predictions, 3), ["a", "b", "c"], Path())
    legends = 0
    for figure in figures:
        for axes in figure.axes:
            if legend := axes.get_legend():
                box = legend.get_window_extent()
                assert not any(box.overlaps(other.get_window_extent()) for other in figure.axes)
                assert figure.bbox.contains(*box.min)
                assert figure.bbox.contains(*box.max)
                legends += 1
    assert legends == 3 + 1 + 2  # the history has a legend in each panel with a line


@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("count", [1, 30])
def test_ticks_of_counts_are_integers_and_bars_are_thin(figures: list[Figure], classes: int, count: int) -> None:
    records = [
        Record(Path("a"), "a", 0, (300, 400), truth.boxes[:1], truth.labels[:1], truth.ignore[:1])
        for truth in images(count, classes)[0]
    ]
    plot_labels(records, [str(k) for k in range(classes)], Path())
    bars, _, _, each, colours = figures[0].axes
    assert all(map(whole, (bars.xaxis, each.xaxis, each.yaxis, colours.yaxis)))
    height = abs(np.diff(bars.get_ylim()).item())
    assert max(bar.get_height() for bar in bars.patches) < height / 6  # type: ignore[attr-defined]
    assert each.patches[0].get_width() < abs(np.diff(each.get_xlim()).item()) / 6  # type: ignore[attr-defined]


def test_only_existing_numbers_of_proposals_and_sizes_are_drawn(figures: list[Figure]) -> None:
    box = np.array([[0.0, 0, 20, 20]])
    truth = Truth(box, np.zeros(1, np.int64), np.zeros(1, bool))
    for count, labels in ((200, [50, 100, 200]), (50, [50]), (300, [50, 100, 300]), (2000, [50, 100, 300, 1000])):
        metrics = proposal_recall([truth], [(box.repeat(count, 0), np.linspace(1, 0, count))])
        plot_proposal_recall(metrics, Path())
        left, right = figures.pop().axes
        assert left.get_legend_handles_labels()[1] == [f"{label} proposals" for label in labels]
        assert [tick.get_text() for tick in right.get_xticklabels()] == ["all\n1 object", "small\n1 object"]


def test_a_single_class_is_its_own_mean(figures: list[Figure]) -> None:
    plot_curves(precision_recall(*images(6, 1), 1), ["raccoon"], Path())
    labels = [text for axes in figures[0].axes for text in axes.get_legend_handles_labels()[1]]
    assert [label.split()[0] for label in labels] == ["raccoon", "raccoon"]


ROW = {"epoch": 1, "rpn_box": 0.5, "val_rpn_box": 0.6, "roi_box": 0.1, "ap": 0.2, "ap50": None, "lr": 0.01}


@pytest.mark.parametrize("rows", [[], [ROW], [ROW, {"epoch": 2, "ap": float("nan")}, ROW | {"epoch": 3}]])
def test_history_of_any_length(plot: Path, rows: list) -> None:
    plot_history(rows, plot)


def test_a_small_learning_rate_is_written_out(figures: list[Figure]) -> None:
    """A power of ten above the axis would push the panel down."""
    plot_history([ROW | {"lr": 0.00007}], Path())
    assert not figures[0].axes[5].yaxis.get_offset_text().get_text()


@pytest.mark.parametrize(("count", "classes"), [(6, 3), (40, 80), (0, 2)])
def test_curves(plot: Path, count: int, classes: int) -> None:
    names = [f"a class with a long name {k}" for k in range(classes)]
    plot_curves(precision_recall(*images(count, classes), classes), names, plot)


@pytest.mark.parametrize(("count", "classes"), [(6, 3), (20, 40), (0, 2), (6, 1)])
def test_confusion(plot: Path, count: int, classes: int) -> None:
    matrix = confusion_matrix(*images(count, classes), classes)
    plot_confusion(matrix, [str(k) for k in range(classes)], plot)


@pytest.mark.parametrize("count", [5, 0])
def test_proposal_recall(plot: Path, count: int) -> None:
    truths, predictions = images(count, 2)
    metrics = proposal_recall(truths, [(p.boxes, p.scores) for p in predictions])
    plot_proposal_recall(metrics, plot)


@pytest.mark.parametrize(("count", "classes"), [(8, 3), (20, 40), (0, 2)])
def test_labels(plot: Path, count: int, classes: int) -> None:
    truths, _ = images(count, classes)
    records = [Record(Path("a"), "a", "a", (400, 400), t.boxes, t.labels, t.ignore) for t in truths]
    empty = Record(Path("b"), "b", "b", (40, 40), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    plot_labels([*records, empty] if count else [], [str(k) for k in range(classes)], plot)


def test_names_that_look_like_formulas_are_drawn_as_they_are(plot: Path) -> None:
    """Matplotlib reads text between dollars as mathematics, and fails on a broken formula."""
    names = [r"$\frac", "_hidden"]
    plot_curves(precision_recall(*images(4, 2), 2), names, plot)
    plot_confusion(confusion_matrix(*images(4, 2), 2), names, plot)
