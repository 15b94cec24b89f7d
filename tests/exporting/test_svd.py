"""Detectors whose fully connected layers are truncated (`predict.svd`), in PyTorch and in exported files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rcnn
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.exporting import export
from rcnn.model.truncated import linear_layers
from rcnn.runtime.by_suffix import contents
from rcnn.training.train import train
from rcnn.weights.file import load_weights
from tests.cli.conftest import run  # noqa: F401
from tests.data import sets
from tests.test_every_preset import PICTURES, assert_equal

from .test_export import detector_of, entry

HEADS = {"fc": (512, 512), "conv-fc": (512,)}
"""Full ranks: the layers have 512 rows, and at least as many columns."""


def small(head: str, *changes: str) -> Detector:
    return detector_of("tiny-fpn", f"roi.head={head}", *changes)


def parameters(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_full_ranks_give_the_detectors_scores_and_deltas(head: str) -> None:
    whole = small(head)
    full = whole.with_settings([f"predict.svd={list(HEADS[head])}"])
    batch = whole.preprocessor.collate([whole.preprocessor.resize(PICTURES[2])], [PICTURES[2].shape[:2]])
    (first,), (second,) = (one.network.record(batch).rois for one in (full, whole))
    for mine, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_lower_ranks_affect_only_prediction(head: str, tmp_path: Path) -> None:
    whole = small(head)
    low = whole.with_settings([f"predict.svd={[8] * len(HEADS[head])}"])
    assert low.model.fast_rcnn is not None
    saved = [
        layer.in_features * layer.out_features - 8 * (layer.in_features + layer.out_features)
        for layer in linear_layers(low.model.fast_rcnn.head).values()
    ]
    assert min(saved) > 0
    assert parameters(whole.runner.fast_rcnn) - parameters(low.runner.fast_rcnn) == sum(saved)
    assert parameters(low.model) == parameters(whole.model)
    alone = low.predict(PICTURES)
    assert_equal(low.predict(PICTURES, batch=4), alone)
    assert [list(map(float, one.scores)) for one in alone] != [
        list(map(float, one.scores)) for one in whole.predict(PICTURES)
    ]
    for detector in (low, whole):
        detector.save(tmp_path / f"{detector is low}.safetensors")
    kept, theirs = (load_weights(tmp_path / f"{name}.safetensors")[0] for name in (True, False))
    assert kept.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in kept.items())
    assert_equal(rcnn.load(tmp_path / "True.safetensors", device="cpu").predict(PICTURES), alone)
    assert_equal(low.with_settings(["predict.svd=[]"]).predict(PICTURES), whole.predict(PICTURES))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # packages warn about one another
def test_an_exported_file_has_the_smaller_layers_and_their_ranks(tmp_path: Path, run: Any) -> None:  # noqa: F811
    whole = small("fc")
    low = whole.with_settings(["predict.svd=[16, 8]"])
    parity = export.export(low, tmp_path / "low.onnx")
    assert parity.holds
    assert parity.detections > 50
    export.export(whole, tmp_path / "whole.onnx")
    fewer, all_of_them = (contents(tmp_path / f"{name}.onnx").parameters for name in ("low", "whole"))
    assert all_of_them - fewer == parameters(whole.runner.fast_rcnn) - parameters(low.runner.fast_rcnn)
    assert json.loads(entry(tmp_path / "low.onnx"))["settings"]["predict"]["svd"] == [16, 8]
    assert "fully connected layers of rank 16, 8" in run("inspect", tmp_path / "low.onnx").out
    for file, ranks in (("low", "[]"), ("low", "[8, 8]"), ("whole", "[16, 8]")):
        with pytest.raises(
            SettingsError, match=r"predict\.svd: fixed in the exported file .*export the detector again"
        ):
            rcnn.load(tmp_path / f"{file}.onnx").with_settings([f"predict.svd={ranks}"])


def test_ranks_that_do_not_fit_are_refused_before_work_starts(tmp_path: Path, run: Any) -> None:  # noqa: F811
    small("fc").save(tmp_path / "net.safetensors")
    picture = sets.image(tmp_path / "a.jpg")
    for command, *more in (("predict", picture), ("export",)):
        outcome = run(command, tmp_path / "net.safetensors", *more, "predict.svd=[513, 8]")
        assert outcome.code == 2
        assert "513 is larger than the rank of fc6 of 512 x " in outcome.err
    outcome = run("export", tmp_path / "net.safetensors", "--format", "torchvision", "predict.svd=[8, 8]")
    assert outcome.code == 2
    assert "torchvision has no names for factored layers" in outcome.err
    data = sets.voc(tmp_path / "voc", {name: [("cat", (3, 4, 30, 32))] for name in "abcd"})
    words = ["roi.hidden=16", "predict.svd=[17, 8]"]
    options: dict[str, Any] = {"init": "none", "device": "cpu", "quiet": True, "workers": 0}
    with pytest.raises(SettingsError, match="17 is larger than the rank of fc6 of 16 x "):
        train(data, model="tiny-fpn", overrides=words, runs=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()
