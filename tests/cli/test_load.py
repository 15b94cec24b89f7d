"""Tests under load: memory over many images, many threads on one detector, full disks."""

import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from rcnn.detector import Detector
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.runtime.folded import folded
from tests.cli.conftest import SMALL, save_detector

PREDICT = """
import sys
from pathlib import Path
import rcnn.cli.stream as stream
from rcnn.cli.app import main

print_counts, memory = stream.print_counts, {}
def measure(name, counts, count, images, begun):
    if count in (100, 700):
        status = Path("/proc/self/status").read_text()
        memory[count] = int(status.split("VmRSS:")[1].split()[0])
    print_counts(name, counts, count, images, begun)
stream.print_counts = measure
try:
    main(sys.argv[1:])
finally:
    print(memory[100], memory[700])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_images(weights: Path, tmp_path: Path) -> None:
    """Memory grows by less than 3 kB per image, half the size of one."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "photos/0000.png")
    for number in range(1, 700):
        os.link(tmp_path / "photos/0000.png", tmp_path / f"photos/{number:04}.png")
    words = ["predict", str(weights), "photos", "--out", "out", "--format", "drawn,json,yolo", "--score", "0.3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", PREDICT, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.splitlines()[-1].split())
    assert late <= early + 600 * 3
    assert len(list((tmp_path / "out/drawn").rglob("*.png"))) == 700


def test_twenty_threads_on_one_detector_get_the_results_of_one(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 255, (40 + 8 * (i % 3), 64, 3), dtype=np.uint8) for i in range(20)]
    alone = Detector.load(weights, device="cpu")
    expected = [alone.predict(image)[0] for image in images]
    detector = Detector.load(weights, device="cpu")  # its runner is not built yet when the threads start
    made: list[FasterRCNN] = []
    monkeypatch.setattr("rcnn.runtime.eager.folded", lambda model: made.append(model) or folded(model))
    with ThreadPoolExecutor(20) as pool:
        results = [found for (found,) in pool.map(detector.predict, images)]
    assert made == [detector.model]
    for found, alone_found in zip(results, expected, strict=True):
        assert len(found) > 0
        for name in ("boxes", "scores", "labels"):
            assert np.array_equal(getattr(found, name), getattr(alone_found, name))


AS_TORCHVISION = [
    *("preprocess.resize=interpolate", "preprocess.round=floor", "anchors.round=half", "anchors.order=ratio"),
    *("anchors.offset=0", "anchors.stride=image//grid", "roi.aligned=false", "roi.min_size=0.01"),
]
SMALL_DISK = """
import json, os, subprocess, sys
import torch._dynamo, rcnn.cli.data, rcnn.cli.writers, rcnn.interop.detectors, rcnn.training.train  # for all children
from rcnn.cli.app import main

for name, kilobytes, words in json.loads(sys.argv[1]):
    os.mkdir(name)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", name], check=True)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{name}.err", os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = open(2, "w", closefd=False)
        os.chdir(name)
        try:
            main(words)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files = {}
    for folder, _, names in os.walk(name):
        for file in names:
            path = os.path.join(folder, file)
            files[path] = open(path, "rb").read().hex()
    print(json.dumps([name, code, open(f"{name}.err").read(), files]))
"""
"""Runs each command with its results on a separate small disk, mounted in a namespace of this process."""


def mounts() -> bool:
    """Return True if a process of this user may mount a disk."""
    if shutil.which("unshare") is None:
        return False
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.skipif(not mounts(), reason="no disks may be mounted here; tests/cli/test_predict.py injects the error")
def test_a_full_disk_gives_a_sentence_and_leaves_no_incomplete_file(weights: Path, data: Path, tmp_path: Path) -> None:
    size = weights.stat().st_size // 1024
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    Detector.load(weights, device="cpu").with_settings(AS_TORCHVISION).save(tmp_path / "torchvision.safetensors")
    save_detector(tmp_path / "one-stage.safetensors", "paper-zf-one-stage", *SMALL)
    fixed = ["--size", "64x96"]  # export for any size takes longer
    train = ["train", str(data), "--model", "mobilenet-fpn", "--batch", "2", *SMALL]
    work = [
        ("predict", 120, ["predict", str(weights), str(tmp_path / "photos"), "--format", "drawn,coco"]),
        ("predict copies", 120, ["predict", str(weights), str(tmp_path / "photos"), "--format", "voc,yolo"]),
        ("convert", 24, ["data", "convert", str(data), "--to", "coco", "--out", "copy"]),
        ("export", size // 2, ["export", str(tmp_path / "torchvision.safetensors"), "--out", "model.pth"]),
        ("export to ONNX", 100, ["export", str(tmp_path / "one-stage.safetensors"), *fixed, "--out", "model.onnx"]),
        ("train", 9 * size, [*train, "--epochs", "2"]),
        ("no room to begin", 8, [*train, "--epochs", "1"]),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    words = ["unshare", "-rm", sys.executable, "-c", SMALL_DISK, json.dumps(work)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert [name for name, *_ in results] == [name for name, *_ in work]
    for name, code, errors, files in results:
        (sentence,) = [line for line in errors.splitlines() if line.startswith("error:")]
        assert code == 1, errors
        assert "No space left on device" in sentence
        assert "ree space" in sentence
        assert "Traceback" not in errors
        for file, content in files.items():
            assert_complete(Path(file), bytes.fromhex(content))
        if name == "predict copies":
            assert "/voc/" in sentence or "/yolo/" in sentence
            assert len([file for file in files if "/yolo/images/" in file]) == len(
                [file for file in files if "/yolo/labels/" in file]
            )
        assert (files == {}) == (name.startswith(("convert", "export"))), files.keys()
        assert ("--resume" in sentence) == (name == "train"), sentence


def assert_complete(path: Path, content: bytes) -> None:
    assert not path.name.endswith((".tmp", ".part")), path
    assert not path.name.startswith(".part-"), path
    assert content or path.name == ".rcnn" or path.suffix in (".jsonl", ".txt"), path
    if path.suffix in (".png", ".jpg"):
        Image.open(io.BytesIO(content)).load()
    elif path.suffix == ".json":
        assert json.loads(content), path
    elif path.suffix == ".safetensors":
        safetensors.torch.load(content)
