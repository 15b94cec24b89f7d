"""`blood-cells`, the packaged detector, in the commands by its name; nothing can be downloaded."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from .conftest import Run, read_json

CENTRES = ((140, 120), (420, 150), (300, 330))
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCNN_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))


@pytest.fixture
def smears(tmp_path: Path) -> Path:
    """Two pictures of three pale red discs as large as red cells, labelled in VOC's format with the packaged names."""
    root = tmp_path / "smears"
    root.mkdir()
    for index in range(2):
        image = Image.new("RGB", (640, 480), (236, 226, 214))
        boxes = [(x - 50, y - 50, x + 50, y + 50) for x, y in CENTRES]
        for box in boxes:
            ImageDraw.Draw(image).ellipse(box, fill=(214, 160, 150))
        image.save(root / f"{index}.png")
        rows = [OBJECT.format("RBC", *box) for box in boxes]
        rows += [OBJECT.format(name, 560, 400, 620, 460) for name in ("WBC", "Platelets")]
        (root / f"{index}.xml").write_text(f"<annotation>{''.join(rows)}</annotation>")
    return root


def test_it_finds_cells_in_every_format(run: Run, smears: Path) -> None:
    run.ok("predict", "blood-cells", smears, "--score", "0.3", "--format", "drawn,json,coco,voc,yolo")
    out = Path("runs/predict")
    assert [row["counts"] for row in read_json(out / "results.json")] == [{"RBC": 3}] * 2
    assert {row["category_id"] for row in read_json(out / "coco.json")} == {2}
    assert (out / "voc/0.xml").read_text().count("<name>RBC</name>") == 3
    assert [line[:2] for line in (out / "yolo/labels/0.txt").read_text().splitlines()] == ["1 "] * 3
    assert (out / "drawn/0.png").is_file()


def test_it_is_scored_on_data_of_its_classes(run: Run, smears: Path) -> None:
    document = run.json("val", "blood-cells", smears, "--split", "train", "data.holdout=0.5")
    rows = {row["class"]: row for row in document["classes"]}
    assert {name: row["boxes"] for name, row in rows.items()} == {"Platelets": 1, "RBC": 3, "WBC": 1}
    assert (rows["RBC"]["ap50"], rows["WBC"]["ap50"]) == (pytest.approx(1), 0)


def test_inspect_describes_it(run: Run) -> None:
    output = run.ok("inspect", "blood-cells").out
    for text in ("a detector of 3 classes", "mobilenet-fpn", "licence       of the data: MIT"):
        assert text in output
    classes = run.json("inspect", "blood-cells")["classes"]
    assert [(row["name"], row["id"]) for row in classes] == [("Platelets", 1), ("RBC", 2), ("WBC", 3)]
