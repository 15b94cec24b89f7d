import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rcnn.config import Settings, dump, keys, override, parse_override, read, to_yaml, validate
from rcnn.errors import SettingsError
from rcnn.presets import PRESETS, settings_of


@pytest.mark.parametrize("preset", PRESETS)
def test_written_settings_are_read_back(preset: str, tmp_path: Path) -> None:
    changes = {"train": {"lr": 1e-3, "ema": None}, "data": {"path": "12"}}
    settings = settings_of(preset, changes)
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    assert read(tmp_path / "config.yaml") == settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.lr=1e-3", 0.001),
        ("train.lr=.5", 0.5),
        ("anchors.sizes=[[1e1], [2e1]]", [[10.0], [20.0]]),
        ("train.clip=null", None),
        ("data.path=a=b", "a=b"),
        ("train.init=none", "none"),
        ("data.path='12'", "12"),
    ],
)
def test_values_are_yaml_in_which_1e_3_is_a_number(text: str, value: object) -> None:
    section, _, key = text.partition("=")[0].partition(".")
    assert parse_override(text) == {section: {key: value}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.lrr=1", "unknown setting `train.lrr`; did you mean `train.lr`?"),
        ("trian.lr=1", "unknown setting `trian`; did you mean `train`?"),
        ("rpn.lamda=1", "did you mean `rpn.lambda`?"),
        ("train.epochs=0", "`train.epochs`: .* greater than or equal to 1 .*got 0"),
        ("train.lr=.nan", "`train.lr`"),
        ("train.ema=1", "`train.ema`"),
        ("data.on_fault=perhaps", "`data.on_fault`.*'stop' or 'skip'"),
        ("anchors.sizes=[[32]]", "anchors.sizes has 1 levels .* model.levels has 4"),
        ("anchors.sizes=[[32],[64],[128],[256,512]]", "anchors.sizes must have equally many sizes on every level"),
        ("roi.levels=[2,3]", r"roi.levels names .2., but the backbone's levels are .3, 4, 5, 6."),
        ("rpn.kernel=4", r"`rpn.kernel`: 1, 3, 5 or 7, or a list of 2 to 16 of these .got 4.$"),
        ("rpn.kernel=[3,5,7]", r"rpn.kernel=.3, 5, 7. divides .* anchors.sizes is .*; give every level 3 sizes or"),
        ("preprocess.in_channels=4", "mean has 3 numbers for 4 channels; give 1 or 4$"),
        ("preprocess.in_channels=1", "mean has 3 numbers for 1 channel; give 1$"),
        ("train.lr", "not of the form section.key=value"),
        ("train.lr=[1", "the value is not YAML"),
    ],
)
def test_a_wrong_setting_is_explained(change: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        override(Settings(), [change])


def test_all_wrong_settings_are_reported_together() -> None:
    with pytest.raises(SettingsError) as caught:
        validate({"train": {"lr": -1, "epoch": 3}, "data": {"holdout": 2}})
    assert len(str(caught.value).splitlines()) == 3


def test_settings_are_frozen_and_every_one_is_described() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().train.lr = 1  # type: ignore[misc]
    assert len(set(keys())) == len(list(keys()))
    for section in Settings.model_fields.values():
        fields = section.annotation.model_fields  # type: ignore[union-attr]
        assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "expected sections"), ("a: [", "can't be read"), (None, "can't")]
)
def test_a_file_without_settings_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=rf"config\.yaml.*{message}"):
        read(file)


def bounds() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and schema of every number and list of the settings, including those inside lists."""

    def below(name: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if schema.get("type") in ("integer", "number", "array") and "enum" not in schema:
            yield name, schema
        for part in (*schema.get("anyOf", ()), *schema.get("prefixItems", ()), schema.get("items")):
            if isinstance(part, dict):
                yield from below(name, part)

    whole = Settings.model_json_schema()
    for section, entry in whole["properties"].items():
        for key, schema in whole["$defs"][entry["$ref"].rsplit("/", 1)[1]]["properties"].items():
            yield from below(f"{section}.{key}", schema)


def test_every_number_and_list_has_an_upper_bound_far_above_the_presets() -> None:
    used: dict[str, list[Any]] = {}
    for preset in PRESETS:
        for section, entries in dump(settings_of(preset)).items():
            for key, value in entries.items():
                used.setdefault(f"{section}.{key}", []).append(value)
    for name, schema in bounds():
        limits = {"maximum", "exclusiveMaximum", "maxItems"} & schema.keys()
        assert limits, f"{name} has no upper bound"
        largest = schema[limits.pop()]
        if schema["type"] == "array":
            lengths = [len(value) for value in used[name] if isinstance(value, list)]
            assert "prefixItems" in schema or largest >= 4 * max(lengths, default=1)
        elif largest > 1 and name != "model.frozen_stages":  # shares, and counts with a natural maximum, are skipped
            numbers = [value for value in map(_largest, used[name]) if value is not None]
            assert largest >= 4 * max(numbers, default=1) or name in ("model.levels", "roi.levels", "data.workers")


def _largest(value: Any) -> float | None:
    if isinstance(value, list):
        return max(filter(None, map(_largest, value)), default=None)
    return value if isinstance(value, int | float) else None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"backbone": "timm/hf-hub:user/x"}},
            "`model.backbone`: timm/ must be followed .*addresses and paths",
        ),
        ({"model": {"backbone": "timm/local-dir:/home"}}, "`model.backbone`: timm/ must be followed"),
        ({"model": {"backbone": "timm/../x"}}, "`model.backbone`: timm/ must be followed"),
        ({"model": {"channels": 10**6}}, "`model.channels`: .*less than or equal to 16384 .got 1000000"),
        ({"roi": {"size": 10**4}}, "`roi.size`: .*less than or equal to 64 "),
        ({"roi": {"detections": 10**9}}, "`roi.detections`: .*less than or equal to 10000 "),
        ({"preprocess": {"long": 16_385}}, "`preprocess.long`: .*less than or equal to 16384 "),
        ({"preprocess": {"multiple": 10**6}}, "`preprocess.multiple`: .*less than or equal to 1024 "),
        ({"predict": {"scales": [1.0] * 10**5}}, "`predict.scales`: .*at most 16 items"),
        ({"predict": {"scales": [8]}, "preprocess": {"long": 16_384}}, "predict.scales times .* the maximum is 16,384"),
        ({"anchors": {"sizes": [[32.0] * 10**5]}}, "`anchors.sizes.0`: .*at most 64 items"),
        ({"anchors": {"ratios": [-1.0] * 10**5}}, "`anchors.ratios"),
        ({"model": {"levels": [10**18]}}, "`model.levels.0`: .*less than or equal to 12 "),
        ({"train": {"x" * 10**6: 1}}, "unknown setting `train.xxx"),
        ({"train": {str(n): 1 for n in range(10**5)}}, "unknown setting `train.0`(.*\n)*and 99,980 more"),
        ({"train": {"epochs": "9" * 10**6}}, "`train.epochs`"),
    ],
)
def test_absurd_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        validate(change)
    assert len(str(caught.value)) < 10_000


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 1500, "nested more than 100 deep"),
        ("train:\n  epochs: 2001-99-99", "a value has no meaning"),
        (BOMB, "1,000,000"),
        ("train: {lr: 1, lr: 2}", "twice"),
        ("# " + "x" * 2_000_000, "2 MB are too many"),
        ("train: \udcff", "can't decode byte 0xff"),
    ],
    ids=["deep", "date", "bomb", "repeated", "large", "latin-1"],
)
def test_files_of_hostile_yaml_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(SettingsError, match=rf"config\.yaml.*can't be read as settings.*{message}"):
        read(file)


@pytest.mark.parametrize("value", ["[" * 1500, "2001-99-99", "{a: " * 1500, "!!python/name:os.system", "*x", "\x00"])
def test_hostile_values_are_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="the value is not YAML"):
        parse_override(f"train.epochs={value}")


def test_a_pipe_is_refused_as_a_file_of_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(SettingsError, match=r"config\.yaml: can't be read as settings: this is not a regular file"):
        read(tmp_path / "config.yaml")


@pytest.mark.parametrize("value", ["off", "auto"])
def test_off_is_read_as_a_word(value: str) -> None:
    assert override(Settings(), [f"anchors.fit={value}"]).anchors.fit == value


def test_imgsz_scales_the_longer_side_too() -> None:
    sides = override(settings_of("mobilenet-fpn"), ["imgsz=1024", "train.epochs=3"]).preprocess
    assert (sides.short, sides.long) == (1024, 1755)  # 448 and 768 at first
    assert override(Settings(), ["imgsz=1024", "preprocess.long=1024"]).preprocess.long == 1024


@pytest.mark.parametrize("size", ["", "0", "640,480", "-3", "320.5", "1e3"])
def test_a_size_is_one_whole_number(size: str) -> None:
    with pytest.raises(SettingsError, match="give one whole number"):
        override(Settings(), [f"imgsz={size}"])


def test_suggestions_for_unknown_settings_prefer_meaning_to_spelling() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting `train\.callbacks`; did you mean `recorders="):
        override(Settings(), {"train": {"callbacks": [print]}})
    with pytest.raises(SettingsError, match=r"`train.lr0`; did you mean `train.lr`\?"):
        override(Settings(), ["train.lr0=1"])
