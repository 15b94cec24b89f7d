"""Where commands put what they write."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from rcnn.errors import SettingsError
from rcnn.preprocess.sources import MARK, mark_results


def fresh_folder(out: Path) -> Path:
    """`out`, or `out-2`, `out-3`, ... where that one is taken; marked, so that it is never read as data."""
    out = out if out.name not in ("", "..") else out.resolve()
    names = itertools.chain([out], (out.with_name(f"{out.name}-{number}") for number in itertools.count(2)))
    folder = next(name for name in names if _is_free(name))
    folder.mkdir(parents=True, exist_ok=True)
    mark_results(folder)
    return folder


def new_file(out: Path, suffixes: Sequence[str]) -> Path:
    """`out`, a file that `--out` names or that is written without it.

    Raises:
        SettingsError: it is there already, or ends in none of the suffixes.
    """
    if out.suffix not in suffixes:
        raise SettingsError(f"--out {out}: the name must end in {' or '.join(suffixes)}")
    if out.exists():
        raise SettingsError(f"{out} is there already; move it away or give another name with --out")
    return out


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or a folder that holds nothing."""
    return not folder.exists() or (folder.is_dir() and all(entry.name == MARK for entry in folder.iterdir()))
