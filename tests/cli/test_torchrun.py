"""`torchrun -m rcnn val`, `predict` and `propose`: two real processes print and write what one does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .conftest import Run, read_json

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, sys
from contextlib import redirect_stdout
from io import StringIO
import torch.distributed as dist
from rcnn.cli.app import main

dist.init_process_group("gloo")  # one for all commands: torch can't create a second one right after the first
dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None
outputs = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out:
        try:
            main(words)
        except SystemExit as stop:
            outputs.append((stop.code, out.getvalue()))
with open(f"outputs-{os.environ['RANK']}.json", "w") as file:
    json.dump(outputs, file)
"""
ALL = "drawn,json,coco,voc,yolo"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use as many threads as the processes do: bits are equal only for equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_print_and_write_what_one_does(run: Run, data: Path, images: Path, weights: Path) -> None:
    # An odd number of images, two of one stem: 0, 1, 1.z.jpg | 1.z.png, 2, ...
    shutil.copy(images / "2.jpg", images / "1.z.jpg")
    Image.fromarray(np.full((50, 70, 3), 99, np.uint8)).save(images / "1.z.png")
    (images / "5.jpg").unlink()
    commands = [
        ["val", weights, data, "--split", "train", "--batch", 2, "--json"],
        ["predict", weights, images, "--batch", 2, "--format", ALL, "--json", "--out"],
        ["propose", weights, images, "--top", 5, "--format", ALL, "--json", "--out"],
    ]
    together = [[*map(str, words), *(["two-" + words[0]] if words[-1] == "--out" else [])] for words in commands]
    Path("program.py").write_text(PROGRAM, encoding="utf-8")
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = [sys.executable, *module, "program.py", json.dumps(together)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    writer, other = (read_json(f"outputs-{rank}.json") for rank in (0, 1))
    assert [code for code, _ in writer + other] == [0] * 6, ended.stderr
    assert not any(out for _, out in other)
    for words, (_, out) in zip(commands, writer, strict=True):
        folders = ["two-" + words[0], "one-" + words[0]] if words[-1] == "--out" else []
        alone = run(*words, *folders[1:])
        found, expected = json.loads(out), alone.json()
        if folders:
            files, expected_files = map(contents, folders)
            assert files == expected_files
            assert {path.suffix for path in files} >= {".json", ".xml", ".txt", ".jpg", ".png", ".yaml"}
        else:  # losses are added up in another order
            assert found.pop("losses") == pytest.approx(expected.pop("losses"), rel=1e-5)
        assert found == expected


def contents(folder: str) -> dict[Path, bytes]:
    files = (path for path in Path(folder).rglob("*.*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}
