"""The programs of docs/deploy.md on `blood-cells`: from start to first box, memory, and the packages that they need.

    python benchmarks/deploy.py PICTURE [--runs 5] [--files FOLDER] [--weights blood-cells]

For comparison: `rcnn predict`, until its first line. Programs run in turn; medians are printed. Memory is the peak of
the process (Linux).
"""

import argparse
import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import rcnn
from rcnn.exporting import export

PAGE = Path(__file__).parents[1] / "docs/deploy.md"
PACKAGES = {
    "onnxruntime": ("onnxruntime", "flatbuffers", "packaging", "protobuf", "pillow"),
    "openvino": ("openvino", "openvino-telemetry", "pillow"),
    "rcnn predict": ("torch", "torchvision", "pillow"),
}
"""Packages that each program needs besides Python and numpy; of those of rcnn only the two large ones."""
COMMAND = "import runpy, sys\nrunpy.run_module('rcnn', run_name='__main__', alter_sys=True)\n"
MEMORY = "import atexit\natexit.register(lambda: print(*open('/proc/self/status')))\n"


def programs(folder: Path, picture: str, weights: str) -> dict[str, list[str]]:
    """Write the programs into a folder with the files that they read, and return the command line of each."""
    detector, name = rcnn.load(weights, device="cpu"), Path(weights).stem
    plain, openvino = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    start, end = plain.index("session ="), plain.index("\n\n\nimage =")
    texts = {"onnx": plain, "xml": plain[:start].replace("import onnxruntime\n", "") + openvino + plain[end:]}
    lines = []
    for suffix, text in (*texts.items(), ("predict", COMMAND)):
        script, file = folder / f"detect_{suffix}.py", folder / f"{name}.{suffix}"
        script.write_text(MEMORY + text)
        if suffix in texts and not file.exists():
            export.export(detector, file)
        words = [str(file)] if suffix in texts else ["predict", weights, "--out", str(folder / "found")]
        lines.append([sys.executable, str(script), *words, picture])
    return dict(zip(PACKAGES, lines, strict=True))


def run(words: list[str]) -> tuple[float, float]:
    """Return the seconds until the first line is printed, and the peak memory in MB."""
    begun = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as it:
        assert it.stdout is not None
        it.stdout.readline()
        seconds = time.perf_counter() - begun
        held = re.search(r"VmHWM:\s+(\d+)", it.stdout.read())
    assert held is not None
    return seconds, int(held[1]) * 1024 / 1e6


def megabytes(package: str) -> float:
    """Return the size of an installed package without its compiled bytecode."""
    files = [file.locate() for file in importlib.metadata.files(package) or () if file.suffix != ".pyc"]
    return sum(Path(str(file)).stat().st_size for file in files if Path(str(file)).exists()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--files", type=Path, help="where exported files are kept and used again")
    parser.add_argument("--weights", default="blood-cells", help="another detector, as of `rcnn predict`")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        lines = programs(options.files or Path(temporary), options.picture, options.weights)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
        for number in range(options.runs + 1):  # the first run reads the packages from disk
            for name, words in lines.items():
                row = run(words)
                measured[name] += [row] if number else []
    for name, rows in measured.items():
        seconds, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        size = sum(map(megabytes, PACKAGES[name]))
        print(f"{name:14} first line after {seconds:.2f} s, {memory:.0f} MB of memory, packages of {size:.1f} MB")


if __name__ == "__main__":
    main()
