"""`rcnn merge DIR`: merge the shards of a prediction into one file."""

from pathlib import Path
from typing import Annotated

import typer

from rcnn.cli import screen
from rcnn.errors import plural


def merge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that --out of predict --shard named.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: DIR/results.jsonl or .parquet.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Merge what is there if shards are missing.")] = False,
) -> None:
    """Merge the shards of a prediction into one file, in order of names.

    Example: rcnn merge out/
    """
    from rcnn.shards.merge import merge_shards, named_shards

    merged = merge_shards(folder, out, partial=partial)
    unread = f", {merged.errors:,} of them unreadable" if merged.errors else ""
    screen.say(f"{plural(merged.pictures, 'image')}{unread}, written to {merged.file}")
    if merged.missing:
        screen.say(f"missing or not complete: {named_shards(merged.missing)}")
