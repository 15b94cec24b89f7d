"""Copies of a data set in another format: images byte for byte, lists kept."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rcnn.config import SettingsError
from rcnn.data import coco, voc, yolo
from rcnn.data.dataset import Dataset
from rcnn.data.yolo_yaml import yaml_text

Names = dict[Path, str]


def convert(data: Dataset | Sequence[Dataset], format: str, out: str | Path) -> list[str]:
    """Write a copy of some lists of one data set as `voc`, `coco` or `yolo`. What the format can't hold is returned.

    Raises:
        SettingsError: `out` holds something, lies inside the data set, or the format is unknown.
        OSError: the disk is full, say; no half of a copy is left.
    """
    datasets = [data] if isinstance(data, Dataset) else list(data)
    if format not in _WRITERS:
        raise SettingsError(f"`{format}` is no format; choose {', '.join(_WRITERS)}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out}: something is there already; give a new or empty folder")
    if out.resolve().is_relative_to(datasets[0].root.resolve()):
        raise SettingsError(f"{out}: lies inside the data set {datasets[0].root}, which is never written to")
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _WRITERS[format](datasets, out, _file_names(datasets))
    except BaseException:  # Ctrl-C too: half a copy looks like a whole one
        shutil.rmtree(out, ignore_errors=True)
        raise


def _file_names(datasets: Sequence[Dataset]) -> Names:
    """A file name for every image, no two of one stem."""
    names: Names = {}
    stems: set[str] = set()
    for record in (record for dataset in datasets for record in dataset.records):
        if record.path in names:
            continue
        stem, suffix = os.path.splitext(record.path.name)
        choices = [stem, os.path.splitext(record.name)[0].replace("../", "").replace("/", "_")]
        choices += [f"{stem}_{number}" for number in range(2, len(stems) + 3)]
        stem = next(choice for choice in choices if choice.casefold() not in stems)
        stems.add(stem.casefold())
        names[record.path] = stem + suffix
    return names


def _copy(dataset: Dataset, folder: Path, names: Names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for record in dataset.records:
        shutil.copyfile(record.path, folder / names[record.path])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_voc(datasets: Sequence[Dataset], out: Path, names: Names) -> list[str]:
    """JPEGImages, Annotations and, where there are lists, ImageSets/Main."""
    thin = 0
    for dataset in datasets:
        _copy(dataset, out / "JPEGImages", names)
        stems = [os.path.splitext(names[record.path])[0] for record in dataset.records]
        for stem, record in zip(stems, dataset.records, strict=True):
            image = Path("JPEGImages", names[record.path])
            text = voc.labels_text(image, record.size, dataset.names, record.boxes, record.labels, record.ignore)
            _write(out / "Annotations" / f"{stem}.xml", text)
            thin += int((record.boxes[:, :2] + 1 == record.boxes[:, 2:]).any(axis=1).sum())
        if dataset.split != "all":
            _write(out / "ImageSets" / "Main" / f"{dataset.split}.txt", "".join(f"{stem}\n" for stem in stems))
    said = f"{thin} boxes have a side of exactly 1 pixel, which VOC can't tell from no size: written as 1.01 pixels"
    notes = [said] if thin else []
    used = {int(label) for dataset in datasets for record in dataset.records for label in record.labels}
    unused = [name for label, name in enumerate(datasets[0].names) if label not in used]
    return notes + (
        [f"VOC has no list of classes, so those without a box are lost: {', '.join(unused)}"] if unused else []
    )


def _write_coco(datasets: Sequence[Dataset], out: Path, names: Names) -> list[str]:
    """Images and annotations/LIST.json."""
    for dataset in datasets:
        _copy(dataset, out / "images", names)
        own = [record.id for record in dataset.records]
        keep = all(isinstance(number, int) for number in own) and len(set(own)) == len(own)
        ids = own if keep else list(range(1, len(own) + 1))
        tree = {"images": [], "annotations": [], "categories": []}
        for name, number in zip(dataset.names, dataset.category_ids, strict=True):
            tree["categories"].append({"id": number, "name": name})
        for number, record in zip(ids, dataset.records, strict=True):
            height, width = record.size
            image = {"id": number, "file_name": names[record.path], "width": width, "height": height}
            tree["images"].append(image)
            rows = coco.label_rows(number, dataset.category_ids, record.boxes, record.labels)
            for row, ignore in zip(rows, record.ignore.tolist(), strict=True):
                area = row["bbox"][2] * row["bbox"][3]
                index = len(tree["annotations"]) + 1
                tree["annotations"].append({"id": index, **row, "area": area, "iscrowd": int(ignore)})
        _write(out / "annotations" / f"{dataset.split}.json", json.dumps(tree, ensure_ascii=False) + "\n")
    return []


def _write_yolo(datasets: Sequence[Dataset], out: Path, names: Names) -> list[str]:
    """images/LIST, labels/LIST and data.yaml. Crowd and difficult boxes are left out, as is usual."""
    lists: dict[str, str] = {}
    ignored = 0
    for dataset in datasets:
        inner = "" if dataset.split == "all" else f"/{dataset.split}"
        lists["train" if dataset.split in ("all", "trainval") else dataset.split] = f"images{inner}"
        _copy(dataset, out / f"images{inner}", names)
        for record in dataset.records:
            ignored += int(record.ignore.sum())
            stem = os.path.splitext(names[record.path])[0]
            text = yolo.labels_text(record.size, record.boxes[~record.ignore], record.labels[~record.ignore])
            _write(out / f"labels{inner}" / f"{stem}.txt", text)
    _write(out / "data.yaml", yaml_text(lists, datasets[0].names))
    return [f"YOLO has no crowd or difficult boxes: {ignored} were left out"] if ignored else []


_WRITERS: dict[str, Callable[[Sequence[Dataset], Path, Names], list[str]]] = {
    "voc": _write_voc,
    "coco": _write_coco,
    "yolo": _write_yolo,
}
