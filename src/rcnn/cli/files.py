"""Where commands put what they write."""

import itertools
from pathlib import Path


def fresh_folder(out: Path) -> Path:
    """`out`, or `out-2`, `out-3`, ... where that one is taken."""
    names = itertools.chain([out], (out.with_name(f"{out.name}-{number}") for number in itertools.count(2)))
    folder = next(name for name in names if not name.exists() or not any(name.iterdir()))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
