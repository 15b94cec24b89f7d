"""Run the tests that compare floats with the kernels of other CPUs: `python -m tests.portable [NAME ...]`.

CPUs round differently, because PyTorch, oneDNN and MKL choose their kernels by the instructions that a CPU has. Each
setting limits them to older instructions than this CPU may have, in all processes that a test starts. A setting that
changes nothing on this CPU is skipped and named. bfloat16 then counts as slow (`rcnn.runtime.precision.has_bf16`), so
that it is no default.
"""

import argparse
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse41": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "two-threads": {"OMP_NUM_THREADS": "2"},
}
"""Name, which is that of the newest instructions that are allowed -> environment variables."""
FLOATS = (
    *("backbones", "diagnose", "exporting", "interop", "metrics", "model", "ops", "paper", "runtime", "training"),
    *("weights", "test_open_model.py"),
    *("test_batch_invariance.py", "test_detector.py", "test_evaluate.py", "test_every_preset.py", "test_examples.py"),
    *("test_graphs.py", "test_no_sync.py", "test_paper_presets.py", "test_merge_views.py", "test_presets.py"),
    *("test_portable.py", "test_same_results.py", "test_teaching.py"),
)
"""Files and folders of tests that compare floats."""
NO_FLOATS = (
    *("ops/triton", "paper/test_execute.py", "runtime/test_process.py", "runtime/test_hostile_files.py"),
    *("training/test_elastic.py", "training/test_peers.py", "training/test_remote.py"),
)
"""Files in these folders that compare none, or only bits of one machine. Triton's kernels do not run on a CPU."""
EXEMPT = {
    "sse41": {
        "exporting/test_export.py::test_a_file_gives_the_detectors_boxes": "OpenVINO has no kernels for such CPUs",
        "exporting/test_translate.py::test_the_best_of_equal_scores_are_the_same": "OpenVINO, again",
        "test_graphs.py::test_inductor_compiles_the_operators": "Inductor's C++ does not compile without vectors",
    }
}
"""Setting -> tests that it breaks by itself, and why."""
TESTS = Path(__file__).parent
PROBE = """
import hashlib, json, torch
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
image, weight = torch.randn(2, 16, 40, 40, generator=draw), torch.randn(24, 16, 3, 3, generator=draw)
a, b = torch.randn(70, 300, generator=draw), torch.randn(300, 50, generator=draw)
found = {"ATen": image.flatten(1).softmax(1), "oneDNN": torch.conv2d(image, weight), "MKL": a @ b}
bits = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in found.items()}
from rcnn.runtime.precision import has_bf16
kernels = torch.backends.cpu.get_cpu_capability()
print(json.dumps({"bits": bits, "ATen": kernels, "bf16": has_bf16(torch.device("cpu"))}))
"""
"""Prints digests of what each library computes, the instructions that PyTorch uses, and whether bfloat16 is fast."""


def environment(setting: str | None = None) -> dict[str, str]:
    """The environment of a process under a setting; None: without any limit."""
    variables = {name for changes in SETTINGS.values() for name in changes}
    plain = {name: value for name, value in os.environ.items() if name not in variables}
    return plain | {"OMP_NUM_THREADS": "1"} | (SETTINGS[setting] if setting else {})


@cache
def onednn_instructions(setting: str | None = None) -> str:
    """What oneDNN says of the instructions that it uses, as in `Intel AVX2`; empty where it has none of its own."""
    code = "import torch; torch.conv2d(torch.zeros(2, 16, 40, 40), torch.zeros(24, 16, 3, 3))"
    variables = environment(setting) | {"ONEDNN_VERBOSE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    ).stdout
    lines = (line.rpartition("cpu,isa:")[2] for line in said.splitlines() if "cpu,isa:" in line)
    return next(lines, "")


def unchanged(setting: str) -> str | None:
    """Why a setting changes nothing on this CPU, or None if it does."""
    own = onednn_instructions()
    if setting == "two-threads":
        return None if (os.cpu_count() or 1) > 1 else "there is one core"
    if not own:
        return "oneDNN has no kernels for this kind of CPU"
    if onednn_instructions(setting) == own:
        return f"the CPU has nothing newer ({own})"
    return None


def command(setting: str, jobs: int, *, slow: bool = True) -> list[str]:
    """The command line that runs the tests under a setting, perhaps without the slow ones."""
    parallel = ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"]
    left_out = [f"--ignore={TESTS / name}" for name in NO_FLOATS]
    left_out += [f"--deselect=tests/{name}" for name in EXEMPT.get(setting, {})]
    left_out += [] if slow else ["-m", "not slow and not more"]
    return [sys.executable, "-m", "pytest", *parallel, *left_out, *(str(TESTS / name) for name in FLOATS)]


def main() -> None:
    """Run the tests under each setting in turn. The exit code is 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"settings: {', '.join(SETTINGS)}; without any, all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--not-slow", dest="slow", action="store_false", help="leave out slow tests")
    options = parser.parse_args()
    failed = []
    for name in options.names or SETTINGS:
        if reason := unchanged(name):
            print(f"{name}: skipped, since {reason}", flush=True)
            continue
        print(f"{name}: {' '.join(f'{key}={value}' for key, value in SETTINGS[name].items())}", flush=True)
        jobs = max(1, options.jobs // 2) if name == "two-threads" else options.jobs
        if subprocess.run(command(name, jobs, slow=options.slow), env=environment(name)).returncode:
            failed.append(name)
    sys.exit(f"failed under: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
