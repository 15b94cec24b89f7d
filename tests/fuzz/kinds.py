"""The kinds of files that are fuzzed, each with valid examples and the commands that read it."""

import contextlib
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from csv import writer as table_writer
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast
from xml.sax.saxutils import quoteattr

import numpy as np
import scipy.io
import torch
import yaml
from PIL import Image

from rcnn.config import to_yaml
from rcnn.data.formats.registry import WRITERS
from rcnn.detector import Detector
from rcnn.presets import build, settings_of
from rcnn.runtime.graph import ENTRY, entries
from rcnn.training.checkpoint import save_checkpoint
from rcnn.training.stages import Progress, TrainState
from rcnn.weights.file import load_weights, save_weights
from tests.fuzz.mutate import choose, mutate, mutate_tree
from tests.images import hostile
from tests.runtime import attacks, graphs

OVERRIDES = (
    *("preprocess.short=32", "preprocess.long=48", "model.channels=8", "roi.hidden=8", "data.workers=0"),
    *("rpn.pre_train=20", "rpn.post_train=10", "rpn.pre_test=20", "rpn.post_test=10"),
    *("roi.samples=8", "train.init=none"),
)
RUN_OVERRIDES = (*OVERRIDES, "train.epochs=1", "train.ema=null", "train.device=cpu")
ROW = {"epoch": 1, "step": 1, "lr": 0.1, "train_loss": 1.0, "ap": 0.1, "seconds": 1.0}
LOG = "begun\n"
RUN_LENGTHS = {"metrics.jsonl": len(json.dumps(ROW)) + 1, "log.txt": len(LOG)}
"""A run of one epoch: its settings, row and log, and the lengths of row and log."""
LIMITS = ("predict.graph_seconds=4", "predict.graph_memory=2000")
"""Limits of exported graphs, below those of the process."""
NAMES = ("circle", "square")
SIDE = 40
FORMATS = ("jpg", "png", "bmp", "gif", "tif", "webp", "ppm", "avif", "jp2", "npy")


class Mutant(NamedTuple):
    """A damaged file in a folder, and the command that reads it.

    Attributes:
        words: of the command line.
        codes: exit codes that may follow.
    """

    words: Sequence[str]
    codes: Sequence[int]


Kind = Callable[[Path, int, Random, Sequence[Any]], Mutant]
"""(an empty folder, number of the mutant, rng, strange values) -> the mutant, written into the folder."""


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def images(folder: Path, count: int = 2) -> Iterator[str]:
    """Write PNGs into a folder, and yield their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(folder / f"{number}.png")
        yield f"{number}.png"


def reading(data: str, rng: Random) -> Mutant:
    """Return one of the commands that read a data set."""
    commands = (
        ("data", "check", data),
        ("data", "stats", data, "--out", "out/stats"),
        ("data", "convert", data, "--to", rng.choice((*WRITERS,)), "--out", "out/copy"),
        ("train", data, "--dry-run", *OVERRIDES),
    )
    return Mutant(rng.choice(commands), (0, 3))


def voc(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    def annotation(name: str) -> str:
        boxes = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{4 + i}</xmin><ymin>5</ymin>"
            f"<xmax>{20 + i}</xmax><ymax>30</ymax></bndbox></object>"
            for i, label in enumerate(NAMES)
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        return f"<?xml version='1.0'?>\n<annotation><filename>{name}</filename>{size}{boxes}</annotation>\n"

    for name in images(folder / "data/JPEGImages"):
        write(folder / "data/Annotations" / f"{name[0]}.xml", annotation(name))
    for split in ("train", "val"):
        write(folder / f"data/ImageSets/Main/{split}.txt", "0\n1\n")
    target = "data/ImageSets/Main/train.txt" if number % 8 == 7 else "data/Annotations/0.xml"
    damage(folder / target, rng)
    return reading("data", rng)


def coco(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    names = list(images(folder / "data/images"))
    document = {
        "images": [{"id": i, "file_name": name, "width": SIDE, "height": SIDE} for i, name in enumerate(names)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "bbox": [3, 4, 9 + i, 10], "area": 90, "iscrowd": 0}
            for i in range(4)
        ],
    }
    polygon, runs = [[3, 4, 12, 4, 12, 14, 3, 14]], [5 * SIDE + 6, 9, SIDE - 9, 12, SIDE * (SIDE - 6) - 18]
    masks = {"size": [SIDE, SIDE], "counts": runs}, {"size": [SIDE, SIDE], "counts": "^69o03oX1"}
    segments = ({}, {"segmentation": polygon}, {"segmentation": masks[number % 2], "bbox": []})
    for i, segment in enumerate((*segments, {"segmentation": polygon, "bbox": [0, 0, 0, 0]})):
        document["annotations"][i].update(segment)
    damaged(folder / "data/annotations/train.json", document, number, rng, values, json.dumps)
    return reading("data", rng)


def yolo(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    yolo_set(folder)
    damage(folder / "data/labels/0.txt", rng)
    if number % 3 == 0:
        (folder / "data/data.yaml").unlink()
    return reading("data", rng)


def data_yaml(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    damaged(folder / "data/data.yaml", yolo_set(folder), number, rng, values, yaml.safe_dump)
    return reading("data", rng)


def csv(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage the bytes of a table, or put a strange value into it."""
    rows: list[list[Any]] = [["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]]
    for i, name in enumerate([*images(folder / "data")] * 2):
        rows.append([name, SIDE, SIDE, NAMES[i // 2], 4 + i, 5, 20 + i, 30])
    if number % 2:
        place = rng.randrange(len(rows))
        changed = mutate_tree(rows[place], values, rng)
        rows[place] = changed if isinstance(changed, list) else [changed]
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    write(folder / "data/_annotations.csv", text.encode(errors="surrogatepass"))
    if number % 2 == 0:
        damage(folder / "data/_annotations.csv", rng)
    return reading("data", rng)


def table(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage a table without a header, or its file of classes."""
    rows = [f"{name},{4 + i},5,{20 + i},30,{NAMES[i]}\n" for i, name in enumerate(images(folder / "data"))]
    write(folder / "data/annotations.csv", "".join(rows))
    write(folder / "data/classes.csv", "".join(f"{name},{i}\n" for i, name in enumerate(NAMES)))
    damage(folder / ("data/classes.csv" if number % 4 == 3 else "data/annotations.csv"), rng)
    return reading("data", rng)


def open_images(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage a table of Open Images, or its file of classes."""
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
    stems = [name[0] for name in images(folder / "data/train")]
    rows = [f"{stem},xclick,/m/{i},1,0.{i + 1},0.6,0.2,0.75,0,{i}\n" for stem in (*stems, "9") for i in range(2)]
    write(folder / "data/train-annotations-bbox.csv", "".join([header, *rows]))
    write(folder / "data/class-descriptions-boxable.csv", "".join(f"/m/{i},{name}\n" for i, name in enumerate(NAMES)))
    target = "class-descriptions-boxable.csv" if number % 4 == 3 else "train-annotations-bbox.csv"
    damage(folder / "data" / target, rng)
    return reading("data", rng)


def label_studio(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage an export JSON, or JSON-MIN."""
    size = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
    box = {"x": 10.5, "y": 20, "width": 30, "height": 40, "rotation": 15}
    shapes = [
        {"type": "rectanglelabels", "value": {**box, "rectanglelabels": [NAMES[0]]}},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [30, 4], [5, 60]], "polygonlabels": [NAMES[1]]}},
        {"type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 9, "radiusY": 8, "ellipselabels": [NAMES[1]]}},
        {"type": "keypointlabels", "value": {"x": 50, "y": 50, "width": 1, "keypointlabels": [NAMES[1]]}},
    ]
    result = [{"id": f"r{i}", "to_name": "image", **size, **shape} for i, shape in enumerate(shapes)]
    annotation = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": result}
    tasks = [
        {"id": i, "annotations": [annotation] * (i + 1), "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"}}
        for i, name in enumerate(images(folder / "data/images"))
    ]
    flat = [{"id": i, "image": f"{i}.png", "label": [{**box, **size, "rectanglelabels": [NAMES[i]]}]} for i in range(2)]
    damaged(folder / "data/project.json", flat if number % 5 == 4 else tasks, number, rng, values, json.dumps)
    return reading("data", rng)


def hugging_face(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage a metadata.jsonl, or the description of its classes."""
    objects = {"bbox": [[3, 4, 9.5, 10], [5, 6, 7, 8]], "category": [0, 1]}
    rows: list[Any] = [
        {"file_name": name, "width": SIDE, "height": SIDE, "objects": objects} for name in images(folder / "data/train")
    ]
    label = {"names": [*NAMES], "_type": "ClassLabel"}
    info = {"features": {"objects": {"feature": {"category": label}, "_type": "Sequence"}}}
    write(folder / "data/dataset_info.json", json.dumps(info))
    if number % 8 == 7:
        damaged(folder / "data/dataset_info.json", info, rng.randrange(2), rng, values, json.dumps)
    elif number % 2:
        rows[0] = mutate_tree(rows[0], values, rng)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write(folder / "data/train/metadata.jsonl", text.encode(errors="surrogatepass"))
    if number % 2 == 0:
        damage(folder / "data/train/metadata.jsonl", rng)
    return reading("data", rng)


def labelme(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    points = ([[4, 5], [20, 30]], [[1, 1], [9, 2], [5, 8]], [[20, 20], [23, 24]], [[3, 3]])
    kinds = ("rectangle", "polygon", "circle", "point")
    for name in images(folder / "data"):
        shapes = [
            {"label": NAMES[i % 2], "points": points[i], "group_id": None, "shape_type": kind, "flags": {}}
            for i, kind in enumerate(kinds)
        ]
        tree = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
        write(folder / f"data/{name[0]}.json", json.dumps({**tree, "imageHeight": SIDE, "imageWidth": SIDE}))
    target = folder / "data/0.json"
    damaged(target, json.loads(target.read_text()), number, rng, values, json.dumps)
    return reading("data", rng)


def via(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage a json, a project or a csv of VIA."""
    shapes = (
        {"name": "rect", "x": 4, "y": 5, "width": 12, "height": 9},
        {"name": "circle", "cx": 20, "cy": 20, "r": 4},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 4, "ry": 6, "theta": 0.3},
        {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [1, 2, 8]},
    )
    names = list(images(folder / "data"))
    regions = [
        {"shape_attributes": shape, "region_attributes": {"class": NAMES[i % 2]}} for i, shape in enumerate(shapes)
    ]
    entries = {f"{name}9": {"filename": name, "size": 9, "regions": regions, "file_attributes": {}} for name in names}
    if number % 3 == 2:
        text = io.StringIO(newline="")
        table = table_writer(text)
        columns = ("filename", "file_size", "file_attributes", "region_count", "region_id")
        table.writerow([*columns, "region_shape_attributes", "region_attributes"])
        for name in names:
            for i, region in enumerate(regions):
                cells = [name, 9, "{}", len(regions), i, *map(json.dumps, region.values())]
                table.writerow(mutate_tree(cells, values, rng) if rng.random() < 0.2 else cells)
        write(folder / "data/via.csv", text.getvalue().encode(errors="surrogatepass"))
        damage(folder / "data/via.csv", rng)
    else:
        tree = entries if number % 3 else {"_via_settings": {"core": {}}, "_via_img_metadata": entries}
        damaged(folder / "data/via.json", tree, rng.randrange(2), rng, values, json.dumps)
    return reading("data", rng)


def cvat(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage an xml of CVAT for images or for video: its bytes, or a value in it."""
    corners = {"xtl": 4, "ytl": 5, "xbr": 20, "ybr": 30}
    elements = [
        ("box", {**corners, "label": "circle"}),
        ("box", {**corners, "label": "square", "rotation": "10.00"}),
        ("polygon", {"label": "circle", "points": "1,1;9,2;5,8"}),
        ("ellipse", {"label": "square", "cx": 20, "cy": 20, "rx": 4, "ry": 6}),
        ("mask", {"label": "square", "rle": "1, 2", "left": 4, "top": 5, "width": 6, "height": 7}),
    ]
    if number % 3 == 2:
        for i, name in enumerate(images(folder / "data/images")):
            (folder / "data/images" / name).rename(folder / f"data/images/frame_{i:06}.png")
        elements = [("box", {"frame": i, "outside": i, "keyframe": 1, **corners}) for i in range(2)]
        parents = [("track", {"id": i, "label": name}) for i, name in enumerate(NAMES)]
    else:
        sizes = {"width": SIDE, "height": SIDE}
        subsets = ({}, {"subset": "Train"}) if number % 3 else ({}, {})
        parents = [
            ("image", {"id": i, "name": name, **sizes, **subsets[number % 2]})
            for i, name in enumerate(images(folder / "data/images"))
        ]
    place = rng.randrange(len(elements))
    if rng.random() < 0.5:
        tag, attributes = elements[place]
        elements[place] = tag, mutate_tree(attributes, values, rng)
    body = "".join(
        f"<{parent} {markup(attributes)}>{''.join(f'<{tag} {markup(more)}/>' for tag, more in elements)}</{parent}>"
        for parent, attributes in parents
    )
    text = f"<?xml version='1.0'?>\n<annotations><version>1.1</version><meta></meta>{body}</annotations>\n"
    write(folder / "data/annotations.xml", text.encode(errors="surrogatepass"))
    if rng.random() < 0.5:
        damage(folder / "data/annotations.xml", rng)
    return reading("data", rng)


def markup(attributes: dict[str, Any]) -> str:
    """Return attributes as text of XML."""
    return " ".join(f"{key}={quoteattr(str(value))}" for key, value in attributes.items())


def yolo_set(folder: Path) -> dict[str, Any]:
    for name in images(folder / "data/images"):
        write(folder / "data/labels" / f"{name[0]}.txt", "0 0.5 0.5 0.4 0.3\n1 0.2 0.3 0.1 0.2\n")
    tree = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(NAMES))}
    write(folder / "data/data.yaml", yaml.safe_dump(tree))
    return tree


def config(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    yolo_set(folder)
    tree = yaml.safe_load(to_yaml(settings_of("tiny-fpn", OVERRIDES)))
    damaged(folder / "config.yaml", tree, number, rng, values, yaml.safe_dump)
    return Mutant(("train", "data", "--config", "config.yaml", "--dry-run"), (0, 2, 3, 4))


@cache
def detector_bytes() -> bytes:
    settings = settings_of("tiny-fpn", OVERRIDES)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        path = Path(folder, "sound.safetensors")
        Detector(build(settings, len(NAMES)), settings, NAMES, device="cpu").save(path)
        return path.read_bytes()


def resave(path: Path, values: Sequence[Any], rng: Random) -> None:
    """Write a strange entry with a correct checksum, as an attacker would."""
    tensors, entry = load_weights(path)
    strange = mutate_tree({key: value for key, value in entry.items() if key != "format"}, values, rng)
    with contextlib.suppress(ValueError):  # what JSON can't hold can't be in a file
        save_weights(path, tensors, strange if isinstance(strange, dict) else {})


def safetensors(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage the bytes, or write a strange header, or strange settings with a correct checksum."""
    data, path = detector_bytes(), folder / "model.safetensors"
    if number % 3 == 0:
        write(path, mutate(data, rng))
    elif number % 3 == 1:  # eight bytes with the length of the header, the header, and the tensors
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.dumps(mutate_tree(json.loads(data[8:end]), values, rng)).encode()
        write(path, len(header).to_bytes(8, "little") + header + data[end:])
    else:
        write(path, data)
        resave(path, values, rng)
    return inspected_or_run(folder, path.name, rng, (0, 4))


def graph(
    write_graph: Callable[..., object],
    files: Sequence[str],
    folder: Path,
    number: int,
    rng: Random,
    values: Sequence[Any],
) -> Mutant:
    """Damage the bytes of a graph or of its weights (the last of the files), or write a strange entry."""
    detector, path, changes = graphs.detector(), folder / files[0], {}
    if number % 3 == 0:
        entry = json.dumps(mutate_tree(json.loads(entries(detector)[ENTRY]), values, rng))
        changes = {ENTRY: entry.encode(errors="replace").replace(b"\0", b"").decode()}
    write_graph(path, detector, changes=changes)
    if number % 3:
        damage(folder / files[-1] if number % 9 == 1 else path, rng)
    # What a damaged graph gives may be infinite, or too large.
    return inspected_or_run(folder, files[0], rng, (0, 1, 4), LIMITS)


def hostile_graph(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Write a well-formed graph that loops, allocates or computes without end."""
    path = folder / ("model.onnx" if number % 2 else "model.xml")
    assault(path, rng)
    return inspected_or_run(folder, path.name, rng, (0, 1, 4), LIMITS)


def assault(path: Path, rng: Random) -> None:
    (attacks.random_onnx if path.suffix == ".onnx" else attacks.random_xml)(path, rng)


def inspected_or_run(
    folder: Path, name: str, rng: Random, codes: Sequence[int], settings: Sequence[str] = ()
) -> Mutant:
    picture().save(folder / "a.png")
    return Mutant(rng.choice((("inspect", name), ("predict", name, "a.png", "--out", "out", *settings))), codes)


@cache
def run_weights() -> dict[str, bytes]:
    """Return relative name -> content of the weights of a finished run."""
    settings = settings_of("tiny-fpn", RUN_OVERRIDES)
    model = build(settings, len(NAMES))
    progress = Progress(step=1, epoch=1, best_ap=0.1, best_epoch=1)
    optimizer, unused = torch.optim.SGD(model.parameters(), 0.1), cast(Any, None)
    state = TrainState((), settings, settings.train, model, model, optimizer, None, unused, (), progress)
    with TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), state, RUN_LENGTHS)
        Detector(model, settings, NAMES, device="cpu").save(Path(folder, "detector.safetensors"))
        detector, checkpoint = (Path(folder, f"{name}.safetensors").read_bytes() for name in ("detector", "step-1"))
    return {
        "weights/best.safetensors": detector,
        "weights/last.safetensors": detector,
        "checkpoints/step-1.safetensors": checkpoint,
    }


def run_folder(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Damage one file of a finished run, which is then resumed."""
    settings = settings_of("tiny-fpn", RUN_OVERRIDES)
    yolo_set(folder)
    run = folder / "runs/data-1"
    files = {
        "config.yaml": to_yaml(settings).replace("path: null", f"path: {folder / 'data'}"),
        "metrics.jsonl": json.dumps(ROW) + "\n",
        "log.txt": LOG,
        "train.txt": "images/0.png\nimages/1.png\n",
        "val.txt": "images/0.png\nimages/1.png\n",
        "classes.txt": "".join(f"{name}\n" for name in NAMES),
    }
    for name, content in (files | run_weights()).items():
        write(run / name, content)
    (run / "plots").mkdir()
    targets = [*files, "checkpoints/step-1.safetensors", "weights/best.safetensors"]
    target = run / targets[number % len(targets)]
    if target.suffix == ".safetensors" and rng.random() < 0.5:
        resave(target, values, rng)
    elif target.suffix == ".jsonl" and rng.random() < 0.5:
        write(target, json.dumps(mutate_tree(ROW, values, rng)) + "\n")
    else:
        damage(target, rng)
    return Mutant(("train", "--resume", "runs/data-1"), (0, 1, 2, 3, 4))


def pth(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    torch.save(
        {"backbone.conv.weight": torch.zeros(4, 3, 3, 3), "head.bias": torch.zeros(4)},
        folder / "model.pth",
        _use_new_zipfile_serialization=number % 2 == 0,
    )
    damage(folder / "model.pth", rng)
    return foreign("model.pth", rng)


def pkl(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    arrays = {"backbone.conv.weight": np.zeros((4, 3, 3, 3), np.float32), "head.bias": np.zeros(4, np.float32)}
    tree = {"model": arrays, "__author__": "third"} if number % 2 else arrays
    write(folder / "model.pkl", mutate(pickle.dumps(tree, protocol=2 + number % 3), rng))
    return foreign("model.pkl", rng)


def foreign(name: str, rng: Random) -> Mutant:
    """Return one of the commands that read weights of other libraries."""
    commands = (
        ("inspect", name),
        ("import", name, "--arch", "fasterrcnn_mobilenet_v3_large_320_fpn", "--out", "out.safetensors"),
    )
    return Mutant(rng.choice(commands), (0, 4))


def npz(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    boxes = np.array([[1.0, 2, 20, 30], [3, 4, 10, 12]], dtype=np.float32)
    np.savez(folder / "boxes.npz", allow_pickle=False, **{"0.png": boxes, "1.png": boxes})
    damage(folder / "boxes.npz", rng)
    return proposing(folder, "boxes.npz")


def json_proposals(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    rows = [
        {"image_id": f"{i % 2}.png", "bbox": [1.0, 2, 20 + i, 15], "score": 0.5, "category_id": 1} for i in range(4)
    ]
    damaged(folder / "boxes.json", rows, number, rng, values, json.dumps)
    return proposing(folder, "boxes.json")


def mat(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    boxes = np.empty((1, 2), dtype=object)
    boxes[0, 0] = boxes[0, 1] = np.array([[1.0, 2, 20, 30], [3, 4, 10, 12]])
    names = np.array([["0"], ["1"]], dtype=object)
    scipy.io.savemat(folder / "boxes.mat", {"boxes": boxes, "images": names}, do_compression=number % 2 == 0)
    damage(folder / "boxes.mat", rng)
    return proposing(folder, "boxes.mat")


def proposing(folder: Path, name: str) -> Mutant:
    list(images(folder / "photos"))
    write(folder / "model.safetensors", detector_bytes())
    return Mutant(("predict", "model.safetensors", "photos", "--proposals", name, "--out", "out"), (0, 3))


def image(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    suffix = FORMATS[number % len(FORMATS)]
    yolo_set(folder)
    target = folder / f"data/images/0.{suffix}"
    (folder / "data/images/0.png").unlink()
    if suffix == "npy":
        np.save(target, np.asarray(picture()))
    else:
        modes = {"jpg": ("RGB", "L", "CMYK"), "png": ("RGB", "RGBA", "P", "I;16", "1"), "tif": ("RGB", "I;16", "F")}
        mode = rng.choice(modes.get(suffix, ("RGB",)))
        deep = picture().convert("L").convert("I") if mode == "I;16" else picture()
        deep.convert(mode).save(target)
    damage(target, rng)
    if number % 2:
        return Mutant(("data", "check", "data"), (0, 3))
    write(folder / "model.safetensors", detector_bytes())
    return Mutant(("predict", "model.safetensors", "data/images", "--out", "out"), (0, 3))


def jpeg_scans(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Write a well-formed JPEG of many scans, and damage the bytes of some."""
    size = choose([(60, 80), (1, 1), (1, 4000), (4000, 1), *[(700, 1000)] * 4, (4000, 3000), (9000, 9000)], rng)
    later = choose([8, 0, 63, 64, 900, 20_000, 200_000], rng)
    comment = hostile.jpeg_segment(0xFE, rng.randbytes(rng.randrange(40)))
    thumbnail = hostile.jpeg_segment(0xE1, b"Exif\0\0" + hostile.jpeg((64, 64), 300)[:60_000])
    content = hostile.jpeg(
        size,
        1 + min(later, 3_000_000 // max(100, size[0] * size[1] // (1 << 17))),
        components=choose([3, 1, 4], rng),
        progressive=choose([True, True, False], rng) and size != (9000, 9000),
        refine=choose([False, True], rng),
        interval=choose([0, 0, 1, 7, 65_535], rng) if size[0] * size[1] < 10**6 else 0,
        before=choose([b"", thumbnail, thumbnail * 9, comment * 1000, b"\xff" * 300_000], rng),
        between=choose([b"", b"", comment, b"\xff\xff"], rng),
    )
    content = choose([content, content, content, content + content, mutate(content, rng)], rng)
    return hostile_image(folder, "jpg", content, rng)


def hostile_tiff(folder: Path, number: int, rng: Random, values: Sequence[Any]) -> Mutant:
    """Write a tiled TIFF with shared tiles and strange tags, and damage the bytes of some."""
    height, width = choose([(120, 80), (1, 1), (3000, 2000), (20_000, 20_000), (4_000_000, 4_000_000), (1, 2**31)], rng)
    tile = choose([(32, 16), (256, 256), (1024, 2048), (8000, 8000), (7, 13), (16, 2**20), (0, 16)], rng)
    bands, big = choose([3, 1, 4, 200], rng), choose([False, True], rng)
    block = zlib.compress(bytes(min(tile[0] * tile[1] * bands, 10**7)), 9)
    needed = -(-height // max(1, tile[0])) * -(-width // max(1, tile[1]))
    count = choose([min(needed, 2000), min(needed, 200_000), 1, 0], rng)
    tags = hostile.tile_tags((height, width), tile, bands=bands, big=big, length=len(block), count=count)
    for tag in rng.sample(sorted(tags), choose([0, 0, 1, 2], rng)):
        kind, old = tags.pop(tag)
        new = choose([old, [], [0], [1], [2, 3], [65_535], [*old, *old]], rng)
        if rng.random() < 0.7:
            tags[tag] = kind, new
    pages = choose([[tags], [tags] * 3, [tags] * 5000 if count < 100 else [tags] * 2], rng)
    order, following = choose(["<", ">"], rng), choose([0, 0, 16 + len(block), 8, 2**31], rng)
    content = hostile.tiff(pages, block, big=big, order=order, following=following)
    return hostile_image(folder, "tif", choose([content, content, mutate(content, rng)], rng), rng)


def hostile_image(folder: Path, suffix: str, content: bytes, rng: Random) -> Mutant:
    """Write an image, and return one of the commands that read it."""
    yolo_set(folder)
    (folder / "data/images/0.png").unlink()
    write(folder / f"data/images/0.{suffix}", content)
    write(folder / "model.safetensors", detector_bytes())
    predict = ("predict", "model.safetensors", "data/images", "--format", rng.choice(("json", "voc")), "--out", "out")
    windows = ("predict.tile=800", "data.max_pixels=1000000")
    return Mutant(rng.choice((("data", "check", "data"), predict, (*predict, *windows))), (0, 3))


def damage(path: Path, rng: Random) -> None:
    path.write_bytes(mutate(path.read_bytes(), rng))


def damaged(path: Path, tree: Any, number: int, rng: Random, values: Sequence[Any], dump: Callable[[Any], str]) -> None:
    """Write a document with a strange value, or with damaged bytes."""
    if number % 2:
        write(path, dump(mutate_tree(tree, values, rng)).encode("utf-8", errors="surrogatepass"))
    else:
        write(path, mutate(dump(tree).encode(), rng))


KINDS: dict[str, Kind] = {
    "voc": voc,
    "coco": coco,
    "yolo": yolo,
    "data.yaml": data_yaml,
    "labelme": labelme,
    "via": via,
    "cvat": cvat,
    "csv": csv,
    "table without a header": table,
    "openimages": open_images,
    "label_studio": label_studio,
    "huggingface": hugging_face,
    "config": config,
    "safetensors": safetensors,
    "onnx": partial(graph, graphs.write_onnx, ["model.onnx"]),
    "openvino": partial(graph, graphs.write_openvino, ["model.xml", "model.bin"]),
    "hostile graph": hostile_graph,
    "run folder": run_folder,
    "pth": pth,
    "pkl": pkl,
    "npz": npz,
    "json": json_proposals,
    "mat": mat,
    "image": image,
    "JPEG scans": jpeg_scans,
    "TIFF": hostile_tiff,
}
