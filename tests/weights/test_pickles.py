"""Pickles are checked before they are read: pickles of weights pass, those that need too much are refused."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.weights.pickles import MAX_DEPTH, MAX_LETTERS, MAX_NAME_LETTERS, check_pickle, check_torch_file


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_pass(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "args": {"lr": [(1, (2, (3,)))]}}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    check_torch_file(tmp_path / "a.pth")


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = (value, 1)
    return value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tuples_may_be_nested_only_so_deep(protocol: int) -> None:
    check_pickle(pickle.dumps({"a": [nested(MAX_DEPTH)] * 50}, protocol))
    with pytest.raises(ValueError, match="deeper"):
        check_pickle(pickle.dumps({"a": [nested(MAX_DEPTH + 1)]}, protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [list, tuple, lambda pair: dict(enumerate(pair)), lambda pair: OrderedDict(a=pair)])
def test_values_that_are_small_only_in_the_pickle_are_refused(protocol: int, kind: Callable[[Any], Any]) -> None:
    def doubled(times: int, count: int) -> object:
        value: object = 0
        for _ in range(times):
            value = kind([value] * count)
        return value

    check_pickle(pickle.dumps({"a": doubled(10, 2)}, protocol))
    for times, count in ((16, 4), (3, 200)):
        with pytest.raises(ValueError, match="more often"):
            check_pickle(pickle.dumps({"a": doubled(times, count)}, protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_values_that_contain_themselves_or_a_long_text_often_are_refused(protocol: int) -> None:
    itself: list[object] = [1]
    itself.append([2, itself])
    with pytest.raises(ValueError, match="more often"):
        check_pickle(pickle.dumps(itself, protocol))
    long = "a" * (MAX_LETTERS // 1000)
    check_pickle(pickle.dumps([long] * 900, protocol), MAX_LETTERS)
    check_pickle(pickle.dumps([long] * 1100, protocol))
    with pytest.raises(ValueError, match="more often"):
        check_pickle(pickle.dumps([long] * 1100, protocol), MAX_LETTERS)


def test_a_value_that_grows_after_it_was_used_is_measured_at_its_final_size() -> None:
    grown = b"\x80\x02]q\x002(" + b"K\x01" * 1001 + b"e"  # stored, used twice, and filled later
    with pytest.raises(ValueError, match="more often"):
        check_pickle(grown + b"](" + b"h\x00" * 1000 + b"e.")


def test_a_value_that_contains_large_parts_often_is_measured_in_seconds() -> None:
    large = list(range(400_000))
    with pytest.raises(ValueError, match="more often"):
        check_pickle(pickle.dumps([large] * 100_000, 2))


def test_only_named_functions_may_be_called() -> None:
    for called in (b"]", b"X\x01\x00\x00\x00a", b"ctorch\n" + b"a" * MAX_NAME_LETTERS + b"\n"):
        with pytest.raises(pickle.UnpicklingError):
            check_pickle(b"\x80\x02" + called + b")R.")
    check_pickle(b"\x80\x02ctorch\nSize\nq\x000h\x00)R.")  # from the memo


def test_several_pickles_of_a_file_are_read_one_by_one() -> None:
    file = io.BytesIO(pickle.dumps((1, 2)) + pickle.dumps({"a": 1}) + b"rest")
    check_pickle(file)
    check_pickle(file)
    assert file.read() == b"rest"
    with pytest.raises(ValueError, match=r"\w"):
        check_pickle(b"no pickle")
