"""Draw docs/images/terminal.svg: the program's own output, from a real run of its commands in a terminal.

    python scripts/capture.py SMEAR.jpg [--out docs/images/terminal.svg]

SMEAR.jpg is any photograph of a blood smear. The other commands run on synthetic images of shapes, two of which get a
faulty label first. This takes about three minutes on two cores.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from rcnn.data.synthetic import synthesise_set

ROOT = Path(__file__).parents[1]
COLUMNS = 80
SPLITS = {"train": (500, 1), "val": (40, 2), "test": (100, 3)}
"""Split -> (images, seed)."""
COMMANDS = (
    "rcnn predict blood-cells smear.jpg",
    "rcnn data check shapes",
    "rcnn train shapes --model tiny-fpn --epochs 9 --on-fault skip",
    "rcnn why runs/train/shapes-1/weights/best.safetensors shapes --split test",
)
FAULTS = {
    "train_00003": (r"<xmin>\d+</xmin>", "<xmin>400</xmin>"),
    "train_00005": (r"<ymin>\d+(</ymin><xmax>\d+</xmax><ymax>)\d+", r"<ymin>200\g<1>200"),
}
"""Label file -> the text to replace in its first box, and its replacement: an inverted box, and one without height."""
CONTROL = re.compile(r"(\r?\n|\r|\x1b\[[\d;]*[AK]|\x1b\[\?\d+[hl])")


def main() -> None:
    """Make the data, run the commands, and draw their output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smear", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "terminal.svg")
    options = parser.parse_args()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(options.smear, folder / "smear.jpg")
        synthesise_set(folder / "shapes", SPLITS, "voc")
        for name, (pattern, replacement) in FAULTS.items():
            path = folder / "shapes" / "Annotations" / f"{name}.xml"
            path.write_text(re.sub(pattern, replacement, path.read_text(encoding="utf-8"), count=1), encoding="utf-8")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            for line in screen(terminal_output(command, folder)):
                console.print(Text.from_ansi(line))
            console.print()
    options.out.write_text(console.export_svg(title="rcnn", theme=MONOKAI), encoding="utf-8")


def terminal_output(command: str, folder: Path) -> str:
    """Return the output of the command on a terminal of `COLUMNS` columns, including control sequences."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
        env={**environment, "TERM": "xterm-256color"},
    )
    os.close(its)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:  # on Linux, the other end is closed
        pass
    os.close(ours)
    process.wait()
    return b"".join(chunks).decode()


def screen(output: str) -> list[str]:
    """Return the lines that remain on the screen: live lines and progress bars erase themselves."""
    lines, row = [""], 0
    for index, part in enumerate(CONTROL.split(output)):
        if index % 2 == 0:  # text and control sequences alternate
            lines[row] += part
        elif part.endswith("\n"):
            row += 1
            lines.extend([""] * (row + 1 - len(lines)))
        elif part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part.endswith("K"):
            lines[row] = ""
    return "\n".join(lines).rstrip().split("\n")


if __name__ == "__main__":
    main()
