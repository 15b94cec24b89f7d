import re
from pathlib import Path

import pytest

from rcnn.cli.arguments import TRAINING, assignments, one_path, split
from rcnn.config import keys
from rcnn.config.aliases import ALIASES, SUGGESTIONS
from rcnn.errors import SettingsError


def test_a_word_with_an_existing_section_is_a_setting() -> None:
    assert split(["photos", "train.lr=1", "roi.nms=0.4"]) == (["photos"], ["train.lr=1", "roi.nms=0.4"])


@pytest.mark.parametrize("word", ["photos/*.jpg", "a=b", "holiday.x=1.jpg", "http://x/y.z=1", "train.lr"])
def test_other_words_are_paths(word: str) -> None:
    assert split([word]) == ([word], [])


def test_an_existing_file_takes_precedence_over_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split(["train.lr=1"]) == ([], ["train.lr=1"])
    Path("train.lr=1").touch()
    assert split(["train.lr=1"]) == (["train.lr=1"], [])


def test_a_misspelt_section_is_not_a_second_path() -> None:
    assert one_path(["data", "trian.lr=1"], "DATA") == (Path("data"), ["trian.lr=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a", "b"], "one DATA is expected, found 2: a, b"), (["train.lr=1"], "DATA is missing")],
)
def test_a_missing_or_second_path_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        one_path(words, "DATA")


def test_options_without_a_value_are_left_out() -> None:
    assert assignments({"data.on_fault": None, "train.seed": 0}) == ["train.seed=0"]


def test_names_from_other_programs_are_understood() -> None:
    words = ["data=shapes", "epochs=3", "imgsz=320", "conf=0.4", "batch_size=2"]
    settings = ["train.epochs=3", "imgsz=320", "predict.score=0.4", "train.batch=2"]
    assert split(words, TRAINING) == (["shapes"], settings)
    assert set(ALIASES.values()) <= set(keys())
    assert ALIASES.keys() >= TRAINING


def test_settings_that_a_command_does_not_read_are_refused() -> None:
    with pytest.raises(SettingsError, match="`epochs=3` is a setting of training"):
        split(["epochs=3"])
    assert split(["seed=1"], ("seed",)) == ([], ["train.seed=1"])


def test_names_without_an_exact_counterpart_get_a_suggestion() -> None:
    with pytest.raises(SettingsError, match=r"`fliplr=0.3`: .* did you mean `augment.flip`\?"):
        split(["fliplr=0.3"])
    settings = [name for name in SUGGESTIONS.values() if re.match(r"\w+\.\w+(=|$)", name)]
    assert {name.partition("=")[0] for name in settings} <= set(keys())
    assert len(settings) + 4 == len(SUGGESTIONS)
    assert not SUGGESTIONS.keys() & ALIASES.keys()
