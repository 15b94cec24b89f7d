"""Hostile YAML that is refused, its error messages, and YAML that is accepted."""

import pytest

from rcnn.config.yaml_tree import MalformedYaml, load

TENS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
MERGES = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}\n" for i in range(1, 9))
HOSTILE = {
    "lists of aliases": ("a0: &a0 [x, x]\n" + TENS, "more than 1,000,000 values once aliases are expanded"),
    "merged aliases": ("a0: &a0 {x: 1}\n" + MERGES, "more than 1,000,000 values once aliases are expanded"),
    "itself": ("a: &a [*a]", "`[*]a` contains itself"),
    "deep flow": ("[" * 1500, "nested more than 100 deep"),
    "deep blocks": ("- " * 1500 + "a", "nested more than 100 deep"),
    "many values": ("- a\n" * 100_001, "more than 100,000 values"),
    "long": ("# " + "a" * 1_000_000, "1,000,002 characters are more than 1,000,000"),
    "a key twice": ("a: 1\nb: 2\na: 3", "the key `a` occurs twice, first on line 1, with different values"),
    "no yaml": ("a: [1", "expected ',' or ']'"),
    "a zero byte": ("a\0", "unacceptable character #x0000"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
}
VALUES = {
    "no date": ("x: 2001-99-99", "month must be in 1..12"),
    "base 60": ("x: 1" + ":1" * 300_000, "a number has more than 400 digits"),
    "digits": ("x: " + "1" * 5000, "a number has more than 400 digits"),
    "an object": ("!!python/object:os.system {}", "could not determine a constructor"),
    "an unhashable key": ("? [a]\n: 1", "unhashable"),
    "no number": ("x: !!int abc", "invalid literal"),
    "no boolean": ("x: !!bool abc", "a value has no meaning"),
    "no time": ("x: !!timestamp abc", "a value has no meaning"),
}


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize(("text", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_text_is_refused(text: str, reason: str, as_text: bool) -> None:
    with pytest.raises(MalformedYaml, match=reason):
        load(text, as_text=as_text)


@pytest.mark.parametrize(("text", "reason"), VALUES.values(), ids=VALUES)
def test_a_value_without_meaning_is_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedYaml, match=reason):
        load(text)


def test_the_error_has_the_line() -> None:
    with pytest.raises(MalformedYaml) as error:
        load("a: 1\nb: 2\na: 3")
    assert error.value.line == 3


def test_anchors_and_merge_keys_are_expanded() -> None:
    assert load("a: &a {x: 1, y: [2.5, no]}\nb: {<<: *a, x: 3}\nc: *a") == {
        "a": {"x": 1, "y": [2.5, False]},
        "b": {"x": 3, "y": [2.5, False]},
        "c": {"x": 1, "y": [2.5, False]},
    }


def test_scalars_can_be_read_as_text() -> None:
    assert load("[no, 12, 1e3, 2001-99-99]", as_text=True) == ["no", "12", "1e3", "2001-99-99"]


def test_keys_repeated_with_equal_values_are_reported() -> None:
    repeated: list[str] = []
    assert load("a: [1, {b: c}]\nb: 2\na: [1, {b: c}]", repeated=repeated) == {"a": [1, {"b": "c"}], "b": 2}
    assert repeated == ["the key `a` occurs twice, first on line 1, with the same value"]
