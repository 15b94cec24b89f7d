"""Damaged and hostile exported files, and those of other programs, are refused with a message and do nothing."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import rcnn
from rcnn.errors import WeightsError
from rcnn.runtime import packages
from rcnn.runtime.graph import ENTRY, entries
from tests.commands import BYTES, Ended
from tests.commands import run as run_limited
from tests.runtime import graphs


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.onnx, a.xml and a.bin."""
    folder = tmp_path_factory.mktemp("sound")
    for suffix, write in graphs.WRITE.items():
        write(folder / f"a.{suffix}", graphs.detector())
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of them, with a picture."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def limited(folder: Path, *words: object) -> Ended:
    """Run a command, and check its time, its memory, and that it does nothing forbidden."""
    ended = run_limited(folder, words)
    assert ended.code is not None, f"{words} took too long: {ended.output[-2000:]}"
    assert ended.memory < BYTES, f"{words} took {ended.memory / 1e9:.1f} GB"
    assert ended.violations == "", words
    assert "Traceback" not in ended.output
    assert "unexpected" not in ended.output
    return ended


def yolo(path: Path) -> Path:
    """Write a file like those of ultralytics, with one output and other entries."""
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("ReduceMax", ["images"], ["output0"])],
            "main_graph",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 640, 640])],
            [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 84, 8400])],
        ),
        producer_name="pytorch",
        producer_version="2.8.0",
    )
    helper.set_model_props(made, {"author": "Ultralytics", "names": "{0: 'person'}", "task": "detect", "stride": "32"})
    path.write_bytes(made.SerializeToString())
    return path


def outside(made: onnx.ModelProto, location: str) -> bytes:
    """Return the model with one of its tensors in another file."""
    tensor = made.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value=location))
    return made.SerializeToString()


def huge(made: onnx.ModelProto) -> bytes:
    """Return the model with a tensor whose dimensions exceed its data."""
    made.graph.initializer[1].dims[:] = [1, 10**9, 10**9]
    return made.SerializeToString()


def bomb(made: onnx.ModelProto) -> bytes:
    """Return the model with a node that allocates a terabyte."""
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([10**6, 10**6]), "extent"))
    made.graph.node.insert(0, helper.make_node("ConstantOfShape", ["extent"], ["filled"]))
    made.graph.node.insert(1, helper.make_node("ReduceSum", ["filled"], ["total"], keepdims=0))
    made.graph.node[-2].input[1] = "total"
    return made.SerializeToString()


def stranger(made: onnx.ModelProto) -> bytes:
    """Return the model with a node of an unknown library."""
    made.graph.node.append(helper.make_node("Own", ["mean"], ["more"], domain="com.stranger"))
    made.opset_import.append(helper.make_opsetid("com.stranger", 1))
    return made.SerializeToString()


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], bytes], str]] = {
    "empty": (lambda made: b"", "a.onnx (0 bytes) is damaged, or no ONNX file: it holds no graph"),
    "cut": (lambda made: made.SerializeToString()[:2000], "is damaged, or no ONNX file"),
    "text": (lambda made: b"<!doctype html>" * 100, "is damaged, or no ONNX file"),
    "huge": (huge, "is damaged, or no ONNX file"),
    "missing": (
        lambda made: outside(made, "a.onnx.data"),
        "a.onnx.data, which can't be read (No such file or directory)",
    ),
    "elsewhere": (lambda made: outside(made, "/etc/passwd"), "/etc/passwd, which is no file beside it"),
    "above": (lambda made: outside(made, "../a.png"), "../a.png, which is no file beside it"),
    "short": (lambda made: outside(made, "a.png"), "is damaged, or no ONNX file"),
    "stranger": (stranger, "is damaged, or no ONNX file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_onnx_file_is_refused(folder: Path, kind: str) -> None:
    change, message = BROKEN[kind]
    (folder / "a.onnx").write_bytes(change(graphs.model(graphs.detector())))
    if kind == "short":
        (folder / "a.png").write_bytes(b"12")
    with pytest.raises(WeightsError) as refused:
        rcnn.load(folder / "a.onnx")
    assert message in str(refused.value)


def test_a_graph_that_needs_too_much_memory_ends_with_a_message(folder: Path) -> None:
    (folder / "a.onnx").write_bytes(bomb(graphs.model(graphs.detector())))
    ended = limited(folder, "predict", "a.onnx", "a.png")
    assert ended.code == 1, ended.output
    assert "there is not enough memory: a.onnx, images of (1, 3, 64, 64): " in ended.output
    assert ended.output.count("Failed to allocate") == 1  # onnxruntime itself prints nothing


@pytest.mark.parametrize("command", [("predict", "a.png"), ("propose", "a.png"), ("inspect",)])
def test_a_file_of_another_program_is_refused(folder: Path, command: tuple[str, ...]) -> None:
    yolo(folder / "yolo.onnx")
    ended = limited(folder, command[0], "yolo.onnx", *command[1:])
    assert ended.code == 4, ended.output
    assert "yolo.onnx: is a file of another program (written by pytorch 2.8.0): it has no `rcnn` entry" in ended.output


def test_a_model_of_another_program_is_refused(folder: Path) -> None:
    text = (folder / "a.xml").read_text()
    (folder / "a.xml").write_text(text.replace("<rcnn ", "<other "))
    ended = limited(folder, "predict", "a.xml", "a.png")
    assert (ended.code, "a.xml: is a file of another program: it has no `rcnn` entry" in ended.output) == (4, True)


@pytest.mark.parametrize("suffix", graphs.WRITE)
def test_hostile_entries_are_refused(folder: Path, suffix: str) -> None:
    path, one = folder / f"a.{suffix}", graphs.detector()
    entry = json.loads(entries(one)[ENTRY])
    for changes, message in (
        ({"interface": 2}, "inputs and outputs of version 2"),
        ({"settings": {"model": {"backbone": "timm/hf-hub:user/x"}}}, "addresses and paths are not opened"),
        ({"settings": {"roi": {"detections": 10**12}}}, "less than or equal to 10000"),
        ({"size": [32, 10**9]}, "less than or equal to 16384"),
    ):
        graphs.WRITE[suffix](path, one, changes={ENTRY: json.dumps({**entry, **changes})})
        ended = limited(folder, "predict", path.name, "a.png")
        assert (ended.code, message in ended.output) == (4, True), ended.output


def xml_files(folder: Path) -> Iterator[tuple[str, Callable[[], object], str]]:
    """Yield (name, change of a.xml or a.bin, message)."""
    xml, weights = folder / "a.xml", folder / "a.bin"
    sound, held = xml.read_bytes(), weights.read_bytes()
    yield "annotation", lambda: xml.write_text("<annotation><object/></annotation>"), "is an XML file of <annotation>"
    yield "no XML", lambda: xml.write_text("hello"), "is no XML file"
    yield "empty", lambda: xml.write_bytes(b""), "is no XML file"
    yield "cut", lambda: xml.write_bytes(sound[: len(sound) // 2]), "is damaged, or no model of OpenVINO"
    yield (
        "cut weights",
        lambda: (xml.write_bytes(sound), weights.write_bytes(held[:8])),
        "no model of OpenVINO: Incorrect weights in bin file!. Copy",
    )
    yield "no weights", lambda: weights.unlink(), "a.bin, which can't be read (No such file or directory); copy both"
    big = sound.replace(b'shape="1, 3, 4"', b'shape="1000000000, 1000000000, 4"')
    yield "huge", lambda: (xml.write_bytes(big), weights.write_bytes(held)), "is damaged, or no model of OpenVINO"


def test_a_broken_model_of_openvino_is_refused(folder: Path) -> None:
    for name, change, message in xml_files(folder):
        change()
        with pytest.raises(WeightsError) as refused:
            rcnn.load(folder / "a.xml")
        assert message in str(refused.value), name
    ended = limited(folder, "predict", "a.xml", "a.png")
    assert ended.code == 4, ended.output


def test_an_intact_model_without_kernels_is_not_called_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO has no kernels of some layers for older CPUs."""

    def compile_model(*_: object) -> None:
        raise RuntimeError("Exception from src/plugin.cpp:54:\nbad combination")

    core = SimpleNamespace(read_model=packages.openvino_core().read_model, compile_model=compile_model)
    monkeypatch.setattr(packages, "openvino_core", lambda: core)
    with pytest.raises(WeightsError, match=r"a\.xml: OpenVINO can't compile it for this CPU: bad combination\. If"):
        rcnn.load(folder / "a.xml")


@pytest.mark.parametrize("name", ["b.onnx", "b.xml"])
def test_missing_files_and_folders_are_refused(folder: Path, name: str) -> None:
    for message in ("o such file", "folder"):
        for command in (("predict", name, "a.png"), ("inspect", name)):
            ended = limited(folder, *command)
            assert (ended.code, message in ended.output) == (4, True), ended.output
        (folder / name).mkdir(exist_ok=True)


@pytest.mark.parametrize("suffix", graphs.WRITE)
def test_an_intact_file_makes_no_requests_and_starts_no_programs(folder: Path, suffix: str) -> None:
    file = f"a.{suffix}"
    for words in (("predict", file, "a.png"), ("propose", file, "a.png"), ("inspect", file)):
        ended = limited(folder, *words)
        assert ended.code == 0, ended.output
    for code, words in (
        (2, ("explain", file, "a.png")),
        (2, ("export", file)),
        (2, ("predict", file, "a.png", "roi.nms=0.3")),
        (2, ("predict", file, "a.png", "--proposals", "selective-search")),
        (4, ("import", file, "--arch", "fasterrcnn_resnet50_fpn")),
    ):
        ended = limited(folder, *words)
        assert ended.code == code, ended.output
    assert not (folder / "runs/explain").exists()
