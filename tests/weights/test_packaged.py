import tomllib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from rcnn.detector import Detector
from rcnn.errors import WeightsError
from rcnn.weights import packaged
from rcnn.weights.packaged import PACKAGED, packaged_path


def test_packaged_detectors_are_in_the_package() -> None:
    folder = Path(packaged.__file__).parent / "packaged"
    assert PACKAGED["blood-cells"] == folder / "blood-cells.safetensors"
    assert {path.name for path in folder.iterdir()} == {"blood-cells.safetensors", "CARD.md", "NOTICE"}


def test_blood_cells_is_small_and_works(tmp_path: Path) -> None:
    path = packaged_path("blood-cells")
    assert path.stat().st_size <= 8_000_000
    detector = Detector.load(path, "cpu")
    assert detector.names == ("Platelets", "RBC", "WBC")
    assert detector.licence is not None
    assert detector.licence.startswith("MIT")
    assert detector.settings.model.preset == "mobilenet-fpn"
    smear = Image.new("RGB", (640, 480), (236, 226, 214))
    pen = ImageDraw.Draw(smear)
    for x, y in ((140, 120), (420, 150), (300, 330)):  # pale red discs of the size of red cells
        pen.ellipse((x - 50, y - 50, x + 50, y + 50), fill=(214, 160, 150))
    (found,) = detector.predict(smear, score=0.3)
    assert [found.names[label] for label in found.labels] == ["RBC"] * 3


def test_the_wheel_takes_all_files_of_the_package_and_their_licences() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/rcnn"]}  # and so every file below it, unless git ignores it
    assert "src/rcnn/weights/packaged/NOTICE" in project["project"]["license-files"]
    ignored = (root / ".gitignore").read_text(encoding="utf-8")
    assert "safetensors" not in ignored
    assert "NOTICE" not in ignored


def test_the_path_of_a_packaged_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "blood-cells", tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"`blood-cells` is not in this installation: .*b\.safetensors is missing"):
        packaged_path("blood-cells")
    (tmp_path / "b.safetensors").touch()
    assert packaged_path("blood-cells") == tmp_path / "b.safetensors"
