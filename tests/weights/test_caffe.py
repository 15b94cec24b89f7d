from pathlib import Path

import numpy as np
import pytest
import torch

from rcnn.backbones.build import build_backbone
from rcnn.errors import WeightsError
from rcnn.presets import settings_of
from rcnn.weights.backbone import load_backbone
from rcnn.weights.caffe import read_arrays


def test_a_file_that_is_no_archive_of_arrays_is_refused_by_name(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"none\.npz: can't be read: No such file"):
        read_arrays(tmp_path / "none.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "objects.npz").read_bytes()[:40])
    np.save(tmp_path / "one.npy", np.zeros(2))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("objects", "text", "cut", "one"):
        with pytest.raises(WeightsError, match=rf"{name}\.npz .*is damaged, or no \.npz file of plain arrays"):
            read_arrays(tmp_path / f"{name}.npz")


def test_a_classifier_in_caffes_names_starts_a_backbone(tmp_path: Path):
    torch.manual_seed(0)
    theirs, ours = (build_backbone(settings_of("paper-zf")) for _ in range(2))
    arrays = {
        f"conv{n}.{leaf}": theirs.trunk.get_parameter(f"features.conv{n}.{leaf}").detach().numpy()
        for n in range(1, 6)
        for leaf in ("weight", "bias")
    }
    np.savez(tmp_path / "w.npz", **arrays, **{"fc8.weight": np.zeros(2)})
    loaded = load_backbone(ours, tmp_path / "w.npz")
    assert (loaded.loaded, loaded.missing, loaded.unexpected) == (10, (), ())
    for name, array in arrays.items():
        assert np.array_equal(ours.trunk.get_parameter(f"features.{name}").detach(), array)
    np.savez(tmp_path / "other.npz", **{"block1.weight": np.zeros(2)})
    with pytest.raises(WeightsError, match=r"other\.npz: expected conv1_1 to conv5_3 .* found block1"):
        load_backbone(ours, tmp_path / "other.npz")
