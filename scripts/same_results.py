"""Compare what two versions of the program compute, to the last bit: weights, metrics, predictions and proposals.

    python scripts/same_results.py A B      # revisions of git; `.` is the working tree as it is

Both train one epoch of every scheme and of several presets on 24 made-up images, and show the packaged detector other
images, each version in a process of one thread. What differs is listed, and the exit status is 1. Some two minutes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
COMMON = ("preprocess.short=192", "preprocess.long=192", "train.epochs=1", "train.batch=4", "train.device=cpu")
FEW = ("rpn.pre_train=300", "rpn.post_train=100", "rpn.pre_test=300", "rpn.post_test=50")
TRAININGS: dict[str, tuple[str, ...]] = {
    "joint": ("mobilenet-fpn", "train.init=blood-cells"),
    "joint-full": ("mobilenet-fpn", "train.init=blood-cells", "train.scheme=joint-full", "train.target_gradient=true"),
    "alternating": ("tiny-fpn", "train.scheme=alternating"),
    "fast-rcnn": ("tiny-fpn", "train.scheme=fast-rcnn", "train.proposals={proposals}"),
    "mobilenet-one-stage": ("mobilenet-one-stage", "train.init=none"),
    "paper-zf": ("paper-zf", *FEW, "train.init=none", "roi.hidden=128"),
    "resnet18-fpn": ("resnet18-fpn", *FEW, "train.init=none", "roi.hidden=128"),
    "choices": (
        *("tiny-fpn", "rpn.negatives=texture", "roi.sampler=ohem", "roi.pool=warp", "rpn.box_loss=giou"),
        *("train.accumulate=2", "augment.transpose=0.5", "augment.rescale=0.5"),
    ),
}
"""Name -> preset and changes of its settings; the last one is of settings that no preset has."""
TIMES = {"seconds", "images_per_second", "memory_gb"}
"""Columns of metrics.jsonl that differ from run to run."""


def main() -> int:
    """Compute with both versions side by side, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs=2, metavar="REVISION", help="of git, or . for the working tree")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="these trainings alone")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees = [_tree(revision, folder / f"tree-{i}") for i, revision in enumerate(options.revisions)]
        outs = [folder / f"out-{i}" for i in range(2)]
        try:
            _run(trees[0], "make_data", folder)
            pairs = zip(trees, outs, strict=True)
            running = [_start(tree, "compute", folder, out, options.only) for tree, out in pairs]
            codes = [process.wait() for process in running]
            if any(codes):
                return 2
            differences = list(compare(*outs))
        finally:
            for tree in trees:
                if tree != ROOT:
                    subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    for line in differences:
        print(line)
    print(f"{len(differences)} differences" if differences else "equal to the last bit")
    return 1 if differences else 0


def _tree(revision: str, path: Path) -> Path:
    """The source of a revision, in a work tree of its own."""
    if revision == ".":
        return ROOT
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", path, revision], check=True)
    return path


def _start(tree: Path, task: str, *arguments: Any) -> "subprocess.Popen[bytes]":
    """Call a function of this file with the package of a tree, in another process."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "RCNN_OFFLINE": "1"}
    command = [sys.executable, __file__, f"--{task}", *(json.dumps(argument, default=str) for argument in arguments)]
    return subprocess.Popen(command, env=environment, cwd=tree)


def _run(tree: Path, task: str, *arguments: Any) -> None:
    if code := _start(tree, task, *arguments).wait():
        raise SystemExit(code)


def make_data(folder: str) -> None:
    """24 images to train on, 6 to validate on, and a file of proposals for all of them: 40 boxes by chance each."""
    from rcnn.data.synthetic import synthesise

    data = Path(folder) / "shapes"
    for split, images, seed in (("train", 24, 1), ("val", 6, 2)):
        synthesise(data, images, split=split, size=(192, 192), seed=seed)
    generator = torch.Generator().manual_seed(0)
    proposals = {}
    for image in sorted(data.rglob("*.jpg")):
        corners = torch.rand(40, 2, generator=generator) * 130
        sides = 10 + torch.rand(40, 2, generator=generator) * 50
        proposals[image.name] = torch.cat((corners, corners + sides), dim=1).tolist()
    (Path(folder) / "proposals.json").write_text(json.dumps(proposals), encoding="utf-8")


def compute(folder: str, out: str, names: list[str]) -> None:
    """All trainings, then predictions and proposals of the packaged detector, as files below `out`."""
    import rcnn

    torch.set_num_threads(1)
    data, proposals = Path(folder) / "shapes", Path(folder) / "proposals.json"
    for name in names:
        preset, *changes = (text.format(proposals=proposals) for text in TRAININGS[name])
        rcnn.train(data, model=preset, overrides=[*COMMON, *changes], name=name, runs=out, quiet=True)
        print(f"{out}: {name}", flush=True)
    detector = rcnn.load("blood-cells", device="cpu")
    images = sorted((data / "images" / "val").iterdir())
    found = {
        "predictions": detector.predict(images, score=0.0, batch=2),
        "proposals": detector.propose(images, top=1000, batch=2),
    }
    for name, results in found.items():
        tensors = {
            f"{field}.{i}": torch.from_numpy(getattr(result, field).copy())
            for i, result in enumerate(results)
            for field in ("boxes", "scores", "labels")
        }
        safetensors.torch.save_file(tensors, Path(out) / f"{name}.safetensors")


def compare(first: Path, second: Path) -> Iterator[str]:
    """A line for everything that is not the same to the last bit in two folders that `compute` made."""
    files = [{str(path.relative_to(out)): path for path in _results(out)} for out in (first, second)]
    yield from (f"{name}: only in one of the two" for name in sorted(files[0].keys() ^ files[1].keys()))
    for name in sorted(files[0].keys() & files[1].keys()):
        pair = [_contents(found[name]) for found in files]
        yield from (f"{name}: {key}: only in one of the two" for key in sorted(pair[0].keys() ^ pair[1].keys()))
        for key in sorted(pair[0].keys() & pair[1].keys()):
            if difference := _difference(pair[0][key], pair[1][key]):
                yield f"{name}: {key}: {difference}"


def _results(out: Path) -> Iterator[Path]:
    """Files to compare: weights and proposals, of all stages, and metrics; of checkpoints their form may change."""
    for pattern in ("*.safetensors", "metrics.jsonl"):
        yield from (path for path in out.rglob(pattern) if path.parent.name != "checkpoints")


def _contents(path: Path) -> dict[str, Any]:
    """Name -> value: tensors and the threshold of a file of weights, or the numbers of each row of metrics."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {f"{i}.{key}": value for i, row in enumerate(rows) for key, value in row.items() if key not in TIMES}
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    entry = json.loads(header.get("rcnn", "{}"))
    numbers = {key: entry[key] for key in ("threshold", "summary") if key in entry}
    return {**safetensors.torch.load(data), **numbers}


def _difference(a: Any, b: Any) -> str | None:
    """In words; None where both are the same, bit for bit."""
    if not isinstance(a, Tensor):
        return None if repr(a) == repr(b) else f"{a} and {b}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
    bits = [tensor.contiguous().view(-1).view(torch.uint8).reshape(max(1, tensor.numel()), -1) for tensor in (a, b)]
    wrong = int((bits[0] != bits[1]).any(dim=1).sum())
    return f"{wrong} of {a.numel()} differ, by {(a.double() - b.double()).abs().max():.3g} at most" if wrong else None


if __name__ == "__main__":
    tasks = {"--make_data": make_data, "--compute": compute}
    if len(sys.argv) > 1 and sys.argv[1] in tasks:
        tasks[sys.argv[1]](*(json.loads(argument) for argument in sys.argv[2:]))
    else:
        sys.exit(main())
