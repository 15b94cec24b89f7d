"""`rcnn paper EXPERIMENT DATA`: repeat an experiment of the Faster R-CNN paper on any data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.config import override
from rcnn.errors import SettingsError, TrainingError

if TYPE_CHECKING:
    from rcnn.paper.results import ExperimentResult

Name = Literal[
    "mean-proposals", "proposals", "top-n", "time", "per-class", "anchors", "lambda", "one-stage", "recall", "schemes"
]


def paper(
    experiment: Annotated[
        Name,
        typer.Argument(
            metavar="EXPERIMENT",
            help="mean-proposals (table 1), proposals (table 2), top-n (number of proposals in test), time (table 5), "
            "per-class (tables 6 and 7), anchors (table 8), lambda (table 9), one-stage (table 10), recall (figure 4), "
            "schemes (section 3.2).",
        ),
    ],
    words: arguments.Words,
    preset: Annotated[str, typer.Option(help="Model: a preset, or timm/NAME.")] = "paper-zf",
    seeds: Annotated[list[int] | None, typer.Option(metavar="SEED...", min=0, help="Seeds, such as 0 1 2.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, metavar="MINUTES", help="Reduce epochs so that everything is expected to fit."),
    ] = None,
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="List of images to score on.")] = "val",
    out: Annotated[Path, typer.Option(help="Parent folder of experiments.")] = Path("runs/paper"),
    name: Annotated[str | None, typer.Option(help="Name of the folder in it. Default: the name of the data.")] = None,
    proposals: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="A file or another search, instead of selective-search."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Do not measure rows whose names contain this. May be given several times."),
    ] = None,
    device: arguments.Device = None,
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Repeat an experiment of the paper: train, measure, compare. After an interruption, the same command continues.

    Example: rcnn paper lambda data/ --preset mobilenet-fpn --seeds 0 1 2 --budget 120
    """
    from rcnn.cli.report import page_of
    from rcnn.data.proposals.read import WORDS
    from rcnn.paper.execute import execute
    from rcnn.paper.figures import plot
    from rcnn.paper.results import write_markdown, write_report_part
    from rcnn.training.configure import choose_settings

    words, all_seeds = _seeds(words, seeds)
    path, changes = arguments.one_path(words, "DATA", {"train.device": device, "data.on_fault": on_fault})
    if not isinstance(path, Path):
        raise SettingsError(f"{path}: rcnn paper reads local data; download it, and give its folder")
    absolute = path.resolve()
    data = (
        absolute.parent.name if absolute.name == "data.yaml" else absolute.name if absolute.is_dir() else absolute.stem
    )
    folder = out / (name or data)
    with screen.json_document(json) as output:
        settings = choose_settings(path, None, preset, changes, {})
        if proposals is not None:  # the default of experiments is Selective Search
            source = proposals if proposals in WORDS else str(Path(proposals).resolve())
            settings = override(settings, {"train": {"proposals": source}})
        options = {"split": split, "budget": budget, "leave_out": leave_out or ()}
        result = execute(experiment, settings, folder, seeds=all_seeds, say=screen.say, **options)
        write_markdown(result, folder)
        plot(result, folder / f"{experiment}.png")
        show(result)
        screen.say(f"\n{folder}: {experiment}.csv, {experiment}.md, {experiment}.png")
        with page_of(folder):
            write_report_part(result, folder)
        output |= document(result)
    if result.failures:
        raise TrainingError("\n".join(("not everything was measured:", *result.failures)))


def _seeds(words: list[str], seeds: list[int] | None) -> tuple[list[str], list[int]]:
    """Return the words without seeds, and all seeds: the parser leaves `1 2` of `--seeds 0 1 2` among the words."""
    if seeds is None:
        return words, [0]
    numbers = [word for word in words if word.isdecimal()]
    all_seeds = [*seeds, *map(int, numbers)]
    if len(set(all_seeds)) < len(all_seeds):
        raise SettingsError(f"--seeds names a seed twice: {' '.join(map(str, all_seeds))}")
    return [word for word in words if word not in numbers], all_seeds


def show(result: "ExperimentResult") -> None:
    """Print the table and, if the paper reports orderings, whether they hold."""
    from rcnn.paper.results import EXPLANATION, claim_table, describe, score_table

    screen.table(f"{result.name}: {result.experiment.title}", *score_table(result))
    screen.note(*describe(result))
    if result.judgements:
        screen.table("The paper's orderings", *claim_table(result))
        screen.note(EXPLANATION)


def document(result: "ExperimentResult") -> dict[str, Any]:
    """Return the document that `--json` prints."""
    rows = [
        {"row": row, "seed": seed, **numbers, "paper": result.experiment.paper.get(row, {})}
        for row, by_seed in result.scores.items()
        for seed, numbers in by_seed.items()
    ]
    orderings = [
        {"ordering": judged.claim.text, **{key: value for key, value in judged._asdict().items() if key != "claim"}}
        for judged in result.judgements
    ]
    return {
        "experiment": result.name,
        "epochs": result.settings.train.epochs,
        "rows": rows,
        "not_measured": result.experiment.omitted,
        "orderings": orderings,
    }
