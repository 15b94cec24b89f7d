"""Where commands put what they write."""

import itertools
from pathlib import Path

from rcnn.preprocess.sources import MARK, mark_results


def fresh_folder(out: Path) -> Path:
    """`out`, or `out-2`, `out-3`, ... where that one is taken; marked, so that it is never read as data."""
    out = out if out.name not in ("", "..") else out.resolve()
    names = itertools.chain([out], (out.with_name(f"{out.name}-{number}") for number in itertools.count(2)))
    folder = next(name for name in names if _is_free(name))
    folder.mkdir(parents=True, exist_ok=True)
    mark_results(folder)
    return folder


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or a folder that holds nothing."""
    return not folder.exists() or (folder.is_dir() and all(entry.name == MARK for entry in folder.iterdir()))
