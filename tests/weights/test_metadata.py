from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.config import Settings, dump, override
from rcnn.errors import WeightsError
from rcnn.weights.file import save_weights
from rcnn.weights.metadata import portable, read_detector

ENTRY: dict[str, Any] = {
    "settings": dump(Settings()),
    "names": ["cat", "dog"],
    "category_ids": [7, 3],
    "threshold": 0.4,
    "summary": {"epoch": 3},
}


def written(folder: Path, **changes: object) -> Path:
    entry = {key: value for key, value in {**ENTRY, **changes}.items() if value != "missing"}
    save_weights(folder / "x.safetensors", {"w": torch.ones(1)}, entry)
    return folder / "x.safetensors"


def test_metadata_are_read_as_written_and_additions_of_later_versions_passed_over(tmp_path: Path) -> None:
    tensors, metadata = read_detector(written(tmp_path, more="of a later version"))
    assert tensors.keys() == {"w"}
    assert metadata.settings == Settings()
    assert (metadata.names, metadata.category_ids, metadata.threshold) == (("cat", "dog"), (7, 3), 0.4)
    assert (metadata.summary, metadata.licence) == ({"epoch": 3}, None)
    assert read_detector(written(tmp_path, licence="MIT"))[1].licence == "MIT"


@pytest.mark.parametrize(
    "change",
    [
        {"settings": "missing"},
        {"settings": 5},
        {"settings": {**ENTRY["settings"], "later": {}}},
        {"names": "missing"},
        {"names": 5},
        {"names": [1, 2]},
        {"category_ids": [7]},
        {"category_ids": ["a", "b"]},
        {"threshold": 1.5},
        {"threshold": None},
        {"summary": []},
        {"licence": 3},
    ],
)
def test_wrong_metadata_are_refused_by_name(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match=r"x\.safetensors: holds weights, but not a detector of this version"):
        read_detector(written(tmp_path, **change))


def test_a_checkpoint_is_not_mistaken_for_a_detector(tmp_path: Path) -> None:
    (tmp_path / "exp-1/checkpoints").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"is a checkpoint .* rcnn train --resume .*exp-1$"):
        read_detector(written(tmp_path / "exp-1/checkpoints", kind="checkpoint"))


def test_folders_of_this_machine_do_not_travel() -> None:
    data = {"path": "/home/me/cells", "edge_model": "/home/me/model.yml.gz"}
    saved = portable(override(Settings(), {"data": data, "train": {"init": "/home/me/start.pth"}}))
    assert (saved.data.path, saved.data.edge_model, saved.train.init) == ("cells", None, "start.pth")
    assert portable(Settings()) == Settings()
