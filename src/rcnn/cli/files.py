"""Where commands write their results."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from rcnn.errors import SettingsError
from rcnn.preprocess.sources import MARK, mark_results


def fresh_folder(out: Path) -> Path:
    """Create `out`, or `out-2`, `out-3`, ... if it is taken, marked as results so that it is never read as data."""
    out = out if out.name not in ("", "..") else out.resolve()
    names = itertools.chain([out], (out.with_name(f"{out.name}-{number}") for number in itertools.count(2)))
    folder = next(name for name in names if _is_free(name))
    folder.mkdir(parents=True, exist_ok=True)
    mark_results(folder)
    return folder


def new_file(out: Path, suffixes: Sequence[str]) -> Path:
    """Return `out`, the file to write, after checking its name.

    Raises:
        SettingsError: the file exists already, or has none of the suffixes.
    """
    if out.suffix not in suffixes:
        raise SettingsError(f"--out {out}: the name must end in {' or '.join(suffixes)}")
    if out.exists():
        raise SettingsError(f"{out} is there already; move it away or give another name with --out")
    return out


def _is_free(folder: Path) -> bool:
    """Whether the path doesn't exist or is an empty folder."""
    return not folder.exists() or (folder.is_dir() and all(entry.name == MARK for entry in folder.iterdir()))
