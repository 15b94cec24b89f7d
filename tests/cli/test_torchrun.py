"""`torchrun -m rcnn val`, `predict` and `propose`: two real processes say and write what one does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .conftest import Outcome

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, sys
from contextlib import redirect_stdout
from io import StringIO
import torch.distributed as dist
from rcnn.cli.app import main

dist.init_process_group("gloo")  # one for all commands: torch can't make a second one at once
dist.init_process_group = dist.destroy_process_group = lambda *_: None
said = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out:
        try:
            main(words)
        except SystemExit as stop:
            said.append((stop.code, out.getvalue()))
with open(f"said-{os.environ['RANK']}.json", "w") as file:
    json.dump(said, file)
"""
ALL = "drawn,json,coco,voc,yolo"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have: equal bits are promised for equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_say_and_write_what_one_does(
    run: Callable[..., Outcome], data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = data / "JPEGImages"
    shutil.copy(images / "2.jpg", images / "1.z.jpg")  # an odd number of images, one beside another of its stem:
    Image.fromarray(np.full((50, 70, 3), 99, np.uint8)).save(images / "1.z.png")  # 0, 1, 1.z.jpg | 1.z.png, 2, ...
    (images / "5.jpg").unlink()
    commands = [
        ["val", weights, data, "--split", "train", "--batch", 2, "--json"],
        ["predict", weights, images, "--batch", 2, "--format", ALL, "--json", "--out"],
        ["propose", weights, images, "--top", 5, "--format", ALL, "--json", "--out"],
    ]
    together = [[*map(str, words), *(["two-" + words[0]] if words[-1] == "--out" else [])] for words in commands]
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = [sys.executable, *module, "program.py", json.dumps(together)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    writer, other = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1))
    assert [code for code, _ in writer + other] == [0] * 6, ended.stderr
    assert not any(out for _, out in other)
    for words, (_, out) in zip(commands, writer, strict=True):
        folders = ["two-" + words[0], "one-" + words[0]] if words[-1] == "--out" else []
        alone = run(*words, *folders[1:])
        found, expected = json.loads(out), alone.json()
        if folders:
            assert found == expected
            assert_same_files(*(tmp_path / folder for folder in folders))
        else:  # losses are added up in another order
            assert found.pop("losses") == pytest.approx(expected.pop("losses"), rel=1e-5)
            assert found == expected


def assert_same_files(found: Path, expected: Path) -> None:
    files, wanted = (
        sorted(path.relative_to(root) for path in root.rglob("*.*") if path.is_file()) for root in (found, expected)
    )
    assert files == wanted
    assert {path.suffix for path in files} >= {".json", ".xml", ".txt", ".jpg", ".png", ".yaml"}
    for path in files:
        assert (found / path).read_bytes() == (expected / path).read_bytes(), path
