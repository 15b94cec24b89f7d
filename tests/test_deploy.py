"""The programs of docs/deploy.md run where torch can't be imported, and print the detector's boxes.

Those of a real network are in tests/exporting/test_export.py.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rcnn
from rcnn.result import Result
from tests.runtime import graphs

PAGE = (Path(__file__).parents[1] / "docs/deploy.md").read_text(encoding="utf-8")
WITHOUT_TORCH = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "rcnn"):
            raise ImportError(f"{name} is not for this program")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def program(suffix: str) -> str:
    """The program for an .onnx file or, with the lines that take the place of others, for an .xml file."""
    plain, openvino = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    if suffix == ".onnx":
        return plain
    start, end = plain.index("session ="), plain.index("\n\n\nimage =")
    return plain[:start].replace("import onnxruntime\n", "") + openvino + plain[end:]


def printed(file: Path, picture: Path) -> list[tuple[str, list[float]]]:
    """Name of each box, and its score and corners, as the program prints them."""
    path = file.with_name("detect.py")
    path.write_text(program(file.suffix))
    words = [sys.executable, "-c", WITHOUT_TORCH, str(path), str(file), str(picture)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    rows = [line.rsplit(" ", 5) for line in ended.stdout.splitlines()]
    return [(row[0], [float(number) for number in row[1:]]) for row in rows]


def assert_same(found: list[tuple[str, list[float]]], expected: Result) -> None:
    assert len(found) == len(expected) > 0
    assert [name for name, _ in found] == [expected.names[label] for label in expected.labels]
    numbers = np.array([numbers for _, numbers in found])
    assert np.abs(numbers[:, 0] - expected.scores).max() <= 1e-3
    assert np.abs(numbers[:, 1:] - expected.boxes).max() <= 0.1


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
@pytest.mark.parametrize("sides", [(97, 130), (301, 203), (40, 333)])
def test_the_programs_prepare_pictures_and_print_boxes_as_predict_does(
    suffix: str, sides: tuple[int, int], tmp_path: Path
) -> None:
    file = graphs.WRITE[suffix](tmp_path / f"small.{suffix}", graphs.detector())
    Image.fromarray(np.full((*sides, 3), 128, dtype=np.uint8)).save(tmp_path / "picture.png")
    (expected,) = rcnn.load(file).predict(tmp_path / "picture.png", score=0.25)
    assert_same(printed(file, tmp_path / "picture.png"), expected)


def test_the_program_and_the_container_are_short() -> None:
    assert len(program(".onnx").splitlines()) <= 30
    (container,) = re.findall(r"^```dockerfile\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(container.splitlines()) <= 20
