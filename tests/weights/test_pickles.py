"""Pickles are looked at before they are read: those of weights pass, those that ask for too much do not."""

import io
import pickle
from pathlib import Path

import pytest
import torch

from rcnn.weights.pickles import DEEPEST, check_pickle, check_torch_file


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
    check_pickle(pickle.dumps({"a": [nested(DEEPEST)] * 50}, protocol))
    with pytest.raises(ValueError, match="deeper"):
        check_pickle(pickle.dumps({"a": [nested(DEEPEST + 1)]}, protocol))


def test_several_pickles_of_a_file_are_read_one_by_one() -> None:
    file = io.BytesIO(pickle.dumps((1, 2)) + pickle.dumps({"a": 1}) + b"rest")
    check_pickle(file)
    check_pickle(file)
    assert file.read() == b"rest"
    with pytest.raises(ValueError, match=r"\w"):
        check_pickle(b"no pickle")
