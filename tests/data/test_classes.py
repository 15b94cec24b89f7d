"""The setting `data.classes` selects, renames and merges classes, in every format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.config import Data, Settings, override, read, to_yaml
from rcnn.data.classes import new_names
from rcnn.data.convert import convert
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import FORMATS, open_dataset, open_splits
from rcnn.errors import DataError, SettingsError
from tests.data import sets

NAMES = ("bird", "cat", "dog")
BOXES = {"bird": (4, 4, 14, 14), "cat": (10, 10, 30, 30), "dog": (20, 5, 50, 35)}
WRITERS = [name for name, module in FORMATS.items() if hasattr(module, "write")]


@pytest.fixture(params=WRITERS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A set in each format that is written: one image with three classes, one with two of them."""
    objects = {name: [(name, BOXES[name])] for name in NAMES}
    images = {"a": [*objects["bird"], *objects["cat"], *objects["dog"]], "b": [*objects["cat"], *objects["dog"]]}
    source = open_dataset(sets.voc(tmp_path / "voc", images, {"train": ["a", "b"], "val": ["a"]}), "train")
    convert([source, open_dataset(tmp_path / "voc", "val")], request.param, tmp_path / "set")
    return tmp_path / "set"


def names_of(dataset: Dataset) -> list[list[str]]:
    return [sorted(dataset.names[label] for label in record.labels) for record in dataset.records]


@pytest.mark.parametrize(
    ("choice", "names", "found"),
    [
        (["dog", "bird"], ("dog", "bird"), [["bird", "dog"], ["dog"]]),
        ({"bird": None}, ("cat", "dog"), [["cat", "dog"], ["cat", "dog"]]),
        ({"cat": "pet", "dog": "pet"}, ("bird", "pet"), [["bird", "pet", "pet"], ["pet", "pet"]]),
        ({"cat": "dog"}, ("bird", "dog"), [["bird", "dog", "dog"], ["dog", "dog"]]),
        ({"cat": "pet", "*": None}, ("pet",), [["pet"], ["pet"]]),
        ({"dog": "dog", "*": None}, ("dog",), [["dog"], ["dog"]]),
    ],
)
def test_classes_are_selected_renamed_and_merged(
    data: Path, choice: Any, names: tuple[str, ...], found: list[list[str]]
) -> None:
    train, val = open_splits(data, Data(classes=choice))
    assert (train.names, val.names) == (names, names)
    assert len(train.category_ids) == len(set(train.category_ids)) == len(names)
    assert (names_of(train), names_of(val)) == (found, found[:1])
    assert not train.faults


def test_the_boxes_of_the_other_classes_stay_as_they_are(data: Path) -> None:
    everything, chosen = open_dataset(data, "train"), open_dataset(data, "train", Data(classes=("dog",)))
    for whole, part in zip(everything.records, chosen.records, strict=True):
        assert part.boxes.tolist() == whole.boxes[whole.labels == everything.names.index("dog")].tolist()
        assert part.name == whole.name


def test_the_classes_of_a_model_are_found_under_their_new_names(data: Path) -> None:
    dataset = open_dataset(data, "val", Data(classes={"cat": "pet", "dog": "pet", "bird": None}), names=["fish", "pet"])
    assert (dataset.names, names_of(dataset), dataset.faults) == (("fish", "pet"), [["pet", "pet"]], ())
    with pytest.raises(DataError, match=r"`bird` is not among the classes pet; data\.classes renames classes and"):
        open_dataset(data, "val", Data(classes={"cat": "pet", "dog": "pet"}), names=["pet"])


def test_category_ids_are_those_of_the_data(tmp_path: Path) -> None:
    ids = {"bird": 7, "cat": 3, "dog": 12}
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": [(name, (1, 1, 9, 9)) for name in ids]}}, ids)
    dataset = open_dataset(root, "all", Data(classes={"cat": "pet", "dog": "bird"}))
    assert (dataset.names, dataset.category_ids) == (("pet", "bird"), (3, 7))
    assert "category ids become labels 0 to 1 in this order: 3 pet, 7 bird" in dataset.notes


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["dgo"], "data.classes names `dgo`, but the classes are bird, cat, dog; did you mean `dog`?"),
        ({"fish": "pet", "cta": None}, "names `fish`, `cta`, but the classes are bird, cat, dog; did you mean `cat`?"),
        (dict.fromkeys(NAMES), "data.classes leaves out all classes: bird, cat, dog"),
    ],
)
def test_a_class_that_the_data_lack_is_named_with_a_similar_one(data: Path, choice: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_splits(data, Data(classes=choice))
    assert message in str(caught.value)


def test_a_fault_of_a_class_that_is_left_out_does_not_count(tmp_path: Path) -> None:
    images = {"a": [("dog", (5, 5, 20, 20)), ("cat", (20, 20, 5, 5))]}
    root = sets.voc(tmp_path / "d", images)
    with pytest.raises(DataError, match="inverted"):
        open_dataset(root, "all")
    assert not open_dataset(root, "all", Data(classes=("dog",))).faults


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{MP1: [a, b]}", "`MP1` is given several names, a, b; give one"),
        ("{a: b, a: c}", "`a` occurs twice"),
        ("{a: b, b: a}", "a class can't get its own name back: a -> b -> a"),
        ("{a: b, b: c, c: a}", "a class can't get its own name back: a -> b -> c -> a"),
        ("{a: b, b: c}", "`a` is renamed to `b`, which is renamed to `c` itself; write {a: c}"),
        ("{a: b, b: null}", "`a` is renamed to `b`, which is left out itself; write {a: null}"),
        ("{'*': thing}", "`*` stands for all other classes, and its value can only be null"),
        ("[cat, cat]", "`cat` occurs twice"),
        ("[cat, no]", "YAML reads a name as False"),
        ("[]", "at least 1 item"),
        ("{}", "at least 1 item"),
        ("cat", "give a list such as [cat, dog], or a mapping"),
        ("['']", "'' is not the name of a class"),
        ('["a\\nb"]', "has a line end or another control character in it"),
        ("[1.5]", "1.5 is not the name of a class"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(value: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        override(Settings(), [f"data.classes={value}"])
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["[cat, dog]", "{MP1: Microplastic, 2: Microplastic, '*': null}", "[0, 1]"])
def test_the_setting_is_kept_in_config_yaml(value: str, tmp_path: Path) -> None:
    settings = override(Settings(), [f"data.classes={value}"])
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    assert read(tmp_path / "config.yaml") == settings != Settings()


def test_a_mapping_replaces_another_one() -> None:
    settings = override(override(Settings(), ["data.classes={a: b}"]), ["data.classes={c: d}"])
    assert settings.data.classes == {"c": "d"}


@given(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1), st.sets(st.sampled_from("abcdef")))
def test_a_list_is_a_mapping_that_leaves_out_the_others(own: Sequence[str], chosen: set[str]) -> None:
    mapping = {name: name for name in chosen} | {"*": None}
    assert new_names(own, sorted(chosen)) == new_names(own, mapping)
