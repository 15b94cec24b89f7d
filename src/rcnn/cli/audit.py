"""`rcnn data audit`: rank the labels of a data set that may be wrong."""

from pathlib import Path
from typing import Annotated

import typer

from rcnn.cli import arguments, screen

MAX_ROWS = 20
"""Number of suggestions in the table."""


def audit(
    words: Annotated[list[str], typer.Argument(metavar="DATA", help="Folder, COCO json, data.yaml or csv; settings.")],
    folds: Annotated[
        int, typer.Option(min=2, max=20, help="Parts that are predicted by a training on the others.")
    ] = 5,
    model: Annotated[
        str | None,
        typer.Option(help="Preset to train, or a detector that was trained on other images: it predicts all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; an interrupted audit in it is continued. Default: runs/audit/NAME.")
    ] = None,
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Rank the labels that may be wrong: missing, of another class, badly placed, or without an object.

    Example: rcnn data audit data/ --folds 5
    """
    from rcnn.auditing.audit import audit as audit_labels
    from rcnn.auditing.sheet import draw_audit
    from rcnn.diagnose.label_errors import KINDS, question

    path, changes = arguments.one_path(words, "DATA", {"data.on_fault": on_fault})
    with screen.json_document(json) as output:
        with screen.progress("predicting", shown=model is not None) as progress:
            found = audit_labels(
                str(path), out, folds=folds, model=model, overrides=changes, say=screen.say, progress=progress
            )
        counts = [[title, found.counts[kind]] for kind, title in KINDS.items()]
        screen.table("Labels that may be wrong", ["", "number"], counts)
        records, names = found.dataset.records, found.dataset.names
        first = [
            [entry.score, question(entry, found.truth(entry.image), names), records[entry.image].name]
            for entry in found.suggestions[:MAX_ROWS]
        ]
        if first:
            screen.table("The most likely ones", ["score", "question", "image"], first)
            draw_audit(found, found.folder / "audit.jpg")
            screen.say(f"Answer the questions one by one: rcnn look {found.folder}")
        screen.say(f"{found.folder}: audit.json{', audit.jpg' if first else ''}")
        output |= {"folder": found.folder, **found.to_json()}
