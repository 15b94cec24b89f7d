"""What holds for every command: help with an example, one JSON document, data left alone, faults in a sentence."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rcnn.cli.app import app

from .conftest import SMALL, Outcome

Run = Callable[..., Outcome]
ELSEWHERE = {"benchmark": "test_benchmark.py", "demo": "test_demo.py", "paper": "../paper/test_execute.py"}
"""Commands whose --json takes a training of its own, and the test that has it."""


def commands(group: Any = None, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the application, by its words."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_says_what_it_does_and_gives_an_example(run: Run, words: tuple[str, ...]) -> None:
    outcome = run(*words, "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert f"Example: rcnn {' '.join(words)}" in text
    first = COMMANDS[words].help.split("\n\n")[0]
    assert len(first) > 20
    assert " ".join(first.split()) in text


def digest(folder: Path) -> dict[str, str]:
    """Every file and folder below, with its content."""
    files = {path: path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}
    return {str(path): hashlib.sha256(content).hexdigest() for path, content in files.items()}


@pytest.mark.usefixtures("blank_figures")
def test_json_is_one_document_and_the_data_is_never_written_to(run: Run, data: Path) -> None:
    before = digest(data)
    seen = set()

    def document(*words: object) -> Any:
        outcome = run(*words, "--json")
        assert outcome.code == 0, outcome.err
        assert digest(data) == before, words
        seen.add(tuple(str(word) for word in words[: 2 if words[0] == "data" else 1]))
        return outcome.json()

    image = data / "JPEGImages/4.jpg"
    weights = document("train", data, "--model=tiny-fpn", "--epochs=1", "--batch=4", *SMALL, "anchors.ratios=[1]")[
        "best"
    ]
    for words in (
        ("data", "check", data),
        ("data", "stats", data),
        ("data", "show", data),
        ("data", "convert", data, "--to=coco", "--out=copy"),
        ("train", data, "--dry-run", *SMALL),
        ("val", weights, data),
        ("predict", weights, data, "--score=0", "--format=drawn,json,coco,voc,yolo"),
        ("propose", weights, data),
        ("why", weights, data),
        ("anchors", data, "--model", weights),
        ("explain", weights, image, "--truth", data),
        ("report", Path(weights).parents[1]),
        ("inspect", weights),
        ("import", "--list"),
    ):
        document(*words)
    seen |= {("export",), *((name,) for name in ELSEWHERE)}  # see test_import_export.py
    assert seen == {words for words, command in COMMANDS.items() if any(p.name == "json" for p in command.params)}


FAULTS: dict[str, tuple[int, list[str]]] = {
    "train: a setting": (2, ["train", "{data}", "rpn.nsm=1"]),
    "train: settings that do not fit": (2, ["train", "{data}", "roi.levels=[2]"]),
    "train: no data": (3, ["train", "nowhere"]),
    "train: no weights": (4, ["train", "{data}", "--init=nowhere.pth"]),
    "train: no config": (2, ["train", "{data}", "--config=nowhere.yaml"]),
    "train: no run": (2, ["train", "--resume=nowhere"]),
    "val: a setting": (2, ["val", "{weights}", "{data}", "rpn.nsm=1"]),
    "val: no data": (3, ["val", "{weights}", "nowhere"]),
    "val: no weights": (4, ["val", "nowhere.safetensors", "{data}"]),
    "val: no proposals": (3, ["val", "{weights}", "{data}", "--proposals=nowhere.json"]),
    "predict: a setting": (2, ["predict", "{weights}", "{data}", "rpn.nsm=1"]),
    "predict: other layers": (2, ["predict", "{weights}", "{data}", "model.channels=16"]),
    "predict: levels that are not there": (2, ["predict", "{weights}", "{data}", "roi.levels=[2]"]),
    "predict: no image": (3, ["predict", "{weights}", "nowhere.jpg"]),
    "predict: no weights": (4, ["predict", "nowhere.safetensors", "{data}"]),
    "predict: a device": (2, ["predict", "{weights}", "{data}", "--device=no-such"]),
    "predict: the folder of the results": (1, ["predict", "{weights}", "{data}", "--out={image}/below"]),
    "propose: a setting": (2, ["propose", "{weights}", "{data}", "rpn.nsm=1"]),
    "propose: no image": (3, ["propose", "{weights}", "nowhere/*.jpg"]),
    "propose: no weights": (4, ["propose", "nowhere.safetensors", "{data}"]),
    "why: a setting": (2, ["why", "{weights}", "{data}", "rpn.nsm=1"]),
    "why: no data": (3, ["why", "{weights}", "nowhere"]),
    "why: no weights": (4, ["why", "nowhere.safetensors", "{data}"]),
    "anchors: sizes": (2, ["anchors", "{data}", "anchors.sizes=[[8],[16],[32],[64,128]]"]),
    "anchors: no data": (3, ["anchors", "nowhere"]),
    "anchors: no weights": (4, ["anchors", "{data}", "--model=nowhere.safetensors"]),
    "look: no data": (3, ["look", "{weights}", "nowhere"]),
    "look: no weights": (4, ["look", "nowhere.safetensors"]),
    "look: three words": (2, ["look", "{weights}", "{data}", "{data}"]),
    "report: no run": (2, ["report", "nowhere"]),
    "report: an ending": (2, ["report", "{data}", "--out=page.txt"]),
    "explain: no data": (3, ["explain", "{weights}", "{image}", "--truth=nowhere"]),
    "explain: no image": (3, ["explain", "{weights}", "nowhere.jpg"]),
    "explain: no weights": (4, ["explain", "nowhere.safetensors", "{image}"]),
    "inspect: no weights": (4, ["inspect", "nowhere.pth"]),
    "inspect: an image": (4, ["inspect", "{image}"]),
    "import: no architecture": (2, ["import", "{weights}"]),
    "import: an ending": (2, ["import", "nowhere.pth", "--arch=paper-zf", "--out=a.pth"]),
    "import: no weights": (4, ["import", "nowhere.pth", "--arch=fasterrcnn_resnet50_fpn"]),
    "import: a name": (4, ["import", "nowhere.pth", "--arch=fasterrcnn_resnet51_fpn"]),
    "export: an ending": (2, ["export", "{weights}", "--out=a.txt"]),
    "export: no weights": (4, ["export", "nowhere.safetensors"]),
    "export: a size": (2, ["export", "{weights}", "--size=100x96", "--out=a.onnx"]),
    "export: no size": (2, ["export", "{weights}", "--size=large", "--out=a.onnx"]),
    "export: a size for others": (2, ["export", "{weights}", "--format=caffe", "--size=96x96"]),
    "export: no image": (3, ["export", "{weights}", "--images=nowhere", "--out=a.onnx"]),
    "export: a setting": (2, ["export", "{weights}", "rpn.nsm=1"]),
    "export: what Caffe can't hold": (4, ["export", "{weights}", "--format=caffe"]),
    "benchmark: no weights": (4, ["benchmark", "nowhere.safetensors"]),
    "benchmark: no file": (4, ["benchmark", "{weights}", "nowhere.onnx"]),
    "benchmark: no exported file": (4, ["benchmark", "{weights}", "{weights}"]),
    "benchmark: no data": (3, ["benchmark", "{weights}", "--data=nowhere"]),
    "benchmark: a size": (2, ["benchmark", "{weights}", "--size=100x96"]),
    "benchmark: no size": (2, ["benchmark", "{weights}", "--size=large"]),
    "benchmark: batches": (2, ["benchmark", "{weights}", "--batch=1,many"]),
    "paper: a setting": (2, ["paper", "lambda", "{data}", "rpn.nsm=1"]),
    "paper: no data": (3, ["paper", "lambda", "nowhere"]),
    "data check: a setting": (2, ["data", "check", "{data}", "data.pth=1"]),
    "data check: no data": (3, ["data", "check", "nowhere"]),
    "data stats: no data": (3, ["data", "stats", "nowhere"]),
    "data show: no data": (3, ["data", "show", "nowhere"]),
    "data convert: no data": (3, ["data", "convert", "nowhere", "--to=coco", "--out=copy"]),
    "data convert: a folder that is taken": (2, ["data", "convert", "{data}", "--to=coco", "--out={data}"]),
    "demo: a setting": (2, ["demo", "rpn.nsm=1"]),
}
"""Fault -> exit code (docs/DESIGN.md), command line."""


def test_every_command_has_a_fault_in_the_table() -> None:
    assert {fault.partition(":")[0] for fault in FAULTS} == set(map(" ".join, COMMANDS))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_sentence_and_a_code_and_with_debug_a_traceback(
    run: Run, data: Path, weights: Path, tmp_path: Path, fault: str
) -> None:
    code, line = FAULTS[fault]
    places = {"data": data, "weights": weights, "image": data / "JPEGImages/0.jpg"}
    words = [word.format(**places) for word in line]
    plain, debugged = run(*words), run(*words, "--debug")
    assert (plain.code, debugged.code) == (code, code), plain.err
    assert plain.out == "" or not plain.out.startswith("{")
    assert plain.err.startswith("error: ")
    assert "Traceback" not in plain.err
    assert "unexpected" not in plain.err
    assert debugged.err.startswith("Traceback")
    assert debugged.err.endswith(plain.err)
    assert {path.name for path in tmp_path.iterdir()} <= {"shapes", "runs"}
