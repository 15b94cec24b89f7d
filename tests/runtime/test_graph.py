import ast
import json
from pathlib import Path
from typing import Any

import pytest

from rcnn.errors import WeightsError
from rcnn.runtime.graph import ENTRY, FileMetadata, entries, read_entries
from tests.runtime import graphs


def test_entries_are_read_as_they_were_written() -> None:
    one = graphs.detector()
    one.summary["epoch"] = 4
    read = read_entries(entries(one, (64, 96), {"images": 6}), "a.onnx")
    for name in ("settings", "names", "category_ids", "threshold", "summary", "licence"):
        assert getattr(read, name) == getattr(one, name), name
    assert (read.size, read.parity) == ((64, 96), {"images": 6})
    read = read_entries(entries(one), "a.onnx")
    assert (read.size, read.parity) == (None, {})


def test_other_programs_read_names_and_sizes() -> None:
    found = entries(graphs.detector("preprocess.multiple=16"))
    assert json.loads(found["names"]) == {"0": "circle", "1": "square"}
    assert ast.literal_eval(found["names"]) == json.loads(found["names"])
    assert json.loads(found["imgsz"]) == [64, 96]
    assert (found["stride"], found["task"]) == ("16", "detect")
    assert json.loads(entries(graphs.detector(), (128, 160))["imgsz"]) == [128, 160]


def test_folders_of_this_machine_are_not_written() -> None:
    assert "home" not in entries(graphs.detector("data.path=/home/me/cells"))[ENTRY]


def changed(**changes: Any) -> dict[str, str]:
    found = entries(graphs.detector())
    return {**found, ENTRY: json.dumps({**json.loads(found[ENTRY]), **changes})}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"names": "{0: 'person'}"},
            r"^a.onnx: is a file of another program \(written by pytorch 2.8\): it has no `rcnn`",
        ),
        ({ENTRY: "{"}, "a.onnx is damaged: its `rcnn` entry is not the JSON that was written"),
        ({ENTRY: "[" * 100_000}, "a.onnx is damaged"),
        ({ENTRY: "[1]"}, "a.onnx is damaged"),
        ({ENTRY: "{}"}, "a.onnx is damaged"),
        ({ENTRY: '{"interface": NaN}'}, "a.onnx is damaged"),
        (changed(interface=2), "has inputs and outputs of version 2, this version of rcnn runs 1; export the detector"),
        (changed(interface="9" * 1000), r"of version 9{80}\.\.\., this"),
        (changed(settings=3), "holds a graph, but not a detector of this version of rcnn"),
        (changed(settings={"modle": {}}), "unknown setting `modle`; did you mean `model`"),
        (changed(settings={"model": {"backbone": "timm/hf-hub:a/b"}}), "addresses and paths are not opened"),
        (changed(names=["a"]), "2 category ids for 1 classes"),
        (changed(size=[64]), "holds a graph, but not a detector"),
        (changed(size=[64, 10**9]), "less than or equal to 16384"),
        (changed(size=[64, 90]), r"the sides are multiples of 32 \(got 64 x 90\)"),
        (changed(threshold=2), "less than or equal to 1"),
    ],
)
def test_entries_that_no_detector_has_are_refused(found: dict[str, str], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_entries(found, Path("a.onnx"), "pytorch 2.8")


def test_entries_of_later_versions_are_ignored() -> None:
    assert isinstance(read_entries(changed(colour="blue"), "a.onnx"), FileMetadata)
