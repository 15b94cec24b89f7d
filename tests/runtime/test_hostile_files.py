"""Damaged and hostile exported files, and those of other programs, are refused with a message and do nothing."""

import json
import re
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
from rcnn.runtime import packages, process
from rcnn.runtime.by_suffix import contents
from rcnn.runtime.graph import ENTRY, entries
from tests.commands import BYTES, Ended
from tests.commands import run as run_limited
from tests.limits import MB, in_child
from tests.runtime import attacks, graphs


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


def refused(path: Path, message: str) -> None:
    """Check that a file is refused with little time and memory, and that neither runtime reads it."""

    def refuse() -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("subprocess.Popen", "onnxruntime.InferenceSession", "openvino.Core"):
                patch.setattr(name, None)
            for read in (rcnn.load, contents):
                with pytest.raises(WeightsError, match=re.escape(message)):
                    read(path)

    in_child(refuse, seconds=5, resident=500 * MB)


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], bytes], str]] = {
    "empty": (lambda made: b"", "a.onnx (0 bytes) is damaged, or no ONNX file: it holds no graph"),
    "cut": (lambda made: made.SerializeToString()[:2000], "is damaged, or no ONNX file"),
    "text": (lambda made: b"<!doctype html>" * 100, "is damaged, or no ONNX file"),
    "missing": (lambda made: outside(made, "a.onnx.data"), "a.onnx: its weights are in other files"),
    "elsewhere": (lambda made: outside(made, "/etc/passwd"), "a.onnx: its weights are in other files"),
    "above": (lambda made: outside(made, "../a.png"), "a.onnx: its weights are in other files"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_onnx_file_is_refused(folder: Path, kind: str) -> None:
    change, message = BROKEN[kind]
    (folder / "a.onnx").write_bytes(change(graphs.model(graphs.detector())))
    with pytest.raises(WeightsError) as refused:
        rcnn.load(folder / "a.onnx")
    assert message in str(refused.value)


@pytest.mark.parametrize("name", attacks.REFUSED)
def test_a_hostile_graph_is_refused_before_it_is_run(folder: Path, name: str) -> None:
    attacks.write(attacks.REFUSED[name], 30, folder / "a.onnx")
    refused(folder / "a.onnx", "a.onnx")


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        (suffix, name)
        for name, (_, *ends) in attacks.STOPPED.items()
        for suffix, end in zip(graphs.WRITE, ends, strict=True)
        if end
    ],
)
def test_a_hostile_graph_of_usual_nodes_is_stopped(
    folder: Path, suffix: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOAD_SECONDS", 2)
    attack, *ends = attacks.STOPPED[name]
    expected = dict(zip(graphs.WRITE, ends, strict=True))[suffix]
    attacks.write(attack, 0, folder / f"a.{suffix}")
    ended = limited(folder, "predict", f"a.{suffix}", "a.png", "predict.graph_seconds=2", "predict.graph_memory=1000")
    assert expected is not None
    assert (ended.code, expected[1] in ended.output) == (expected[0], True), ended.output
    if expected == attacks.MEMORY:
        assert "there is not enough memory: a.onnx, images of (1, 3, 64, 64): " in ended.output
        assert ended.output.count("Failed to allocate") == 1  # onnxruntime itself prints nothing
        assert "predict.graph_memory=1000" in ended.output


@pytest.mark.parametrize("name", attacks.XML)
def test_a_hostile_xml_file_is_refused_before_openvino_reads_it(folder: Path, name: str) -> None:
    change, message = attacks.XML[name]
    attacks.layers(folder / "a.xml", change)
    refused(folder / "a.xml", message)


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
        "no model of OpenVINO: a constant of shape ",
    )
    yield "no weights", lambda: weights.unlink(), "a.bin, which can't be read (No such file or directory); copy both"
    yield "cut by a byte", lambda: weights.write_bytes(held[:-1]), "is damaged, or no model of OpenVINO"


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
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    graphs.own(folder / "a.xml")
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
