"""Weights files from strangers are refused with a sentence, quickly, in little memory, and without a connection."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from rcnn.config import merge, to_yaml
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.presets import build, settings_of
from rcnn.weights.file import load_weights, save_weights
from tests.cli.conftest import Run
from tests.commands import BYTES, Ended
from tests.commands import run as run_limited

ADDRESSES = ("timm/hf-hub:user/x", "timm/hf_hub:user/x", "timm/local-dir:/tmp", "timm/../x")


def limited(folder: Path, *words: object) -> Ended:
    ended = run_limited(folder, words)
    assert ended.code is not None, f"{words} took too long: {ended.output[-2000:]}"
    assert ended.memory < BYTES, f"{words} took {ended.memory / 1e9:.1f} GB"
    return ended


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def stranger(weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a file with changed settings or other entries of the header, and a right checksum."""

    def write(settings: dict[str, Any], **changes: Any) -> Path:
        tensors, entry = load_weights(weights)
        path = tmp_path / "stranger.safetensors"
        save_weights(path, tensors, {**entry, "settings": merge(entry["settings"], settings), **changes})
        return path

    return write


@pytest.mark.parametrize("backbone", ADDRESSES)
def test_the_name_of_a_backbone_is_not_an_address(stranger: Callable[..., Path], picture: Path, backbone: str) -> None:
    file, folder = stranger({"model": {"backbone": backbone}}), picture.parent
    config = to_yaml(settings_of("tiny-fpn")).replace("backbone: tiny", f"backbone: {backbone}")
    (folder / "config.yaml").write_text(config)
    for code, words in (
        (4, ("predict", file, picture)),
        (4, ("inspect", file)),
        (4, ("export", file)),
        (2, ("train", folder, "--model", backbone)),
        (2, ("train", folder, f"model.backbone={backbone}")),
        (2, ("train", folder, "--config", "config.yaml")),
    ):
        outcome = limited(folder, *words)
        assert (outcome.code, outcome.violations) == (code, ""), (words, outcome.output)
        assert "timm/ must be followed by the name of one of timm's own networks" in outcome.output


def test_weights_of_timm_from_a_file_are_not_replaced_by_downloaded_ones(data: Path) -> None:
    pytest.importorskip("timm")
    save_file({}, data.parent / "none.safetensors")
    outcome = limited(data.parent, "train", data, "--model", "timm/resnet10t", "--init", "none.safetensors")
    assert (outcome.code, outcome.violations) == (4, ""), outcome.output
    assert "none.safetensors does not fit timm/resnet10t" in outcome.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predict": {"scales": [1.0] * 10**5}}, "at most 16 items"),
        ({"anchors": {"sizes": [[32.0] * 10**5] * 4}}, "at most 64 items"),
        ({"model": {"channels": 10**6}}, "less than or equal to 16384"),
        ({"model": {"channels": 3000}}, "has the shape"),
        ({"model": {"channels": 16_384}, "roi": {"size": 64}}, "the maximum is 1,000,000,000"),
        ({"roi": {"hidden": 16_384, "size": 14}}, "has the shape"),
        ({"roi": {"size": 10**4}}, "less than or equal to 64"),
        ({"roi": {"detections": 10**12}}, "less than or equal to 10000"),
        ({"preprocess": {"multiple": 10**9}}, "less than or equal to 1024"),
        ({"model": {"levels": [2, 3, 4, 10**15]}}, "less than or equal to 12"),
        ({"roi": {"canonical_level": -(10**15)}}, "greater than or equal to -16"),
        ({"rpn": {"convs": 10**9}}, "less than or equal to 32"),
        ({"model": {"backbone": "vgg16", "neck": "none", "levels": [4]}}, ""),
    ],
)
def test_settings_of_a_stranger_are_refused(
    stranger: Callable[..., Path], picture: Path, settings: dict[str, Any], message: str
) -> None:
    outcome = limited(picture.parent, "predict", stranger(settings), picture)
    assert (outcome.code, outcome.violations) == (4, ""), outcome.output
    assert message in outcome.output
    assert "stranger.safetensors: holds weights, but not a detector of this version of rcnn" in outcome.output
    assert "unexpected" not in outcome.output


def test_a_network_with_too_many_classes_is_not_built(stranger: Callable[..., Path], picture: Path) -> None:
    file = stranger({}, names=["x"] * 10**6, category_ids=[1] * 10**6)
    outcome = limited(picture.parent, "predict", file, picture)
    assert (outcome.code, outcome.violations) == (4, ""), outcome.output


@pytest.mark.parametrize("nms", [0.7, 1.0])
def test_settings_at_their_bounds_take_seconds(picture: Path, nms: float) -> None:
    """Every anchor of the finest level enters NMS, the largest number survives, and all survivors are classified."""
    bounds = {"pre_test": 4_000_000, "post_test": 10_000, "nms": nms}
    small = ["model.channels=8", "roi.hidden=8", "model.levels=[2]", "roi.levels=[2]", "anchors.sizes=[[8,16,32]]"]
    settings = settings_of("tiny-fpn", [*small, "roi.detections=10000", *(f"rpn.{k}={v}" for k, v in bounds.items())])
    torch.manual_seed(0)
    file = picture.parent / "slow.safetensors"
    Detector(build(settings, 2), settings, ("a", "b"), threshold=0.0, device="cpu").save(file)
    outcome = limited(picture.parent, "predict", file, picture, "--out", "out")
    assert outcome.code == 0, outcome.output
    (image,) = json.loads((picture.parent / "out/results.json").read_text())
    assert len(image["detections"]) > 1000
    for name, value in (("pre_test", 4_000_001), ("post_test", 10_001)):
        with pytest.raises(SettingsError, match=name):
            settings_of("tiny-fpn", [f"rpn.{name}={value}"])


SPARSE = 5_000_000_000
ROW = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (SPARSE, SPARSE)


@pytest.mark.parametrize("start", [b"", b"\x80\x02", b"PK\x03\x04", len(ROW).to_bytes(8, "little") + ROW])
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".npz", ".safetensors"])
def test_sparse_files_are_refused_before_they_are_read(data: Path, suffix: str, start: bytes) -> None:
    path = data.parent / f"holes{suffix}"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(SPARSE + len(start))
    arch = "paper-zf" if suffix == ".npz" else "fasterrcnn_resnet50_fpn"
    for words in (
        ("inspect", path),
        ("import", path, "--arch", arch, "--out", "a.safetensors"),
        ("predict", path, data),
        ("train", data, "--model", "tiny-fpn", "--init", path),
    ):
        outcome = limited(data.parent, *words)
        assert outcome.code == 4, outcome.output
        assert path.name in outcome.output
        assert "unexpected" not in outcome.output


def pickled(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def legacy(**pickles: bytes) -> Callable[[Path], object]:
    """A file in the legacy format of `torch.save`: five consecutive pickles, some of them replaced."""
    values = {"magic": MAGIC_NUMBER, "version": PROTOCOL_VERSION, "system": {}, "tensors": {}, "keys": []}
    return pickled(b"".join(pickles.get(name) or pickle.dumps(value, 2) for name, value in values.items()))


def saved(content: bytes) -> Callable[[Path], object]:
    """A file in the current format of `torch.save`, with these instructions."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")

    return write


def zipped(member: str, content: bytes, size: int = 0) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
            file.write(content)
            for _ in range(size // 10**7):
                file.write(bytes(10**7))

    return write


NESTED = b"\x80\x02}K\x00\x85" + b"2\x86" * 60 + b"K\x01s."
"""{t: 1}, where t is a pair of pairs of pairs ..., 60 times: its hash takes 2^60 steps."""
PAIRS = b"](K\x01K\x01eq\x00" + b"](h\x00h\x00eq\x00" * 40
"""A list of two lists of two lists ..., 40 times: its text has 2^40 numbers."""
TUPLES = b"K\x01\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60
"""Likewise with tuples, without the instruction that duplicates a value, which `torch.load` does not support."""
NPY = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000,), }".ljust(117)
    + b"\n"
)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("memo.pkl", pickled(b"\x80\x02}r\xff\xff\xff\x11.")),
        ("array.pkl", pickled(b"\x80\x05\x96\x00\x00\x00\x12\x01\x00\x00\x00.")),
        ("bytes.pkl", pickled(b"\x80\x04\x8e\x00\x00\x00\x12\x01\x00\x00\x00.")),
        ("tuples.pkl", pickled(NESTED)),
        ("tuples.pth", pickled(NESTED)),
        ("tuples.pt", zipped("archive/data.pkl", NESTED)),
        ("name.pth", legacy(tensors=b"\x80\x02c" + b"a" * 300_000 + b"\nb\n.")),
        ("name.pt", saved(b"\x80\x02c" + b"a" * 300_000 + b"\nb\n.")),
        ("text.pth", legacy(tensors=b"\x80\x02X\xe0\x93\x04\x00" + b"a" * 300_000 + b")R.")),
        ("list.pth", legacy(tensors=b"\x80\x02" + PAIRS + b")R.")),
        ("list.pkl", pickled(b"\x80\x02" + PAIRS + b"cnumpy\ndtype\nh\x00\x85R.")),
        ("version.pth", legacy(version=b"\x80\x02" + PAIRS + b".")),
        ("long.pth", legacy(version=pickle.dumps("a" * 300_000, 2))),
        ("keys.pth", legacy(keys=b"\x80\x02" + TUPLES + b"](h\x00e.")),
        ("bytes.pth", pickled(b"\x80\x02\x8e\x00\x00\x00\x12\x01\x00\x00\x00.")),
        ("shape.npz", zipped("conv1.weight.npy", NPY)),
        ("bomb.npz", zipped("conv1.weight.npy", NPY, 2 * 10**7)),
        ("bomb.pth", zipped("archive/data/0", b"", 2 * 10**7)),
    ],
)
def test_small_files_that_need_much_memory_or_time_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], object]
) -> None:
    monkeypatch.setattr("rcnn.weights.file.MAX_FOREIGN_BYTES", 10**7)
    write(tmp_path / name)
    outcome = limited(tmp_path, "inspect", name)
    assert (outcome.code, outcome.violations) == (4, ""), outcome.output
    assert name in outcome.output
    assert "unexpected" not in outcome.output
    assert len(outcome.output) < 2000
    assert outcome.memory < 100e6


@pytest.mark.parametrize(
    "error",
    [ValueError, IndexError, MemoryError, RecursionError, AssertionError, AttributeError, KeyError, OverflowError],
)
def test_any_error_of_the_reader_of_a_pth_means_a_damaged_file(
    run: Run, tmp_path: Path, error: type[Exception]
) -> None:
    (tmp_path / "x.pth").write_bytes(b"x")
    with patch("torch.load", side_effect=error("odd")):
        outcome = run.fails(4, "x.pth", "inspect", "x.pth")
    assert "is damaged" in outcome.err


@pytest.mark.parametrize("entry", ['{"format":1,"sha256":"","a":NaN}', '{"format":1,"sha256":"","a":1e999}'])
def test_numbers_beyond_json_mean_a_damaged_file(run: Run, tmp_path: Path, entry: str) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", {"rcnn": entry})
    for command in ("inspect", "export"):
        outcome = run.fails(4, "x.safetensors", command, "x.safetensors")
        assert "its `rcnn` entry is not the JSON that was written" in outcome.err


def test_tensors_of_any_shape_under_the_right_names_are_refused(run: Run, tmp_path: Path) -> None:
    for name in ("roi_heads.box_predictor.cls_score.weight", "proposal_generator.rpn_head.conv.weight"):
        for tensor in (torch.tensor(1.0), torch.zeros(0), torch.zeros(2, 3, 4, 5), torch.zeros(2).to_sparse()):
            torch.save({name: tensor}, tmp_path / "x.pth")
            for arch in ("fasterrcnn_resnet50_fpn", "faster_rcnn_R_50_FPN_3x", "rpn_R_50_C4_1x"):
                run.fails(4, "x.pth", "import", "x.pth", "--arch", arch, "--out", "y.safetensors")
