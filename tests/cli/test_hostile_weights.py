"""A file of weights of a stranger is refused by a sentence, quickly, in little memory, and asks nobody for anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from rcnn.config import merge, to_yaml
from rcnn.presets import settings_of
from rcnn.weights.file import load_weights, save_weights

from .conftest import Outcome
from .limited import limited

Run = Callable[..., Outcome]
ADDRESSES = ("timm/hf-hub:user/x", "timm/hf_hub:user/x", "timm/local-dir:/tmp", "timm/../x")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def stranger(weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """A file whose settings, or other entries of the header, are what a stranger wrote, with a right checksum."""

    def write(settings: dict[str, Any], **changes: Any) -> Path:
        tensors, entry = load_weights(weights)
        path = tmp_path / "stranger.safetensors"
        save_weights(path, tensors, {**entry, "settings": merge(entry["settings"], settings), **changes})
        return path

    return write


@pytest.mark.parametrize("backbone", ADDRESSES)
def test_the_name_of_a_backbone_is_no_address(stranger: Callable[..., Path], picture: Path, backbone: str) -> None:
    file, folder = stranger({"model": {"backbone": backbone}}), picture.parent
    (folder / "config.yaml").write_text(
        to_yaml(settings_of("tiny-fpn")).replace("backbone: tiny", f"backbone: {backbone}")
    )
    for code, words in (
        (4, ("predict", file, picture)),
        (4, ("inspect", file)),
        (4, ("export", file)),
        (2, ("train", folder, "--model", backbone)),
        (2, ("train", folder, f"model.backbone={backbone}")),
        (2, ("train", folder, "--config", "config.yaml")),
    ):
        outcome = limited(folder, *words)
        assert outcome.out == "", words
        assert outcome.code == code, outcome.err
        assert "after timm/ comes the name of one of timm's own networks" in outcome.err


def test_weights_of_timm_from_a_file_are_not_replaced_by_fetched_ones(data: Path) -> None:
    pytest.importorskip("timm")
    save_file({}, data.parent / "none.safetensors")
    outcome = limited(data.parent, "train", data, "--model", "timm/resnet10t", "--init", "none.safetensors")
    assert (outcome.code, outcome.out) == (4, ""), outcome.err
    assert "none.safetensors does not fit timm/resnet10t" in outcome.err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"predict": {"scales": [1.0] * 10**5}}, "at most 16 items"),
        ({"anchors": {"sizes": [[32.0] * 10**5] * 4}}, "at most 64 items"),
        ({"model": {"channels": 10**6}}, "less than or equal to 16384"),
        ({"model": {"channels": 3000}}, "has the shape"),
        ({"model": {"channels": 16_384}, "roi": {"size": 64}}, "1,000,000,000 is the most"),
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
    stranger: Callable[..., Path], picture: Path, settings: dict[str, Any], said: str
) -> None:
    outcome = limited(picture.parent, "predict", stranger(settings), picture)
    assert (outcome.code, outcome.out) == (4, ""), outcome.err
    assert said in outcome.err
    assert "stranger.safetensors: holds weights, but not a detector of this version of rcnn" in outcome.err
    assert "unexpected" not in outcome.err


def test_as_many_classes_as_there_are_names_are_not_built(stranger: Callable[..., Path], picture: Path) -> None:
    file = stranger({}, names=["x"] * 10**6, category_ids=[1] * 10**6)
    outcome = limited(picture.parent, "predict", file, picture)
    assert (outcome.code, outcome.out) == (4, ""), outcome.err
