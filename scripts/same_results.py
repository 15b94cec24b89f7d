"""Compare what two versions of the program compute, to the last bit.

    python scripts/same_results.py OLD NEW      # revisions of git; `.` is the working tree as it is

The old version writes the files that both versions read: images, detectors, an interrupted run, exported files. Then
both train, run commands and write files, each in a process of one thread, and the files are compared. If there are
differences, they are listed, and the exit status is 1. `--only` selects parts: keys of `TRAININGS` and `PARTS`.

Import paths may differ between the versions. Only the command line, `rcnn.__all__`, `rcnn.presets.PRESETS` and
`rcnn.data.synthetic.synthesise` are used. Wording may differ too: only the numbers in texts are compared.
"""

import argparse
import csv
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from hashlib import blake2b
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parents[1]
SIZE = ("preprocess.short=192", "preprocess.long=192")
COMMON = (*SIZE, "train.epochs=1", "train.batch=4", "train.device=cpu")
FEW = ("rpn.pre_train=300", "rpn.post_train=100", "rpn.pre_test=300", "rpn.post_test=50")
SMALL = (
    *("preprocess.short=96", "preprocess.long=128", "train.batch=2", "train.init=none", "train.lr=0.0001"),
    *("rpn.pre_train=60", "rpn.post_train=20", "rpn.pre_test=100", "rpn.post_test=16", "rpn.min_size=1"),
    *("roi.samples=8", "roi.hidden=64", "roi.score=0"),
)
"""Settings of a training on two small images that ends after one step."""
PAPER = "anchors.sizes=[[16,24,32]]"
"""Anchors that fit into small images, for the presets of the paper, which drop anchors that do not fit."""
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
"""Name -> preset and changes of its settings; the last one has settings of no preset."""
DETECTORS: dict[str, tuple[str, ...]] = {
    "resnet": ("resnet18-fpn", *SMALL),
    "max-pool": ("paper-zf", *SMALL, PAPER),
    "warp": ("tiny-fpn", *SMALL, "roi.pool=warp"),
    "one-stage": ("paper-zf-one-stage", *SMALL, PAPER),
}
"""Name -> preset and changes of detectors that the old version makes, besides `shapes`, which is trained."""
TORCHVISION = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_320_fpn")
DETECTRON2 = {"fpn": "faster_rcnn_R_50_FPN_1x", "c4": "faster_rcnn_R_50_C4_1x", "rpn": "rpn_R_50_FPN_1x"}
"""Name of a pickle in the tests -> architecture."""
HALF = {"joint": 8, "alternating": 20}
"""Scheme -> step after which its training of 6 steps per epoch, 2 epochs per stage, is interrupted."""
LINES = 5
"""Differences listed per file."""
UNSTABLE = {
    *("seconds", "images_per_second", "memory_gb"),  # differ from run to run
    "bytes",  # the size of an exported file, which holds paths and lines of sources
    *("sha256", "rcnn_weights"),  # digests in the order of a file; the tensors themselves are compared
}
"""Names of values that are not compared."""
UNREAD = {
    "environment.json",  # versions and the command
    "log.txt",  # speeds and times; its scores are in metrics.jsonl
}
"""Names of files that are not compared. Nor are those without a reader: pages, and settings, which weights have too."""
PICTURES = (".png", ".jpg", ".webp")
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")


def main() -> int:
    """Compute with both versions side by side, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs=2, metavar="REVISION", help="of git, or . for the working tree")
    names = [*TRAININGS, *PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these trainings and parts alone")
    parser.add_argument(
        "--no-pictures", dest="pictures", action="store_false", help="leave out pictures, which may show new wording"
    )
    options = parser.parse_args()
    parts = set(options.only) & set(PARTS)
    makers = {"make_detectors": parts - {"presets", "help"}, "make_old_files": parts & {"old"}}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees = [_tree(revision, folder / f"tree-{i}") for i, revision in enumerate(options.revisions)]
        outs = [folder / side for side in ("old", "new")]
        try:
            _wait([_start(trees[0], "make_data", folder)])
            _wait([_start(trees[0], task, folder) for task, readers in makers.items() if readers])
            pairs = zip(trees, outs, strict=True)
            _wait([_start(tree, "compute", folder, out, options.only) for tree, out in pairs])
            differences = list(compare(*outs, pictures=options.pictures))
            files = len(list(_results(outs[0], options.pictures)))
        finally:
            for tree in trees:
                if tree != ROOT:
                    subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    for line in differences:
        print(line)
    print(f"{len(differences)} differences" if differences else f"{files} files are equal to the last bit")
    return 1 if differences else 0


def _tree(revision: str, path: Path) -> Path:
    """Provide the source of a revision in a separate work tree."""
    if revision == ".":
        return ROOT
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", path, revision], check=True)
    return path


def _start(tree: Path, task: str, *arguments: Any) -> "subprocess.Popen[bytes]":
    """Call a function of this file with the package of a tree, in another process."""
    wide = {"COLUMNS": "1000", "TERM": "dumb"}  # an option's help is one line
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "RCNN_OFFLINE": "1", **wide}
    command = [sys.executable, __file__, f"--{task}", *(json.dumps(argument, default=str) for argument in arguments)]
    return subprocess.Popen(command, env=environment, cwd=tree)


def _wait(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """Wait for all processes, and exit with 2 if one of them failed."""
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(2)


# Files that the old version writes for both


def make_data(folder: str) -> None:
    """Write 24 images to train on and 6 to validate on, 2 and 2 small ones, and 40 random proposals for each image.

    `blood-cells` holds the same images as `shapes` under the class names of the packaged detector. The presets that are
    compared are those of the old version, since the new one may have more.
    """
    from rcnn.data.synthetic import synthesise
    from rcnn.presets import PRESETS

    presets = [*PRESETS, *(["timm/resnet10t"] if find_spec("timm") else [])]
    (Path(folder) / "presets.json").write_text(json.dumps(presets), encoding="utf-8")
    data = Path(folder) / "shapes"
    for split, images, seed in (("train", 24, 1), ("val", 6, 2)):
        synthesise(data, images, split=split, size=(192, 192), seed=seed)
        synthesise(Path(folder) / "small", 2, split=split, size=(96, 128), seed=seed)
    shutil.copytree(data, Path(folder) / "blood-cells")
    for path in (Path(folder) / "blood-cells").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        for name, other in (("disc", "RBC"), ("square", "Platelets"), ("triangle", "WBC")):
            text = text.replace(f'"{name}"', f'"{other}"')
        path.write_text(text, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    proposals = {}
    for image in sorted(data.rglob("*.jpg")):
        corners = torch.rand(40, 2, generator=generator) * 130
        sides = 10 + torch.rand(40, 2, generator=generator) * 50
        proposals[image.name] = torch.cat((corners, corners + sides), dim=1).tolist()
    (Path(folder) / "proposals.json").write_text(json.dumps(proposals), encoding="utf-8")


def make_detectors(folder: str) -> None:
    """Train the detectors that both versions read, and save checkpoints of torchvision with random weights."""
    from torchvision.models import detection

    data = Path(folder)
    _train(data / "shapes", "shapes", "tiny-fpn", *COMMON, "train.epochs=12", runs=data / "models")
    for name, (preset, *changes) in DETECTORS.items():
        _train(data / "small", name, preset, *changes, "train.epochs=1", runs=data / "models")
    for name in TORCHVISION:
        torch.manual_seed(0)
        model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=6)
        torch.save(model.state_dict(), data / f"{name}.pth")


def make_old_files(folder: str) -> None:
    """Write files that the new version has to read besides weights: interrupted runs and exported files."""
    import rcnn

    class Stop:
        """A recorder that presses Ctrl-C after a number of steps, counted over all stages."""

        def __init__(self, steps: int) -> None:
            self.steps = steps

        def step(self, numbers: object) -> None:
            self.steps -= 1
            if not self.steps:
                signal.raise_signal(signal.SIGINT)

        def start(self, value: object) -> None: ...

        epoch = end = start

    data = Path(folder)
    for scheme, steps in HALF.items():
        changes = (*COMMON, "train.epochs=2", f"train.scheme={scheme}")
        try:
            _train(data / "shapes", scheme, "tiny-fpn", *changes, runs=data / "half", recorders=[Stop(steps)])
        except rcnn.Interrupted:
            continue
        raise AssertionError(f"the training of {scheme} was not interrupted")
    for name, suffix, preset, *changes in (
        ("two-stages", "onnx", "tiny-fpn", *SMALL),
        ("one-stage", "xml", "paper-zf-one-stage", *SMALL, PAPER),
    ):
        run = _train(data / "small", name, preset, *changes, "train.epochs=1", runs=data / "to-export")
        (data / "exported").mkdir(exist_ok=True)
        os.chdir(data / "exported")
        command(f"{name}-export", "export", run.best, "--out", f"{name}.{suffix}")


# Computations of both versions


def compute(folder: str, out: str, names: list[str]) -> None:
    """Run trainings and parts, each of which writes files below `out/NAME`."""
    torch.set_num_threads(1)
    data, proposals = Path(folder), Path(folder) / "proposals.json"
    for name in names:
        place, start = Path(out) / name, time.monotonic()
        place.mkdir(parents=True)
        os.chdir(place)
        if name in TRAININGS:
            preset, *changes = (text.format(proposals=proposals) for text in TRAININGS[name])
            _train(data / "shapes", "run", preset, *COMMON, *changes, runs=place)
        else:
            PARTS[name](data)
        files = len(list(_results(place)))
        print(f"{Path(out).name}: {name}, {files} files in {time.monotonic() - start:.0f} s", flush=True)


def _train(data: Path, name: str, preset: str, *changes: str, **options: Any) -> Any:
    """Train on the CPU, and print nothing."""
    import rcnn

    overrides = [*changes, "train.device=cpu"]
    return rcnn.train(data, model=preset, overrides=overrides, name=name, quiet=True, **options)


def command(name: str, *words: object) -> str:
    """Run `rcnn WORDS`, write what it prints to NAME.json (with `--json`) and NAME.txt, and return its stdout."""
    output, errors, code = StringIO(), StringIO(), None
    torch.manual_seed(0)
    sys.argv = ["rcnn", *map(str, words)]
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            runpy.run_module("rcnn", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    if code:
        raise SystemExit(f"rcnn {' '.join(map(str, words))}: exit code {code}\n{output.getvalue()}{errors.getvalue()}")
    text = output.getvalue()
    if "--json" in words:
        Path(f"{name}.json").write_text(text, encoding="utf-8")
    Path(f"{name}.txt").write_text(errors.getvalue() + ("" if "--json" in words else text), encoding="utf-8")
    return text


def _results_of(model: Path | str, name: str, images: Path) -> None:
    """Write a detector's predictions and proposals to NAME-predictions.safetensors and NAME-proposals.safetensors."""
    import rcnn

    detector, paths = rcnn.load(model, device="cpu"), sorted(images.iterdir())
    predictions, proposals = detector.predict(paths, score=0.0, batch=2), detector.propose(paths, batch=2)
    for kind, results in (("predictions", predictions), ("proposals", proposals)):
        tensors = {
            f"{field}.{i}": torch.from_numpy(getattr(result, field).copy())
            for i, result in enumerate(results)
            for field in ("boxes", "scores", "labels")
        }
        safetensors.torch.save_file(tensors, f"{name}-{kind}.safetensors")


def part_predict(data: Path) -> None:
    """Predict and propose with the packaged detector, in Python and through the commands."""
    images, formats = data / "shapes" / "images" / "val", "--format=drawn,json,coco"
    _results_of("blood-cells", "blood-cells", images)
    command("predict", "predict", "blood-cells", images, "--score=0.05", formats, "--out=p", "--json")
    command("propose", "propose", data / "models" / "shapes-1", images, "--out=q", "--json")


def part_val(data: Path) -> None:
    """Score the packaged detector and a trained one, the latter also with external proposals."""
    shapes = ("val", data / "models" / "shapes-1", data / "shapes", "--json")
    command("blood-cells", "val", "blood-cells", data / "blood-cells", "--json", "--out=blood-cells")
    command("shapes", *shapes, "--out=shapes")
    command("proposals", *shapes, "--out=proposals", "--proposals", data / "proposals.json")


def part_why(data: Path) -> None:
    """Compute the losses of the packaged detector and of a trained one."""
    command("blood-cells", "why", "blood-cells", data / "blood-cells", "--score=0.05", "--out=blood-cells", "--json")
    command("shapes", "why", data / "models" / "shapes-1", data / "shapes", "--out=shapes", "--json")


def part_anchors(data: Path) -> None:
    """Study the anchors of a preset and of a file, and fit others."""
    for name, model in (("preset", "mobilenet-fpn"), ("file", data / "models/shapes-1/weights/best.safetensors")):
        command(name, "anchors", data / "shapes", "--model", model, "--sizes=2", f"--out={name}", "--json")


def part_explain(data: Path) -> None:
    """Explain the detections of a detector with a pyramid, and of one without."""
    for name, images in (("shapes", "shapes"), ("max-pool", "small")):
        image = min((data / images / "images" / "val").iterdir())
        model = data / "models" / f"{name}-1"
        command(name, "explain", model, image, "--truth", data / images, "--html", f"--out={name}", "--json")


def part_import(data: Path) -> None:
    """Import checkpoints of torchvision, detectron2 and Caffe, and export them again where that is possible."""
    names = ("--names", "a,b,c,d,e", "--json")
    for arch in TORCHVISION:
        command(arch, "import", data / f"{arch}.pth", "--arch", arch, "--out", f"{arch}.safetensors", *names)
        command(f"{arch}-back", "export", f"{arch}.safetensors", "--out", f"{arch}-back.pth", "--json")
    for name, arch in DETECTRON2.items():
        file = next(path for path in sorted((ROOT / "tests").rglob(f"{name}.pkl")))
        command(name, "import", file, "--arch", arch, "--out", f"{name}.safetensors", *names)
    command("caffe", "export", data / "models" / "max-pool-1", "--out=zf.npz", "--json")
    command("zf", "import", "zf.npz", "--arch=paper-zf", "--names=a,b,c", "--out=zf.safetensors", "--json")
    _results_of(f"{TORCHVISION[-1]}.safetensors", "torchvision", data / "small" / "images" / "val")
    _results_of("c4.safetensors", "c4", data / "small" / "images" / "val")


def part_export(data: Path) -> None:
    """Export graphs: the packaged detector, a ResNet with a pyramid, one with RoI max pooling, one with RoI warping."""
    models = data / "models"
    command("blood-cells", "export", "blood-cells", "--out=blood-cells.onnx", "--json")
    command("resnet", "export", models / "resnet-1", "--out=resnet.onnx", "--json")
    command("max-pool", "export", models / "max-pool-1", "--out=max-pool.onnx", "--json")
    command("warp", "export", models / "warp-1", "--out=warp.xml", "--json")
    for path in Path().glob("*.txt"):
        path.unlink()  # prints the size of the file


def part_presets(data: Path) -> None:
    """Train every preset of the old version for one step from random weights.

    Results on two images and digests of the weights are kept.
    """
    for preset in json.loads((data / "presets.json").read_text(encoding="utf-8")):
        name, changes = preset.replace("/", "-"), [PAPER] if preset.startswith("paper") else []
        run = _train(data / "small", name, preset, *SMALL, *changes, "train.epochs=1", runs=".")
        _results_of(run.best, name, data / "small" / "images" / "val")
        weights = {key: _text(tensor) for key, tensor in safetensors.torch.load_file(run.best).items()}
        Path(f"{name}.json").write_text(json.dumps({"weights": weights, "rows": run.rows}), encoding="utf-8")
        shutil.rmtree(run.folder)  # up to half a gigabyte


def part_old(data: Path) -> None:
    """Use files of the old version: weights, exported files, and interrupted runs, which are continued to the end."""
    import rcnn

    images = data / "small" / "images" / "val"
    for path in sorted((data / "models").iterdir()):
        _results_of(path, path.name, images)
        command(f"inspect-{path.name}", "inspect", path / "weights" / "best.safetensors", "--json")
    for path in sorted((*data.glob("exported/*.onnx"), *data.glob("exported/*.xml"))):
        _results_of(path, path.stem, images)
        command(f"inspect-{path.stem}", "inspect", path, "--json")
    for path in sorted((data / "half").iterdir()):
        shutil.copytree(path, path.name)
        rcnn.train(resume=path.name, quiet=True)


def part_help(_: Path) -> None:
    """Write the arguments, options, types and defaults of every command, without the text of the help."""
    commands: dict[str, list[list[str]]] = {}
    left = [""]
    for words in left:
        panels = re.split(
            r"^\s*\u256d\u2500 (\w+) \u2500+\u256e$", command("help", *words.split(), "--help"), flags=re.MULTILINE
        )
        commands[words or "rcnn"] = rows = []
        for title, panel in zip(panels[1::2], panels[2::2], strict=True):
            for line in re.findall(r"\u2502 (.*) \u2502", panel):
                *head, text = re.split(r"\s{2,}", line.strip())
                rows.append([*head, *re.findall(r"\[(?:default: .*?|required)\](?=\s|$)", text)])
            if title == "Commands":
                left.extend(f"{words} {row[0]}".strip() for row in rows if not row[0].startswith("-"))
    Path("help.txt").unlink()
    Path("help.json").write_text(json.dumps(commands), encoding="utf-8")


PARTS: dict[str, Callable[[Path], None]] = {
    "predict": part_predict,
    "val": part_val,
    "why": part_why,
    "anchors": part_anchors,
    "explain": part_explain,
    "import": part_import,
    "export": part_export,
    "presets": part_presets,
    "old": part_old,
    "help": part_help,
}
"""Name -> function that writes files into the current folder, called with the folder of the old version's files."""


# How files are compared


def compare(first: Path, second: Path, *, pictures: bool = True) -> Iterator[str]:
    """Yield a line for each difference, up to `LINES` per file, between two folders that `compute` made."""
    files = [{str(path.relative_to(out)): path for path in _results(out, pictures)} for out in (first, second)]
    yield from (f"{name}: only in one of the two" for name in sorted(files[0].keys() ^ files[1].keys()))
    for name in sorted(files[0].keys() & files[1].keys()):
        lines = list(_differences(*(READERS[paths[name].suffix](paths[name]) for paths in files)))
        yield from (f"{name}: {line}" for line in lines[:LINES])
        if len(lines) > LINES:
            yield f"{name}: and {len(lines) - LINES:,} more"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each value that differs. Settings that only the new version has are no difference."""
    for key in sorted(old.keys() ^ new.keys()):
        if key in old or not re.match(r"(.*\.)?settings\.[a-z]", key):
            yield f"{key}: only in one of the two"
    for key in sorted(old.keys() & new.keys()):
        if difference := _difference(old[key], new[key]):
            yield f"{key}: {difference}"


def _results(out: Path, pictures: bool = True) -> Iterator[Path]:
    """Yield the files to compare, without checkpoints, whose format may change: they are resumed instead."""
    suffixes = [suffix for suffix in READERS if pictures or suffix not in PICTURES]
    for path in out.rglob("*"):
        if path.suffix in suffixes and path.name not in UNREAD and path.parent.name != "checkpoints":
            yield path


def _difference(a: Any, b: Any) -> str | None:
    """Return a description, or None if both are equal bit for bit."""
    if not isinstance(a, Tensor):
        return None if repr(a) == repr(b) else f"{a} and {b}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
    bits = [tensor.contiguous().view(-1).view(torch.uint8).reshape(max(1, tensor.numel()), -1) for tensor in (a, b)]
    wrong = int((bits[0] != bits[1]).any(dim=1).sum())
    return f"{wrong} of {a.numel()} differ, by {(a.double() - b.double()).abs().max():.3g} at most" if wrong else None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested JSON by their dotted names; only the numbers of sentences, which may be reworded."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in UNSTABLE:
                yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, _numbers(value) if isinstance(value, str) and len(value.split()) > 4 else value


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in NUMBER.findall(text)]


def _read_json(path: Path) -> dict[str, Any]:
    return dict(_flat(json.loads(path.read_text(encoding="utf-8"))))


def _read_rows(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = map(json.loads, file) if path.suffix == ".jsonl" else csv.DictReader(file)
        return dict(_flat(list(rows)))


def _read_text(path: Path) -> dict[str, Any]:
    return {f"number {i}": number for i, number in enumerate(_numbers(path.read_text(encoding="utf-8")))}


def _read_page(path: Path) -> dict[str, Any]:
    """Return the numbers that a page contains for its scripts, sorted, since names and order may change."""
    scripts = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
    leaves = [leaf for script in scripts for _, leaf in _flat(json.loads(script))]
    numbers = sorted(leaf for leaf in leaves if isinstance(leaf, int | float))
    return {"numbers": torch.tensor(numbers, dtype=torch.float64)}


def _read_picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return {"pixels": torch.from_numpy(np.array(image.convert("RGB")))}


def _read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors, and the metadata of the detector: settings, class names, threshold."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    return {**safetensors.torch.load(data), **dict(_flat(json.loads(header.get("rcnn", "{}"))))}


def _read_arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Node(NamedTuple):
    """A node of a graph: its operation, and the names of its inputs and outputs."""

    operator: str
    attributes: str
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def _graph(nodes: Iterable[Node], outputs: dict[Any, str], constants: dict[Any, str]) -> dict[str, Any]:
    """Describe a graph with inputs before their users, regardless of the names of its inner values.

    Returns:
        For each operator the number of its nodes and a digest of their attributes and constants, and for each output a
        digest of everything that leads to it.
    """
    values, kinds = dict(constants), defaultdict(list)
    for node in nodes:
        own = (node.operator, node.attributes)
        kinds[node.operator].append(_digest(*own, *(constants.get(name, "") for name in node.inputs)))
        whole = _digest(*own, *(values[name] if name != "" else "" for name in node.inputs))
        values |= {name: _digest(whole, i) for i, name in enumerate(node.outputs)}
    found = {f"nodes.{kind}": f"{len(each)} nodes {_digest(*sorted(each))}" for kind, each in kinds.items()}
    return found | {f"output.{title}": values[name] for name, title in outputs.items()}


def _read_onnx(path: Path) -> dict[str, Any]:
    import onnx

    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: _text(torch.tensor(onnx.numpy_helper.to_array(tensor))) for tensor in graph.initializer}
    inputs = [Node("Input", f"{value.name} {value.type}", (), (value.name,)) for value in graph.input]
    nodes = [
        Node(f"{node.domain}{node.op_type}", " ".join(sorted(map(str, node.attribute))), node.input, node.output)
        for node in graph.node
    ]
    entries = {entry.key: _entry(entry.value) for entry in model.metadata_props}
    opset = {f"opset.{each.domain}": each.version for each in model.opset_import}
    outputs = {value.name: f"{value.name} {value.type.tensor_type.elem_type}" for value in graph.output}
    return {**_graph([*inputs, *nodes], outputs, constants), **dict(_flat(entries)), **opset}


def _read_openvino(path: Path) -> dict[str, Any]:
    """Return the graph of an .xml file and the constants in the .bin file beside it."""
    root, binary = ElementTree.parse(path).getroot(), path.with_suffix(".bin").read_bytes()
    sources = {(edge.get("to-layer"), edge.get("to-port")): edge for edge in root.iter("edge")}
    nodes, outputs = [], {}
    for layer in root.iter("layer"):
        number, kind = layer.get("id"), str(layer.get("type"))
        data = layer.find("data")
        values = dict(data.attrib) if data is not None else {}
        if kind == "Const":
            start, size = int(values.pop("offset")), int(values["size"])
            values["bytes"] = _digest(binary[start : start + size])
        if kind == "Parameter":
            values["name"] = str(layer.get("name"))
        edges = [sources[number, port.get("id")] for port in layer.iterfind("input/port")]
        inputs = [(edge.get("from-layer"), edge.get("from-port")) for edge in edges]
        ports = [(number, port.get("id")) for port in layer.iterfind("output/port")]
        nodes.append(Node(kind, str(sorted(values.items())), inputs, ports))
        if kind == "Result":
            outputs[inputs[0]] = str(layer.get("output_names") or layer.get("name"))
    entries = {entry.tag: _entry(entry.get("value", "")) for entry in root.iterfind("rt_info/model_info/*")}
    return {**_graph(nodes, outputs, {}), **dict(_flat(entries))}


def _entry(text: str) -> Any:
    """Parse an entry of an exported file: JSON, or plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(tensor: Tensor) -> str:
    """Return type, shape and a digest of the bits."""
    return f"{tensor.dtype} {tuple(tensor.shape)} {_digest(tensor.contiguous().numpy().tobytes())}"


def _digest(*parts: object) -> str:
    summary = blake2b(digest_size=8)
    for part in parts:
        summary.update(part if isinstance(part, bytes) else repr(part).encode())
    return summary.hexdigest()


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".safetensors": _read_weights,
    ".json": _read_json,
    ".jsonl": _read_rows,
    ".csv": _read_rows,
    ".txt": _read_text,
    ".html": _read_page,
    ".pth": lambda path: torch.load(path, weights_only=True),
    ".npz": _read_arrays,
    ".onnx": _read_onnx,
    ".xml": _read_openvino,
    **dict.fromkeys(PICTURES, _read_picture),
}
"""Suffix -> function that returns the values of a file by name. Files of other suffixes are not compared."""


if __name__ == "__main__":
    tasks = {f"--{task.__name__}": task for task in (make_data, make_detectors, make_old_files, compute)}
    if len(sys.argv) > 1 and sys.argv[1] in tasks:
        tasks[sys.argv[1]](*(json.loads(argument) for argument in sys.argv[2:]))
    else:
        sys.exit(main())
