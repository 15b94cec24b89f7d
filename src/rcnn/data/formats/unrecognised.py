"""Say what lies at a path where no data set was recognised, which format that is nearest to, and what it lacks.

`RULES` is the list to extend: the first rule that has a sentence for what is there is followed.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rcnn.data.formats import csv_labels
from rcnn.data.formats.table_rows import first_rows
from rcnn.images.sources import is_image, is_results
from rcnn.images.storage import Location, read_start, scan

MAX_INSPECTED = 5
"""Maximum number of files for each rule, and of folders, that are inspected."""

HEAD_BYTES = 1 << 16
"""Number of bytes at the start of a file in which patterns are looked for."""

LOOKED_FOR = (
    "VOC (Annotations/*.xml, or xml next to images), COCO (annotations/*.json), YOLO (data.yaml, or labels/*.txt), "
    "labelme (json next to images), VIA (*.json or *.csv), CVAT (annotations.xml), "
    "tables (*.csv with a header), Open Images, Label Studio (json) and Hugging Face (metadata.jsonl)"
)
COLUMNS = "filename, class, xmin, ymin, xmax, ymax"


@dataclass
class Seen:
    """What lies at a path.

    Attributes:
        folder: the folder, or that of a file that was given itself.
        files, folders: the sorted names of what is in the folder, or the name of the file.
        recognises: whether a data set is recognised at another path.
        is_file: whether a file was given.
    """

    folder: Location
    files: Sequence[str]
    folders: Sequence[str]
    recognises: Callable[[Location], bool]
    is_file: bool = False
    _starts: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Location, recognises: Callable[[Location], bool]) -> "Seen":
        """Look at a path."""
        if path.is_file():
            return cls(path.parent, [path.name], [], recognises, is_file=True)
        with scan(path) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        files, folders = ([name for name, is_folder in found if is_folder == kind] for kind in (False, True))
        return cls(path, files, folders, recognises)

    def inside(self, name: str) -> "Seen":
        """Look into a folder, which seems empty if it can't be read."""
        try:
            return self.at(self.folder / name, self.recognises)
        except OSError:
            return Seen(self.folder / name, (), (), self.recognises)

    def start(self, name: str) -> bytes:
        """Return the first bytes of a file; none if it can't be read."""
        if name not in self._starts:
            try:
                self._starts[name] = read_start(self.folder / name, HEAD_BYTES)
            except OSError:
                self._starts[name] = b""
        return self._starts[name]

    def ending(self, *suffixes: str) -> list[str]:
        """Return the names of the first files with some suffixes."""
        return [*islice((name for name in self.files if name.lower().endswith(suffixes)), MAX_INSPECTED)]

    def images(self) -> Iterator[str]:
        """Yield the names of the images."""
        return filter(is_image, self.files)


@dataclass(frozen=True)
class Content:
    """A rule about files with a name and a content.

    Attributes:
        name: what matches the entire name, in lower case.
        sentence: what to do about such a file, whose name replaces `{}`.
        has: patterns that all occur in the beginning of the file.
    """

    name: str
    sentence: str
    has: tuple[str, ...] = ()

    def __call__(self, seen: Seen) -> str | None:
        """Return the sentence if there is such a file."""
        named = (name for name in seen.files if re.fullmatch(self.name, name.lower()))
        for name in islice(named, MAX_INSPECTED):
            if all(re.search(pattern.encode(), seen.start(name)) for pattern in self.has):
                return self.sentence.replace("{}", f"`{name}`")
        return None


def explain(path: Location, recognises: Callable[[Location], bool]) -> str:
    """Return the message for a path where no data set is recognised.

    Args:
        path: a file, or a folder that can be read.
        recognises: whether a data set is recognised at another path.
    """
    seen = Seen.at(path, recognises)
    sentence = next(filter(None, (rule(seen) for rule in RULES)), None)
    if seen.is_file:
        return f"{path}: not a data set. {sentence or f'There are readers for {LOOKED_FOR}.'}"
    entries = [*seen.files, *seen.folders]
    if not entries:
        return f"{path}: the folder is empty"
    shown = ", ".join(sorted(entries)[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")
    return f"{path}: no data set is recognised here. Found: {shown}. {sentence or f'Looked for {LOOKED_FOR}.'}"


def results(seen: Seen) -> str | None:
    """Return what a folder is that this program has written."""
    return "These are results of rcnn, not data." if not seen.is_file and is_results(seen.folder) else None


def data_set_inside(seen: Seen) -> str | None:
    """Return which folder to give if a folder in it is a data set."""
    inside = (seen.folder / name for name in seen.folders[: 2 * MAX_INSPECTED])
    found = [str(folder) for folder in islice(filter(seen.recognises, inside), 2)]
    return f"There is a data set in the folder {' and one in '.join(found)}; give {found[0]}." if found else None


def table(seen: Seen) -> str | None:
    """Return what the first table lacks whose header does not name the columns."""
    tables = list[tuple[int, str, Sequence[str]]]()
    for name in seen.ending(*csv_labels.SUFFIXES):
        if not seen.start(name):
            continue
        if seen.start(name).startswith((b"\xff\xfe", b"\xfe\xff")):
            return f"{name} is UTF-16 text; save it as UTF-8."
        heads = [first_rows(seen.folder / name, delimiter) for delimiter in csv_labels.DELIMITERS]
        header = max((head[0] for head in heads if head), key=len, default=[])
        tables.append((len(header), name, header))
    widest = max(tables, key=lambda table: table[0], default=None)  # others may name classes, or list images
    return widest and _columns(*widest[1:])


def _columns(name: str, header: Sequence[str]) -> str:
    """Return what the columns of a table lack."""
    names = {cell.lower().replace(" ", "_") for cell in header}
    found = f"{', '.join(header):.200}"
    has_sizes = {"w", "width"} & names and {"h", "height"} & names and {"x", "xmin", "x_min", "left", "x1"} & names
    if has_sizes or any("bbox" in name for name in names):
        return (
            f"The boxes of {name} can't be told from its columns, {found}: x and y may be a corner or the middle. Give "
            f"the corners: {COLUMNS}, with xmax = xmin + width if x and y are the top left corner."
        )
    if csv_labels.QUADRILATERAL & names:
        return f"{name} has the corners of quadrilaterals: {found}. It must have the columns {COLUMNS}."
    other = "or others with these meanings such as image_path, label, x1, y1, x2, y2"
    return (
        f"The first line of {name} must name the columns {COLUMNS}, {other}, separated by commas, semicolons or tabs; "
        f"found {found or 'nothing'}."
    )


def labels_without_images(seen: Seen) -> str | None:
    """Return where images belong if there are label files of YOLO, none of which has the name of an image."""
    named = [name for name in seen.folders if name.startswith(("label", *_SPLITS))]
    for inner in (seen, *map(seen.inside, named[:MAX_INSPECTED])):
        row = next((name for name in inner.ending(".txt") if _YOLO.match(inner.start(name))), None)
        if row is not None:
            image = f"{os.path.splitext(row)[0]}.jpg"
            return (
                f"{inner.folder} holds label files of YOLO such as {row}, and no image has the name of one: put "
                f"{image} next to it, or into `images` next to the folder `labels`."
            )
    return None


_SPLITS = ("train", "val", "test")
_YOLO = re.compile(rb"\s*\d+(\s+[-+.\deE]+){4}\s*(\n|$)")


def empty_annotations(seen: Seen) -> str | None:
    """Return what a folder of annotations lacks if there are none in it."""
    for name in (name for name in seen.folders if name.lower().startswith("annot")):
        inner = seen.inside(name)
        if not inner.ending(".xml", ".json", *csv_labels.SUFFIXES):
            found = ", ".join([*inner.files[:3], *inner.folders[:3]]) or "nothing"
            return f"{name} must hold an xml for each image (VOC) or a json (COCO); found {found}."
    return None


def other_xml(seen: Seen) -> str | None:
    """Return what is in an xml, of which a folder with images is needed."""
    for name in seen.ending(".xml"):
        root = re.search(rb"<([A-Za-z][\w:.-]*)", seen.start(name))
        if root and root[1] == b"annotation":
            return f"{name} is the annotation of one image; give its folder."
        if root:
            return f"{name} contains <{root[1].decode()}>; an annotation of VOC is an <annotation>, one for each image."
    return None


def other_json(seen: Seen) -> str | None:
    """Return the keys of a json of an unknown tool."""
    for name in seen.ending(".json"):
        keys = list(dict.fromkeys(key.decode(errors="replace") for key in _JSON_KEY.findall(seen.start(name))))[:8]
        expected = "a COCO json has `images`, `annotations` and `categories`"
        return f"{name} has the keys {', '.join(keys) or 'of no object'}; {expected}."
    return None


_JSON_KEY = re.compile(rb'"([^"\\\n]{1,40})"\s*:')


def images_by_class(seen: Seen) -> str | None:
    """Return what folders of images lack that are meant for classification."""
    inner = map(seen.inside, seen.folders[:MAX_INSPECTED])
    holds = [next(folder.images(), None) is not None for folder in inner]
    if len(holds) < 2 or not all(holds) or next(seen.images(), None) is not None:
        return None
    return "There are folders of images and no boxes, as for classification; a detector needs the box of each object."


def images_alone(seen: Seen) -> str | None:
    """Return that images have no labels, and whether they are those of a data set in the folder above."""
    if next(seen.images(), None) is None or seen.is_file:
        return None
    alone = "The images here have no annotations next to them."
    above = seen.folder.absolute().parent if isinstance(seen.folder, Path) else None
    try:
        promising = above is not None and any(map(_PROMISING.match, os.listdir(above)))
    except OSError:
        promising = False
    if above is not None and promising and seen.recognises(above):
        return f"{alone} There is a data set in the folder above; give {above}"
    return f"{alone} Looked for {LOOKED_FOR}."


_PROMISING = re.compile(r"annot|label|data\.y|.*\.(csv|json|jsonl|xml)$", re.IGNORECASE)
"""Names beside a folder of images that lead to a search of the folder above, which may hold anything."""

Rule = Callable[[Seen], str | None]
RULES: tuple[Rule, ...] = (
    results,
    data_set_inside,
    Content(
        r".*\.json",
        "{} is CreateML's, with the middle and the size of each box: export the data as COCO or VOC.",
        (r'"coordinates"\s*:', r'"annotations?"\s*:'),
    ),
    Content(
        r".*\.json",
        "{} has results of a detector in the form of COCO, not labels: give the json with `images` and `annotations`.",
        (r'"image_id"\s*:', r'"score"\s*:'),
    ),
    Content(r".*\.json", "{} is Supervisely's: export the project as COCO or VOC.", (r'"classTitle"\s*:',)),
    Content(r".*\.json", "{} is of BDD100K or Scalabel: convert it to COCO.", (r'"box2d"\s*:',)),
    Content(r".*\.json", "{} is Labelbox's: convert it to COCO.", (r'"data_row"\s*:|"Labeled Data"\s*:',)),
    Content(r".*\.json|.*\.vott", "{} is VoTT's: export the project as VOC.", (r'"asset"\s*:|"assets"\s*:',)),
    table,
    Content(
        r".*\.data",
        "{} is darknet's, and must name files that exist: `train`, a list of images, and `names`, a class per line.",
        (r"(?m)^\s*names\s*=",),
    ),
    labels_without_images,
    Content(r".*\.(zip|tar|tgz|gz|bz2|xz|7z|rar)", "{} is an archive: unpack it and give the folder."),
    Content(
        r".*\.(tfrecords?|record)(-\d+-of-\d+)?",
        "{} is a TFRecord, with images and labels in one file: export the data as COCO or VOC, or write the images out "
        f"with a csv that has the columns {COLUMNS}.",
    ),
    Content(
        r".*\.(parquet|arrow)",
        "{} is a table with the images in it: save them, with a metadata.jsonl that has a line for each image: "
        '{"file_name": "a.jpg", "objects": {"bbox": [[x, y, width, height]], "categories": ["cat"]}}.',
    ),
    Content(r".*\.mat", f"{{}} is MATLAB's: write its boxes into a csv with the columns {COLUMNS}."),
    empty_annotations,
    other_xml,
    Content(
        r".*\.jsonl",
        "The lines of {} must have the keys `file_name` and `objects`, as a metadata.jsonl of Hugging Face has.",
    ),
    other_json,
    Content(r".*\.ya?ml", "{} names no classes; a data.yaml of YOLO has `train` and `names`."),
    images_by_class,
    images_alone,
)
"""The rules, nearest formats first."""
