"""Exported files of unknown origin run in a child process, with the bits of this process and within limits."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import rcnn
from rcnn.config import Predict
from rcnn.detector import Detector
from rcnn.errors import WeightsError
from rcnn.model.structures import Batch
from rcnn.runtime import graph, packages
from rcnn.runtime.by_suffix import files_of, runtime_of
from rcnn.runtime.graph import GraphRuntime
from rcnn.runtime.process import GraphProcess, Limits
from tests.runtime import attacks, graphs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no child is started")
WHITE = np.full((60, 80, 3), 255, dtype=np.uint8)
SUFFIXES = tuple(graphs.WRITE)
LOAD = """
import sys, numpy, rcnn
found = rcnn.load(sys.argv[1]).with_settings(["predict.graph_seconds=1000"])
white = numpy.full((60, 80, 3), 255, dtype=numpy.uint8)
print(found.runtime.running.pid, flush=True)
"""
"""The beginning of scripts that load a file: it prints the number of the child."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Suffix -> a file that is in no list of exports."""
    folder, one = tmp_path_factory.mktemp("foreign"), graphs.detector()
    return {suffix: write(folder / f"a.{suffix}", one) for suffix, write in graphs.WRITE.items()}


def child(found: Detector | GraphRuntime) -> GraphProcess:
    runtime = found.runtime if isinstance(found, Detector) else found
    assert isinstance(runtime, GraphRuntime)
    assert isinstance(runtime.running, GraphProcess)
    return runtime.running


def pid_of(found: Detector) -> int:
    pid = child(found).pid
    assert pid is not None
    return pid


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for what happens within a moment on any machine that is not overloaded."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_child_gives_the_bits_of_this_process(files: dict[str, Path], suffix: str, threads: int) -> None:
    before, rng = torch.get_num_threads(), np.random.default_rng(0)
    try:
        torch.set_num_threads(threads)
        here, there = (runtime_of(files[suffix])(files[suffix], own=own) for own in (True, False))
    finally:
        torch.set_num_threads(before)
    assert child(there).task.threads == threads
    for count, sides in ((1, (64, 96)), (3, (96, 64)), (2, (32, 32)), (1, (512, 640))):
        images = torch.from_numpy(rng.integers(0, 256, (count, 3, *sides), dtype=np.uint8))
        batch = Batch(images, *(torch.tensor([[float(side) for side in sides]] * count),) * 3)
        one, other = here.execute(batch), there.execute(batch)
        for parts in zip((*one.detections, *one.proposals), (*other.detections, *other.proposals), strict=True):  # type: ignore[misc]
            assert torch.equal(*parts)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_own_export_runs_in_this_process_until_a_byte_changes(
    files: dict[str, Path], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in files_of(files[suffix]):
        shutil.copy(part, tmp_path)
    path = graphs.own(tmp_path / f"a.{suffix}")
    assert not isinstance(rcnn.load(path).runtime.running, GraphProcess)  # type: ignore[attr-defined]
    renamed = tmp_path / f"b.{suffix}"
    for part in files_of(path):
        shutil.copy(part, tmp_path / f"b{part.suffix}")
    assert not isinstance(rcnn.load(renamed).runtime.running, GraphProcess)  # type: ignore[attr-defined]
    for part in files_of(path):
        sound = part.read_bytes()
        place = sound.rfind(b"detect") + 5 if part == path else len(sound) - 1  # in an entry that is not read
        part.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert child(rcnn.load(path)).pid
        part.write_bytes(sound)
    assert not isinstance(rcnn.load(path).runtime.running, GraphProcess)  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_child_has_no_torch_and_imports_nothing_from_the_working_folder(
    files: dict[str, Path], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "onnxruntime", "openvino", "rcnn"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    found = rcnn.load(files[suffix])
    libraries = Path(f"/proc/{pid_of(found)}/maps")
    if libraries.exists():
        assert "libtorch" not in libraries.read_text()
        assert "numpy" in libraries.read_text()
    assert len(found.predict(WHITE)[0]) == 2
    assert not (tmp_path / "imported").exists()


def test_a_child_ends_with_its_detector(files: dict[str, Path]) -> None:
    found = rcnn.load(files["onnx"])
    other = found.with_settings(["predict.graph_seconds=7", "predict.graph_memory=900"])
    assert isinstance(other.runtime, GraphRuntime)
    assert other.runtime.limits == Limits(7, 900)
    assert child(other) is child(found)
    pid = pid_of(found)
    del found
    gc.collect()
    assert len(other.predict(WHITE)[0]) == 2
    del other
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_a_file_cannot_choose_its_limits(tmp_path: Path) -> None:
    one = graphs.detector("predict.graph_seconds=90000", "predict.graph_memory=900000")
    found = rcnn.load(graphs.write_onnx(tmp_path / "a.onnx", one))
    assert isinstance(found.runtime, GraphRuntime)
    assert found.runtime.limits == Limits.of(Predict()) == Limits.of(found.settings.predict)


def test_threads_share_a_child(files: dict[str, Path]) -> None:
    found = rcnn.load(files["onnx"])
    grey = [np.full((60, 80, 3), 12 * number, dtype=np.uint8) for number in range(20)]
    expected = [found.predict(picture, score=0)[0].scores.tolist() for picture in grey]
    wrong: list[int] = []

    def predict(numbers: range) -> None:
        for number in numbers:
            if found.predict(grey[number], score=0)[0].scores.tolist() != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=predict, args=(numbers,)) for numbers in (range(20), range(19, -1, -1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(set(map(tuple, expected))) > 10


def test_forked_processes_have_children_of_their_own(files: dict[str, Path], tmp_path: Path) -> None:
    """As those of a server that loads the detector once. A script forks, since this process has threads."""
    text = """
import os
first = found.runtime.running.pid
process = os.fork()
for turn in range(3):
    assert len(found.predict(white)[0]) == 2
assert (found.runtime.running.pid == first) == (process > 0)
if process:
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert len(found.predict(white)[0]) == 2
    print("done")
"""
    (tmp_path / "script.py").write_text(LOAD + text)
    words = [sys.executable, "script.py", str(files["onnx"])]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.splitlines()[1:]) == (0, ["done"]), ended.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_child_is_reported_and_the_next_call_starts_another(
    files: dict[str, Path], suffix: str, tmp_path: Path
) -> None:
    for part in files_of(files[suffix]):
        shutil.copy(part, tmp_path)
    found = rcnn.load(tmp_path / f"a.{suffix}")
    first = pid_of(found)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(WeightsError, match=rf"a\.{suffix}: its graph ended its process \(SIGKILL\), perhaps for lack"):
        found.predict(WHITE)
    assert child(found).pid is None
    assert len(found.predict(WHITE)[0]) == 2
    assert pid_of(found) != first
    os.kill(pid_of(found), signal.SIGKILL)
    with pytest.raises(WeightsError, match="ended its process"):
        found.predict(WHITE)
    with (tmp_path / f"a.{suffix}").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(WeightsError, match=rf"a\.{suffix} has changed since it was loaded; load it again"):
        found.predict(WHITE)


def test_a_child_ends_if_its_parent_is_killed(files: dict[str, Path], tmp_path: Path) -> None:
    """Also while its graph runs."""
    busy = attacks.write(attacks.products, 0, tmp_path / "busy.onnx")
    for path, text in ((files["onnx"], "sys.stdin.read()"), (busy, "found.predict(white)")):
        (tmp_path / "script.py").write_text(LOAD + text)
        words = [sys.executable, "script.py", str(path)]
        with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            running = psutil.Process(int(parent.stdout.readline()))
            if path == busy:
                begun = running.cpu_times().user
                wait_for(lambda running=running, begun=begun: running.cpu_times().user > begun + 0.3)
            assert running.is_running()
            parent.kill()
        wait_for(lambda running=running: not running.is_running() or running.status() == psutil.STATUS_ZOMBIE)


def test_ctrl_c_ends_a_running_graph(tmp_path: Path) -> None:
    path = attacks.write(attacks.products, 0, tmp_path / "busy.onnx")
    (tmp_path / "script.py").write_text(
        f"{LOAD}\ntry:\n    found.predict(white)\nexcept KeyboardInterrupt:\n    print('stopped')"
    )
    words = [sys.executable, "script.py", str(path)]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        running = psutil.Process(int(parent.stdout.readline()))
        begun = running.cpu_times().user
        wait_for(lambda: running.cpu_times().user > begun + 0.3)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.read() == "stopped\n"
    assert parent.returncode == 0
    assert not running.is_running()


def test_an_unguarded_script_runs_once(files: dict[str, Path], tmp_path: Path) -> None:
    text = "print('run', len(found.predict(white)[0]))\nwith open('runs', 'a') as file:\n    file.write('once ')"
    (tmp_path / "script.py").write_text(LOAD + text)
    words = [sys.executable, "-W", "error", "script.py", str(files["onnx"])]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[1:] == ["run 2"]
    assert (tmp_path / "runs").read_text() == "once "
    assert ended.stderr == ""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_session_alone_makes_no_requests(files: dict[str, Path], suffix: str) -> None:
    """What a child imports: neither torch nor the telemetry of openvino."""
    program = f"""{graphs.NOTE_REQUESTS}
import rcnn.runtime.child, numpy
from rcnn.runtime.sessions import SESSIONS
run = SESSIONS[sys.argv[1]](sys.argv[2], ["finite"], 1, "float32")
run(numpy.zeros((1, 3, 64, 64), numpy.uint8), numpy.full((1, 2), 64, numpy.float32))
assert not {{"torch", "PIL", "pydantic", "openvino_telemetry.main"}} & set(sys.modules)
"""
    name = runtime_of(files[suffix]).session
    words = [sys.executable, "-c", program, name, str(files[suffix])]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stdout + ended.stderr


def test_without_a_child_the_graph_is_checked(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows and in frozen programs."""
    monkeypatch.setattr(graph, "SUPPORTED", False)
    found = rcnn.load(files["onnx"])
    assert not isinstance(found.runtime.running, GraphProcess)  # type: ignore[attr-defined]
    assert len(found.predict(WHITE)[0]) == 2
    attacks.write(attacks.loop, 0, tmp_path / "a.onnx")
    with pytest.raises(WeightsError, match="nodes of the kind `Loop"):
        rcnn.load(tmp_path / "a.onnx")


def test_a_child_without_the_package_names_it(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        WeightsError, match=r"the package onnxruntime, .*\(broken\); get it by: pip install 'rcnn\[onnx\]'"
    ):
        rcnn.load(files["onnx"])
    assert packages.onnxruntime() is not None
