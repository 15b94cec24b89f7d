"""The files are small graphs made by hand, with the inputs and outputs of an exported detector."""

from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

import rcnn.cli.benchmark.runtimes as benchmark
from rcnn.cli.benchmark.parts import STAGES
from rcnn.detector import Detector
from rcnn.errors import WeightsError
from rcnn.runtime.by_suffix import files_of
from tests.runtime import graphs

from .conftest import Run


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return graphs.detector("rpn.pre_test=50", "rpn.post_test=20", "roi.score=0", "data.workers=0")


@pytest.fixture
def saved(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_runtimes_are_measured_scored_and_compared(
    run: Run, data: Path, detector: Detector, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "has_bf16", lambda device: False)  # saves a process
    file = graphs.write_onnx(saved.with_suffix(".onnx"), detector)
    outcome = run.ok("benchmark", saved, file, "--data", data, "--batch=2,1", "--runs=2", "--size=64x96", "--json")
    document = outcome.json()
    assert (document["size"], document["runs"], document["split"]) == ([64, 96], 2, "val")
    eager, exported = document["engines"]
    assert (eager["name"], exported["name"]) == ("eager", "small.onnx")
    assert (eager["agreed"], exported["agreed"]) == (1, 0)
    assert exported["bytes"] == file.stat().st_size != eager["bytes"] == saved.stat().st_size
    for runtime in document["engines"]:
        assert [cost["batch"] for cost in runtime["costs"]] == [1, 2]
        assert all(cost["seconds"] > 0 and cost["cpu"] > 0 for cost in runtime["costs"])
        assert 1e6 < runtime["costs"][0]["memory"] <= runtime["costs"][1]["memory"] < 2e8
        scores = run.json("val", saved if runtime is eager else file, data)
        assert (runtime["ap"], runtime["ap50"]) == (scores["ap"], scores["ap50"])
    assert [(stages["device"], stages["batch"]) for stages in document["stages"]] == [("cpu", 1), ("cpu", 2)]
    for stages in document["stages"]:
        assert list(stages["seconds"]) == list(STAGES)
        assert all(seconds > 0 for seconds in (*stages["seconds"].values(), stages["images_per_second"]))
    assert "2 images" in outcome.err
    table = outcome.err.split("pixels, ")[1].splitlines()
    assert max(map(len, table)) <= 80, outcome.err


def test_bf16_is_compared_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {}
    monkeypatch.setattr(benchmark, "_is_int8", lambda path: path.stem == "int8")
    for has_bf16 in (True, False):
        monkeypatch.setattr(benchmark, "has_bf16", lambda device, answer=has_bf16: answer)
        found = benchmark._programs(Path("w"), [Path("a.onnx"), Path("a.xml"), Path("int8.xml")])
        programs[has_bf16] = [(program.name, program.precision) for program in found]
    files = [("a.onnx", "float32"), ("a.xml", "float32"), ("int8.xml", "float32")]
    assert programs[False] == [("eager", "float32"), *files]
    assert set(programs[True]) - set(programs[False]) == {("eager", "bf16"), ("a.xml", "bf16")}
    assert programs[True][0] == programs[False][0]


def test_the_size_is_the_users_or_that_of_a_file_or_of_the_settings(detector: Detector, tmp_path: Path) -> None:
    free, fixed = (graphs.write_onnx(tmp_path / f"{size}.onnx", detector, size) for size in (None, (96, 96)))
    assert benchmark.size_of(detector, [free]) == (64, 96)
    assert benchmark.size_of(detector, [free], (128, 64)) == (128, 64)
    assert benchmark.size_of(detector, [free, fixed]) == (96, 96)


def test_the_weights_beside_a_file_count(detector: Detector, tmp_path: Path) -> None:
    file = graphs.write_openvino(tmp_path / "small.xml", detector)
    assert sorted(files_of(file)) == sorted(tmp_path.glob("small.*"))


def test_files_that_do_not_fit_are_refused_by_name(
    run: Run, detector: Detector, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [graphs.write_onnx(tmp_path / f"{side}.onnx", detector, (side, side)) for side in (64, 96)]
    run.fails(2, "96.onnx: takes only images of 96 x 96, and not of 64 x 64", "benchmark", saved, *sizes)
    run.fails(2, "64.onnx", "benchmark", saved, sizes[0], "--size=96x96")
    monkeypatch.setattr(graphs, "NAMES", ("cat", "dog"))
    pets = graphs.write_onnx(tmp_path / "pets.onnx", graphs.detector())
    message = "pets.onnx: has other classes (cat, dog) than the detector (circle, square)"
    run.fails(4, message, "benchmark", saved, pets)
    run.fails(2, "only detects and proposes", "benchmark", sizes[0])


def test_an_error_of_a_process_and_its_end_are_reported() -> None:
    ours, theirs = Pipe()
    missing = benchmark.Program("gone", Path("nowhere.safetensors"), "float32")
    benchmark._serve(theirs, missing, torch.get_num_threads())
    assert isinstance(ours.recv(), WeightsError)
    with benchmark._Child(missing) as child:
        child._process.kill()
        with pytest.raises(MemoryError, match="gone float32 was killed"):
            child.ask(None)
