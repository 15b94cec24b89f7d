"""Tests of every command: help with an example, one JSON document, data never written to, faults as a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rcnn.cli.app import app

from .conftest import SMALL, Run, digests

ELSEWHERE = {"benchmark": "test_benchmark.py", "demo": "test_demo.py", "paper": "../paper/test_execute.py"}
"""Command whose --json needs a separate training -> its test."""


def commands(group: Any = None, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the application, by its words."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_describes_the_command_and_gives_an_example(run: Run, words: tuple[str, ...]) -> None:
    text = " ".join(run.ok(*words, "--help").out.split())
    assert f"Example: rcnn {' '.join(words)}" in text
    first = " ".join(COMMANDS[words].help.split("\n\n")[0].split())
    assert len(first) > 20
    assert first in text


@pytest.mark.usefixtures("blank_figures")
def test_json_is_one_document_and_the_data_is_never_written_to(run: Run, data: Path) -> None:
    before, tested = digests(data), {("train",)}
    settings = ("--model=tiny-fpn", "--epochs=1", "--batch=4", *SMALL, "anchors.ratios=[1]")
    weights = run.json("train", data, *settings)["best"]
    assert digests(data) == before
    for words in (
        ("data", "check", data),
        ("data", "stats", data),
        ("data", "show", data),
        ("data", "convert", data, "--to=coco", "--out=copy"),
        ("data", "audit", data, "--model", weights),
        ("train", data, "--dry-run", *SMALL),
        ("val", weights, data),
        ("predict", weights, data, "--score=0", "--format=drawn,json,coco,voc,yolo"),
        ("propose", weights, data),
        ("why", weights, data),
        ("anchors", data, "--model", weights),
        ("explain", weights, data / "JPEGImages/4.jpg", "--truth", data),
        ("report", Path(weights).parents[1]),
        ("inspect", weights),
        ("import", "--list"),
    ):
        run.json(*words)
        assert digests(data) == before, words
        tested.add(words[: 2 if words[0] == "data" else 1])
    tested |= {("export",), *((name,) for name in ELSEWHERE)}  # see test_import_export.py
    assert tested == {words for words, command in COMMANDS.items() if any(p.name == "json" for p in command.params)}


FAULTS = {
    "train {data} rpn.nsm=1": (2, ""),
    "train {data} roi.levels=[2]": (2, ""),
    "train nowhere": (3, ""),
    "train {data} --init=nowhere.pth": (4, "nowhere.pth"),
    "train {data} --config=nowhere.yaml": (2, ""),
    "train --resume=nowhere": (2, ""),
    "train {data} train.lrr=1": (2, "did you mean `train.lr`?"),
    "train {data} trian.lr=1": (2, "did you mean `train`?"),
    "train {data} train.lr=fast": (2, "`train.lr`"),
    "train {data}x roi.levels=[2,3]": (2, "roi.levels names [2], but the backbone's levels are [3, 4, 5, 6]"),
    "train {data}x anchors.sizes=[[16],[32]]": (2, "give one tuple of sizes per level"),
    "train {data}x anchors.sizes=[[16],[32],[64],[128,256]]": (2, "equally many sizes on every level"),
    "train {data} --epochs 0": (2, "`train.epochs`"),
    "train {data} --imgsz 99999": (2, "`preprocess.short`"),
    "train {data} callbacks=x": (2, "did you mean `recorders=[...]` of `rcnn.train`?"),
    "train {data} --model mobilnet-fpn": (2, "did you mean `mobilenet-fpn`?"),
    "train {data} {data}": (2, "one DATA is expected, found 2"),
    "train": (2, "nothing to train on"),
    "train --resume {data}": (2, "no run folder"),
    "train {data} --resume {data}": (2, "leave out DATA and other settings"),
    "train {data} --config c.yaml --model zf": (2, "leave --model out"),
    "train {data} --config c.yaml": (2, "c.yaml"),
    "train {data} --from blood-cells --model zf": (2, "leave --config, --model and --init out"),
    "train {data} --from blood-cell": (4, "did you mean `blood-cells`?"),
    "train {data} --from best.onnx": (4, "an exported file can't be trained"),
    "train {data} --from blood-cells preprocess.in_channels=4": (2, "mean has 3 numbers for 4 channels"),
    "train --resume {data} --from blood-cells": (2, "leave out DATA and other settings"),
    "train {data}x --dry-run": (3, "no such file or folder"),
    "train {data}/ImageSets --dry-run": (3, "no data set is recognised here"),
    "train {data} --dry-run train.scheme=fast-rcnn train.proposals=gone.json": (3, "gone.json"),
    "train {data} --init nowhere.safetensors": (4, "nowhere.safetensors"),
    "train no-such-data roi.head=none val.voc_ap=11-point": (2, "scored by recall alone"),
    "val {weights} {data} rpn.nsm=1": (2, ""),
    "val {weights} nowhere": (3, ""),
    "val nowhere.safetensors {data}": (4, ""),
    "val {weights} {data} --proposals=nowhere.json": (3, ""),
    "val {weights} {data} --split test": (3, "there is no `test` list"),
    "predict {weights} {data} rpn.nsm=1": (2, ""),
    "predict {weights} {data} model.channels=16": (2, "the weights are made for other layers"),
    "predict {weights} {data} roi.levels=[2]": (2, ""),
    "predict {weights} nowhere.jpg": (3, "nowhere.jpg"),
    "predict {weights} {data} --device=no-such": (2, ""),
    "predict {weights} {data} --out={image}/below": (1, ""),
    "predict {weights} nowhere/*.jpg": (3, "no such file, folder or glob"),
    "predict nowhere.safetensors {image}": (4, "nowhere.safetensors"),
    "predict {image} {image}": (4, "0.jpg"),
    "predict {weights} {image} --classes dog": (2, "unknown `dog`; there are circle, square"),
    "predict {weights} {image} --format xls": (2, "unknown `xls`; there are drawn, json"),
    "predict {weights} {image} roi.nsm=0.3": (2, "did you mean `roi.nms`?"),
    "predict {weights} roi.nms=0.3": (2, "SOURCE is missing"),
    "predict {weights} {data} --split test": (3, "no `test` list"),
    "predict {weights} {data}/ImageSets --split val": (3, "no data set"),
    "predict {weights} {data} --shard 3/2": (2, "counted from 1/2 to 2/2"),
    "merge nowhere": (2, "nowhere: holds no shards"),
    "propose {weights} {data} rpn.nsm=1": (2, ""),
    "propose {weights} nowhere/*.jpg": (3, ""),
    "propose nowhere.safetensors {data}": (4, ""),
    "why {weights} {data} rpn.nsm=1": (2, ""),
    "why {weights} nowhere": (3, ""),
    "why nowhere.safetensors {data}": (4, ""),
    "why {weights} {data} --split test": (3, "there is no `test` list"),
    "why {weights} no-such-data val.voc_ap=11-point": (2, "`why` counts AP as COCO does"),
    "anchors {data} anchors.sizes=[[8],[16],[32],[64,128]]": (2, ""),
    "anchors nowhere": (3, "nowhere"),
    "anchors {data} --model=nowhere.safetensors": (4, ""),
    "anchors {data} --model mobilenet-fpm": (2, "mobilenet-fpn"),
    "look {weights} nowhere": (3, ""),
    "look nowhere.safetensors": (4, ""),
    "look {weights} {data} {data}": (2, ""),
    "report nowhere": (2, ""),
    "report {data} --out=page.txt": (2, ""),
    "explain {weights} {image} --truth=nowhere": (3, ""),
    "explain {weights} nowhere.jpg": (3, "nowhere.jpg"),
    "explain nowhere.safetensors {image}": (4, ""),
    "inspect nowhere.pth": (4, ""),
    "inspect {image}": (4, ""),
    "import {weights}": (2, ""),
    "import nowhere.pth --arch=paper-zf --out=a.pth": (2, ""),
    "import nowhere.pth --arch=fasterrcnn_resnet50_fpn": (4, ""),
    "import nowhere.pth --arch=fasterrcnn_resnet51_fpn": (4, ""),
    "export {weights} --out=a.txt": (2, ""),
    "export nowhere.safetensors": (4, ""),
    "export {weights} --size=100x96 --out=a.onnx": (2, ""),
    "export {weights} --size=large --out=a.onnx": (2, ""),
    "export {weights} --format=caffe --size=96x96": (2, ""),
    "export {weights} --images=nowhere --out=a.onnx": (3, ""),
    "export {weights} rpn.nsm=1": (2, ""),
    "export {weights} --format=caffe": (4, ""),
    "benchmark nowhere.safetensors": (4, ""),
    "benchmark {weights} nowhere.onnx": (4, ""),
    "benchmark {weights} {weights}": (4, ""),
    "benchmark {weights} --data=nowhere": (3, ""),
    "benchmark {weights} --size=100x96": (2, ""),
    "benchmark {weights} --size=large": (2, ""),
    "benchmark {weights} --batch=1,many": (2, ""),
    "paper lambda {data} rpn.nsm=1": (2, ""),
    "paper lambda nowhere": (3, ""),
    "data check nowhere": (3, ""),
    "data stats nowhere": (3, ""),
    "data show nowhere": (3, ""),
    "data audit nowhere": (3, "there is no such file or folder"),
    "data audit {data} data.group=(": (2, "not a regular expression"),
    "data audit {data} train.lrr=1": (2, "did you mean `train.lr`?"),
    "data audit {data} data.classes=[circl]": (3, "did you mean `circle`?"),
    "data convert nowhere --to=coco --out=copy": (3, ""),
    "data convert {data} --to=coco --out={data}": (2, ""),
    "data check {data} data.pth=x": (2, ""),
    "data check a b": (2, ""),
    "demo rpn.nsm=1": (2, ""),
}
"""Command line -> exit code (docs/DESIGN.md), part of the message."""


def test_every_command_has_a_fault_in_the_table() -> None:
    assert all(any(line.startswith(" ".join(words)) for line in FAULTS) for words in COMMANDS)


@pytest.mark.parametrize("line", FAULTS)
def test_a_fault_gives_an_exit_code_a_sentence_and_with_debug_a_traceback(
    run: Run, data: Path, weights: Path, tmp_path: Path, line: str
) -> None:
    code, message = FAULTS[line]
    words = [word.format(data=data, weights=weights, image=data / "JPEGImages/0.jpg") for word in line.split()]
    plain, debugged = run.fails(code, message, *words), run(*words, "--debug")
    assert debugged.code == code
    assert not plain.out.startswith("{")
    assert plain.err.startswith("error: ")
    assert "unexpected" not in plain.err
    assert debugged.err.startswith("Traceback")
    assert debugged.err.endswith(plain.err)
    assert {path.name for path in tmp_path.iterdir()} <= {"shapes", "runs"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_empty_path_is_not_the_current_folder(run: Run, words: tuple[str, ...]) -> None:
    """It is refused wherever it stands, also as the value of an option, before anything is read."""
    for arguments in ([""], ["x", ""], ["x", "--out", ""], ["x", "--out="]):
        run.fails(2, "perhaps a variable of the shell is not set", *words, *arguments)
