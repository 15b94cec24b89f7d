"""CPU time of predictions and of training steps, of this package and of other detectors, on one thread and in one run.

    python benchmarks/cpu_peers.py DATA [--env runs/peers] [--runs 5] [--pictures 8] [--images 32] [--only NAME ...]
        [--weights blood-cells] [--files FOLDER]

DATA is a data set in any format; --weights was trained on its classes. It needs the extras onnx and int8. The packages
of other detectors are installed with pip into an environment of their own, --env: ultralytics is under AGPL, and this
package does not depend on it. Nothing is downloaded besides these packages, so the other networks have random weights.
They find nothing or little, which saves them the time of suppression and of drawing results.

A prediction goes from the file of a picture to its boxes, one picture at a time. Every detector runs in a process of
its own; they predict all pictures in turn, and the median of the runs counts. A training is run for one epoch and for
three; the difference of the CPU times, per image and epoch, leaves out what happens once. Each trains as its package
does by default, at the size in the table, with batches of 4.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("ultralytics==8.4.190", "rfdetr[train]==1.11.2")
EPOCHS = (1, 3)
ENV = {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "RCNN_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


class Peer(NamedTuple):
    """A row of the table.

    Attributes:
        kind: key of `WORK`, the functions that predict and train.
        source: what is loaded: a weights file, or the name of a network.
        size: of the images in the network.
        precision: of the prediction.
        weights: `trained` or `random`.
        licence: of the package.
        trains: whether it has a training of its own; other rows are another form of a row that has.
    """

    kind: str
    source: str
    size: str
    precision: str = "float32"
    weights: str = "random"
    licence: str = "Apache 2.0"
    trains: bool = True


def peers(folder: Path, weights: str) -> dict[str, Peer]:
    """Return the rows by name; files that this package exports are in `folder`."""
    ours = {"kind": "rcnn", "size": "448 x 608", "weights": "trained"}
    yolo = {"kind": "yolo", "licence": "AGPL 3.0"}
    return {
        "rcnn, PyTorch": Peer(source=weights, **ours),
        "rcnn, onnxruntime": Peer(source=str(folder / "net.onnx"), trains=False, **ours),
        "rcnn, OpenVINO": Peer(source=str(folder / "net.xml"), trains=False, **ours),
        "rcnn, OpenVINO bf16": Peer(source=str(folder / "net.xml"), precision="bf16", trains=False, **ours),
        "rcnn, OpenVINO int8": Peer(source=str(folder / "int8.xml"), precision="int8", trains=False, **ours),
        "torchvision, MobileNetV3-FPN": Peer(
            "torchvision", "fasterrcnn_mobilenet_v3_large_fpn", "800 x 1067", licence="BSD 3"
        ),
        "YOLO11n, 448": Peer(source="yolo11n.yaml", size="448", **yolo),
        "YOLO11n": Peer(source="yolo11n.yaml", size="640", **yolo),
        "YOLO26n, 448": Peer(source="yolo26n.yaml", size="448", **yolo),
        "YOLO26n": Peer(source="yolo26n.yaml", size="640", **yolo),
        "RF-DETR nano": Peer("rfdetr", "RFDETRNano", "384 x 384"),
    }


# The functions from here to `WORK` run in the environment of a peer, and import what they need.


def rcnn_predictor(peer: Peer) -> Callable[[str], object]:
    import rcnn

    detector = rcnn.load(peer.source, device="cpu")
    if peer.precision == "bf16":
        detector = detector.with_settings(["predict.precision=bf16"])
    return detector.predict


def rcnn_train(peer: Peer, data: dict[str, str], epochs: int, out: str) -> None:
    import rcnn

    options = {"init": "none", "workers": 0, "device": "cpu", "quiet": True, "overrides": ("val.every=1000",)}
    rcnn.train(data["coco"], epochs=epochs, runs=out, **options)


def torchvision_network(peer: Peer, classes: int = 91) -> Any:
    import torch
    from torchvision.models import detection

    torch.manual_seed(0)
    return getattr(detection, peer.source)(weights=None, weights_backbone=None, num_classes=classes)


def torchvision_predictor(peer: Peer) -> Callable[[str], object]:
    import torch
    from torchvision.io import decode_image

    net = torchvision_network(peer).eval()

    def predict(file: str) -> object:
        with torch.inference_mode():
            return net([decode_image(file).float() / 255])

    return predict


def torchvision_train(peer: Peer, data: dict[str, str], epochs: int, out: str) -> None:
    """Train as its reference script does: SGD with momentum, and horizontal flips."""
    import torch
    from torchvision.io import decode_image

    document = json.loads(Path(data["coco"], "annotations/train.json").read_text())
    images = {image["id"]: image["file_name"] for image in document["images"]}
    by_image: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    for box in document["annotations"]:
        by_image[box["image_id"]].append(box)
    net = torchvision_network(peer, len(document["categories"]) + 1).train()
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.001, momentum=0.9)
    for _ in range(epochs):
        order = torch.randperm(len(images)).tolist()
        for start in range(0, len(order), 4):
            pictures, targets = [], []
            for number in (list(images)[place] for place in order[start : start + 4]):
                pictures.append(decode_image(str(Path(data["coco"], "images", images[number]))).float() / 255)
                rows = by_image[number]
                corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
                targets.append(
                    {
                        "boxes": torch.tensor(corners).reshape(-1, 4),
                        "labels": torch.tensor([row["category_id"] for row in rows], dtype=torch.int64),
                    }
                )
            optimizer.zero_grad()
            sum(net(pictures, targets).values()).backward()
            optimizer.step()


def yolo_predictor(peer: Peer) -> Callable[[str], object]:
    from ultralytics import YOLO

    net = YOLO(peer.source)
    return lambda file: net.predict(file, imgsz=int(peer.size), device="cpu", verbose=False)


def yolo_train(peer: Peer, data: dict[str, str], epochs: int, out: str) -> None:
    from ultralytics import YOLO

    quiet = {"val": False, "plots": False, "save": False, "verbose": False, "exist_ok": True}
    net, size = YOLO(peer.source), int(peer.size)
    net.train(
        data=data["yolo"], epochs=epochs, imgsz=size, batch=4, device="cpu", workers=0, amp=False, project=out, **quiet
    )


def rfdetr_predictor(peer: Peer) -> Callable[[str], object]:
    import rfdetr

    return getattr(rfdetr, peer.source)(pretrain_weights=None, device="cpu").predict


def rfdetr_train(peer: Peer, data: dict[str, str], epochs: int, out: str) -> None:
    import rfdetr

    net = getattr(rfdetr, peer.source)(pretrain_weights=None, device="cpu")
    options = {"tensorboard": False, "num_workers": 0, "eval_interval": 1000, "progress_bar": None}
    net.train(dataset_dir=data["roboflow"], epochs=epochs, batch_size=4, output_dir=out, accelerator="cpu", **options)


WORK: dict[str, tuple[Callable[..., Callable[[str], object]], Callable[..., None]]] = {
    "rcnn": (rcnn_predictor, rcnn_train),
    "torchvision": (torchvision_predictor, torchvision_train),
    "yolo": (yolo_predictor, yolo_train),
    "rfdetr": (rfdetr_predictor, rfdetr_train),
}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has started and that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def work(task: dict[str, Any]) -> None:
    """Train, or predict all pictures at each line on stdin, and print CPU seconds as lines that begin with `#`."""
    import torch

    torch.set_num_threads(1)
    peer = Peer(*task["peer"])
    predictor, train = WORK[peer.kind]
    if "epochs" in task:
        with tempfile.TemporaryDirectory() as out:
            train(peer, task["data"], task["epochs"], out)
        print(f"#{cpu_seconds()}", flush=True)
        return
    predict = predictor(peer)
    predict(task["pictures"][0])
    print("#ready", flush=True)
    for _ in sys.stdin:
        began = cpu_seconds()
        for picture in task["pictures"]:
            predict(picture)
        print(f"#{cpu_seconds() - began}", flush=True)


class Worker:
    """A process that does one task in the environment of its peer."""

    def __init__(self, peer: Peer, python: Path, **task: Any) -> None:
        words = [sys.executable if peer.kind in ("rcnn", "torchvision") else str(python), __file__, "--work"]
        words.append(json.dumps({"peer": peer, **task}))
        environment = os.environ | ENV
        if peer.kind not in ("rcnn", "torchvision"):
            environment.pop("PYTHONPATH", None)
            environment["YOLO_CONFIG_DIR"] = str(python.parents[1])
        # A pipe would fill up during long trainings.
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - open as long as the process
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )

    def read(self) -> str:
        """Return the next line for us.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("#"):
                return line[1:].strip()
        self.errors.seek(0)
        raise RuntimeError(self.errors.read().strip()[-2000:])

    def ask(self) -> float:
        """Have it predict all pictures; return the CPU seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.read())


def environment(folder: Path) -> Path:
    """Return the interpreter of the environment of the other packages, which is made first if it is missing."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(PACKAGES)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "complete").touch()
    return python.absolute()


def export(weights: str, data: str, folder: Path) -> None:
    """Write the exported files of this package that are missing in a folder."""
    import rcnn

    detector = rcnn.load(weights, device="cpu")
    for name in ("net.onnx", "net.xml"):
        if not (folder / name).exists():
            rcnn.export(detector, folder / name)
    if not (folder / "int8.xml").exists():
        rcnn.export_int8(detector, folder / "int8.xml", data, max_drop=1)


def write_data(data: str, count: int, folder: Path) -> dict[str, str]:
    """Write `count` training images in the layout of each trainer; return the paths."""
    from dataclasses import replace

    import rcnn
    from rcnn.data.convert import convert

    train = rcnn.open_dataset(data, "train")
    train = replace(train, records=train.records[:count])
    lists = [train, replace(train, records=train.records[:2], split="val")]
    convert(lists, "coco", folder / "coco")
    convert(lists, "yolo", folder / "yolo")
    for split, name in (("train", "train"), ("val", "valid"), ("val", "test")):
        target = folder / "roboflow" / name
        target.mkdir(parents=True)
        document = json.loads((folder / f"coco/annotations/{split}.json").read_text())
        (target / "_annotations.coco.json").write_text(json.dumps(document))
        for image in document["images"]:
            (target / image["file_name"]).symlink_to(folder.absolute() / "coco/images" / image["file_name"])
    return {
        "coco": str(folder / "coco"),
        "yolo": str(folder / "yolo" / "data.yaml"),
        "roboflow": str(folder / "roboflow"),
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", nargs="?")
    parser.add_argument("--env", type=Path, default=Path("runs/peers"), help="environment of the other packages")
    parser.add_argument("--files", type=Path, help="folder of exported files, which are reused")
    parser.add_argument("--weights", default="blood-cells")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=8, help="pictures that are predicted")
    parser.add_argument("--images", type=int, default=32, help="images that are trained on; 0: no training")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to measure; default: all")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.work:
        work(json.loads(options.work))
        return
    if options.data is None:
        parser.error("DATA is missing")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary, "files")
        rows = peers(folder.absolute(), options.weights)
        if unknown := [name for name in options.only or () if name not in rows]:
            parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(rows)}")
        rows = {name: rows[name] for name in options.only or rows}
        folder.mkdir(parents=True, exist_ok=True)
        if any(peer.kind == "rcnn" and not peer.trains for peer in rows.values()):
            export(options.weights, options.data, folder)
        foreign = any(peer.kind not in ("rcnn", "torchvision") for peer in rows.values())
        python = environment(options.env) if foreign else Path(sys.executable)
        data = write_data(options.data, options.images, Path(temporary)) if options.images else {}
        predict = predictions(rows, python, options)
        train = trainings(rows, python, data) if data else {}
    print("\n| detector | size | prediction | CPU ms per picture | weights | training, CPU s per image | licence |")
    print("|---|---|---|---|---|---|---|")
    for name, peer in rows.items():
        training = "" if not peer.trains else f"{train[name] / options.images:.2f}" if name in train else "not measured"
        cells = (name, peer.size, peer.precision, f"{1000 * predict[name]:.0f}", peer.weights, training, peer.licence)
        print(f"| {' | '.join(cells)} |")


def predictions(rows: dict[str, Peer], python: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the median CPU seconds of a prediction for every row."""
    import rcnn

    records = rcnn.open_dataset(options.data, "val").records[: options.pictures]
    pictures = [str(record.path) for record in records]
    workers = {name: Worker(peer, python, pictures=pictures) for name, peer in rows.items()}
    for worker in workers.values():
        worker.read()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(options.runs):
        for name, worker in workers.items():
            worker.ask()
            times[name].append(worker.ask() / len(pictures))  # the second time, with its own numbers in the caches
    for worker in workers.values():
        worker.process.kill()
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print("\n".join(f"{name}: {1000 * seconds:.1f} ms" for name, seconds in medians.items()), flush=True)
    return medians


def trainings(rows: dict[str, Peer], python: Path, data: dict[str, str]) -> dict[str, float]:
    """Return the CPU seconds of an epoch for every row that trains."""
    found = {}
    for name, peer in rows.items():
        if peer.trains:
            began = time.monotonic()
            one, more = (float(Worker(peer, python, epochs=epochs, data=data).read()) for epochs in EPOCHS)
            found[name] = (more - one) / (EPOCHS[1] - EPOCHS[0])
            print(f"{name}: trained in {time.monotonic() - began:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    main()
