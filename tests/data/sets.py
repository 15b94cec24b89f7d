"""Write tiny data sets of all formats, which tests damage."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from rcnn.data.dataset import Dataset
from rcnn.data.formats.folders import copy_images

WIDTH, HEIGHT = 60, 40
Object = tuple[str, Sequence[float]]  # class name and the four numbers of the format


def image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **save: Any) -> Path:
    """Write a noisy image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path, **save)
    return path


def xml(objects: Sequence[Object], extra: str = "", size: tuple[int, int] | None = (WIDTH, HEIGHT)) -> str:
    """Return a VOC annotation; object n (from 0) has its <name> on line 4 + 4n and its <bndbox> on line 5 + 4n."""
    declared = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    lines = ["<annotation>", declared]
    for name, corners in objects:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        lines += ["<object>", f"<name>{name}</name>{extra}", f"<bndbox>{box}</bndbox>", "</object>"]
    return "\n".join([*lines, "</annotation>"])


def voc(
    root: Path, images: Mapping[str, Sequence[Object]], lists: Mapping[str, Sequence[str]] | None = None, **more: Any
) -> Path:
    """Write a VOC folder: objects by stem, and the lists of ImageSets/Main."""
    (root / "Annotations").mkdir(parents=True)
    for stem, objects in images.items():
        image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(xml(objects, **more), encoding="utf-8")
    for name, stems in (lists or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems), "utf-8")
    return root


def coco_tree(images: Mapping[str, Sequence[Object]], ids: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Return the tree of a COCO json for objects by file name; images are numbered from 1."""
    rows: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for number, (file_name, objects) in enumerate(images.items(), start=1):
        pictures.append({"id": number, "file_name": file_name, "width": WIDTH, "height": HEIGHT})
        for name, box in objects:
            row = {"id": len(rows) + 1, "image_id": number, "category_id": ids[name], "bbox": list(box), "iscrowd": 0}
            rows.append(row)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": pictures, "annotations": rows, "categories": categories}


def write_json(path: Path, tree: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    return path


def coco(root: Path, lists: Mapping[str, Mapping[str, Sequence[Object]]], ids: Mapping[str, int]) -> Path:
    """Write a COCO folder: images/ and annotations/LIST.json."""
    for name, images in lists.items():
        for file_name in images:
            image(root / "images" / file_name)
        write_json(root / "annotations" / f"{name}.json", coco_tree(images, ids))
    return root


def labelled(image_file: Path, labels: Path, rows: str) -> None:
    """Write a noisy image and its YOLO labels."""
    image(image_file)
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(rows, encoding="utf-8")


def yolo(root: Path, lists: Mapping[str, Mapping[str, str]], names: str = "[cat, dog]") -> Path:
    """Write a YOLO folder: the text of each label file by stem, and a data.yaml."""
    for name, images in lists.items():
        for stem, rows in images.items():
            labelled(root / f"images/{name}/{stem}.jpg", root / f"labels/{name}/{stem}.txt", rows)
    entries = "".join(f"{name}: images/{name}\n" for name in lists)
    (root / "data.yaml").write_text(f"{entries}names: {names}\n", encoding="utf-8")
    return root


def csv(file: Path, rows: Sequence[str], header: str = "filename,width,height,class,xmin,ymin,xmax,ymax") -> Path:
    """Write a table of labels; row n (from 0) is line 2 + n."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return file


OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"
"""Header of a table of Open Images."""


def open_images(root: Path, lists: Mapping[str, Mapping[str, Sequence[Object]]], ids: Mapping[str, str]) -> Path:
    """Write tables of Open Images with xmin, xmax, ymin, ymax by stem, images in a folder per list, and class names."""
    for name, images in lists.items():
        for stem in images:
            image(root / name / f"{stem}.jpg")
        rows = [
            f"{stem},xclick,{ids[label]},1,{','.join(map(str, box))},0,1,0,0"
            for stem, objects in images.items()
            for label, box in objects
        ]
        csv(root / f"{name}-annotations-bbox.csv", rows, OPEN_IMAGES)
    (root / "class-descriptions-boxable.csv").write_text("".join(f"{ids[name]},{name}\n" for name in ids))
    return root


def region(label: str, box: Sequence[float]) -> dict[str, Any]:
    """Return a region of Label Studio for x, y, width, height in percent."""
    value = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"rotation": 0, "rectanglelabels": [label]}
    return {"id": "r", "type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}


def label_studio(root: Path, lists: Mapping[str, Mapping[str, Sequence[Object]]]) -> Path:
    """Write an export of Label Studio for each list, and images/."""
    for name, images in lists.items():
        tasks = list[dict[str, Any]]()
        for file_name, objects in images.items():
            image(root / "images" / file_name)
            result = [region(label, box) for label, box in objects]
            path = f"/data/upload/1/0a1b2c3d-{file_name}"
            annotations = [{"id": 1, "was_cancelled": False, "result": result}]
            tasks.append({"id": len(tasks) + 1, "annotations": annotations, "data": {"image": path}})
        write_json(root / f"{name}.json", tasks)
    return root


def shape(name: str, points: Sequence[Sequence[float]], kind: str = "rectangle", **more: Any) -> dict[str, Any]:
    """Return a shape of labelme."""
    return {"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def labelme_tree(image_path: str | None, shapes: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return the tree of a json of labelme."""
    tree = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": None}
    return {**tree, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more}


def labelme(folder: Path, images: Mapping[str, Sequence[Any]], **more: Any) -> Path:
    """Write images and their json files next to them: shapes by stem."""
    for stem, shapes in images.items():
        image(folder / f"{stem}.jpg")
        write_json(folder / f"{stem}.json", labelme_tree(f"{stem}.jpg", shapes, **more))
    return folder


def via_region(label: str | dict[str, Any], **numbers: Any) -> dict[str, Any]:
    """Return a region of VIA: the attribute `class` or all attributes, and the shape, by default a rect."""
    attributes = label if isinstance(label, dict) else {"class": label}
    return {"shape_attributes": {"name": "rect", **numbers}, "region_attributes": attributes}


def via_tree(images: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations of VIA 2 for regions by file name."""
    return {
        f"{name}123": {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}
        for name, regions in images.items()
    }


def via_project(images: Mapping[str, Any]) -> dict[str, Any]:
    """Return a project of VIA 2 for regions by file name."""
    settings = {"ui": {}, "core": {"default_filepath": ""}, "project": {"name": "p"}}
    attributes = {"region": {"class": {"type": "text"}}, "file": {}}
    return {"_via_settings": settings, "_via_img_metadata": via_tree(images), "_via_attributes": attributes}


def write_via(datasets: Sequence[Dataset], out: Path) -> None:
    """Write a folder of images with the annotations of VIA for each list."""
    for dataset in datasets:
        names = {record.path: record.path.name for record in dataset.records}
        copy_images(dataset.records, out / dataset.split, names)
        tree = {}
        for record in dataset.records:
            boxes = zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
            regions = [
                via_region(dataset.names[label], x=x1, y=y1, width=x2 - x1, height=y2 - y1)
                for label, (x1, y1, x2, y2) in boxes
            ]
            tree[names[record.path]] = regions
        write_json(out / dataset.split / "via_region_data.json", via_tree(tree))


def cvat(file: Path, body: str, meta: str = "") -> Path:
    """Write an xml of CVAT; the body begins on line 4."""
    file.parent.mkdir(parents=True, exist_ok=True)
    head = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>\n<meta>{meta}</meta>'
    file.write_text(f"{head}\n{body}\n</annotations>\n", encoding="utf-8")
    return file


def cvat_image(name: str, shapes: str = "", **more: Any) -> str:
    """Return an image of an xml of CVAT."""
    attributes = {"id": 0, "name": name, "width": WIDTH, "height": HEIGHT, **more}
    texts = " ".join(f"{key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<image {texts}>\n{shapes}\n</image>"


def cvat_box(name: str, corners: Sequence[float], **more: Any) -> str:
    """Return a box of an xml of CVAT, with more attributes."""
    numbers = dict(zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True))
    texts = (
        f"{key}={quoteattr(str(value))}" for key, value in {"label": name, **numbers, **more}.items() if value != ""
    )
    return f'<box {" ".join(texts)} occluded="0"></box>'


def write_cvat(datasets: Sequence[Dataset], out: Path) -> None:
    """Write an xml of CVAT with a folder of images for each list."""
    for dataset in datasets:
        names = {record.path: record.path.name for record in dataset.records}
        copy_images(dataset.records, out / dataset.split / "images", names)
        images = []
        for record in dataset.records:
            boxes = zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
            shapes = "\n".join(cvat_box(dataset.names[label], box) for label, box in boxes)
            images.append(cvat_image(names[record.path], shapes))
        cvat(out / dataset.split / "annotations.xml", "\n".join(images))
