import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.formats import cvat
from rcnn.data.formats.find import find_layout, open_dataset, open_lists, open_splits
from rcnn.data.formats.shapes import rotated
from rcnn.errors import DataError
from tests.data import sets
from tests.limits import MB, in_child

BOX = [5, 6, 20, 30]
DOG = sets.cvat_box("dog", BOX)
META = "<task><mode>interpolation</mode>{}<original_size><width>60</width><height>40</height></original_size></task>"


def write(root: Path, *shapes: str, file: str = "annotations.xml", images: str = "images") -> Path:
    """Write an export of images a, b, ... with these shapes."""
    names = [f"{'abcdef'[number]}.jpg" for number in range(len(shapes))]
    for name in names:
        sets.image(root / images / name)
    sets.cvat(root / file, "\n".join(map(sets.cvat_image, names, shapes)))
    return root


def frames(folder: Path, numbers: Sequence[int], suffix: str = "png") -> None:
    for number in numbers:
        sets.image(folder / f"frame_{number:06}.{suffix}")


def track(*boxes: str, label: str = "dog", **more: Any) -> str:
    texts = "".join(f' {key}="{value}"' for key, value in {"label": label, **more}.items())
    return f'<track id="0"{texts}>\n' + "\n".join(boxes) + "\n</track>"


def box(frame: int, corners: Sequence[float] = BOX, **more: Any) -> str:
    return sets.cvat_box("", corners, frame=frame, **{"keyframe": 1, "outside": 0, **more})


def video(root: Path, numbers: Sequence[int], *tracks: str, meta: str = "") -> Path:
    """Write an export of a video with its frames."""
    frames(root / "images", numbers)
    sets.cvat(root / "annotations.xml", "\n".join(tracks), META.format(meta))
    return root


def boxes(path: Path, split: str = "all") -> dict[str, list[list[float]]]:
    """Return the boxes by the stem of each image."""
    data = open_dataset(path, split, Data())  # type: ignore[arg-type]
    return {str(record.id): record.boxes.tolist() for record in data.records}


def fatal(path: Path) -> str:
    """Return the only fault, which is fatal, as text."""
    (fault,) = check(path, Data()).faults
    assert fault.kind == "fatal"
    return str(fault)


@pytest.mark.parametrize("given", [".", "annotations.xml"])
def test_images_and_their_boxes_are_read(tmp_path: Path, given: str) -> None:
    write(tmp_path, DOG + "\n" + sets.cvat_box(" cat & co ", [1.5, 2, 3, 4]), "")
    data = open_dataset(tmp_path / given, "all", Data())
    assert (data.format, data.names, data.faults, data.notes) == ("cvat", ("cat & co", "dog"), (), ())
    assert [(record.name, record.id) for record in data.records] == [("images/a.jpg", "a"), ("images/b.jpg", "b")]
    assert data.records[0].boxes.tolist() == [BOX, [1.5, 2, 3, 4]]
    assert data.records[0].labels.tolist() == [1, 0]
    assert len(data.records[1].boxes) == 0


@pytest.mark.parametrize("images", [".", "images", "images/cam 1"])
def test_images_are_found_next_to_the_xml_and_below(tmp_path: Path, images: str) -> None:
    folder = images.removeprefix("images").strip("/.")
    sets.image(tmp_path / images / "a.jpg")
    sets.cvat(tmp_path / "job.xml", sets.cvat_image(f"{folder}/a.jpg".lstrip("/"), DOG))
    assert len(open_dataset(tmp_path, "all", Data())) == 1


def test_frames_of_a_video_exported_as_images_have_no_suffix(tmp_path: Path) -> None:
    for suffix, number in (("PNG", 0), ("jpg", 1)):
        frames(tmp_path / "images", [number], suffix)
    names = [f"frame_{number:06}" for number in range(2)]
    sets.cvat(tmp_path / "annotations.xml", "\n".join(sets.cvat_image(name, DOG) for name in names))
    data = open_dataset(tmp_path, "all", Data())
    assert ([record.path.name for record in data.records], data.faults) == ([f"{names[0]}.PNG", f"{names[1]}.jpg"], ())


@pytest.mark.parametrize(
    ("element", "box", "noun"),
    [
        ('<polygon label="dog" points="5.00,9.00;20.00,6.00;11.00,30.00"/>', BOX, "1 polygon"),
        ('<ellipse label="dog" cx="20" cy="20" rx="10" ry="5"/>', [10, 15, 30, 25], "1 ellipse"),
        ('<ellipse label="dog" cx="20" cy="20" rx="10" ry="5" rotation="90.00"/>', [15, 10, 25, 30], "1 ellipse"),
        ('<mask label="dog" rle="3, 5" left="5" top="6" width="15" height="24"/>', BOX, "1 mask"),
        (sets.cvat_box("dog", [10, 15, 30, 25], rotation=90), [15, 10, 25, 30], "1 rotated box"),
        (
            '<cuboid label="dog" xtl1="5" ytl1="8" xbl1="5" ybl1="30" xtr1="15" ytr1="9" xbr1="15" ybr1="29" '
            'xtl2="20" ytl2="6" xbl2="20" ybl2="22" xtr2="9" ytr2="7" xbr2="9" ybr2="21"/>',
            BOX,
            "1 cuboid",
        ),
    ],
)
def test_other_shapes_become_enclosing_boxes(tmp_path: Path, element: str, box: list[float], noun: str) -> None:
    data = open_dataset(write(tmp_path, element), "all", Data())
    assert data.records[0].boxes[0].tolist() == pytest.approx(box, abs=1e-9)
    assert data.notes == (f"read as the boxes that enclose them: {noun}",)


@pytest.mark.parametrize("rotation", ["0", "0.00", "360"])
def test_a_box_that_is_not_rotated_is_no_other_shape(tmp_path: Path, rotation: str) -> None:
    data = open_dataset(write(tmp_path, sets.cvat_box("dog", BOX, rotation=rotation)), "all", Data())
    assert (data.records[0].boxes.tolist(), data.notes) == ([BOX], ())


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 99), st.floats(0, 99), st.floats(0.1, 9), st.floats(0.1, 9), st.floats(-720, 720))
def test_a_rotated_box_keeps_its_centre_and_sides(x: float, y: float, w: float, h: float, degrees: float) -> None:
    points = rotated([x, y, x + w, y + h], degrees)
    corners = list(zip(points[::2], points[1::2], strict=True))
    assert [sum(axis) / 4 for axis in zip(*corners, strict=True)] == pytest.approx([x + w / 2, y + h / 2])
    sides = [math.dist(corners[n], corners[(n + 1) % 4]) for n in range(4)]
    assert sides == pytest.approx([w, h, w, h])
    right = (corners[1][0] - corners[0][0]) / w, (corners[1][1] - corners[0][1]) / w
    assert right == pytest.approx((math.cos(math.radians(degrees)), math.sin(math.radians(degrees))), abs=1e-6)


def test_shapes_without_a_box_are_left_out_and_counted(tmp_path: Path) -> None:
    skeleton = '<skeleton label="man"><points label="1" points="3,4"/><points label="2" points="3,4"/></skeleton>'
    points = '<points label="nose" points="3,4;5,6"/>' * 2
    others = points + '<polyline label="edge" points="3,4;5,6"/><tag label="good"/>' + skeleton
    data = open_dataset(write(tmp_path, DOG + others), "all", Data())
    assert data.names == ("dog",)
    assert data.notes == ("left out, since no box encloses them: 2 point sets, 1 polyline, 1 tag, 1 skeleton",)


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (sets.cvat_box("dog", [20, 6, 5, 30]), "is inverted"),
        (sets.cvat_box("dog", [20, 6, 5, 30], rotation=10), "box (20, 6, 5, 30) is inverted"),
        (sets.cvat_box("dog", BOX, rotation="x"), "`rotation` must be a finite number; found x"),
        (
            sets.cvat_box("dog", ["nan", 6, 20, 30]),
            "<box> needs the finite numbers xtl, ytl, xbr, ybr; found nan, 6, 20",
        ),
        ('<box label="dog" xtl="5"/>', "<box> needs the finite numbers xtl, ytl, xbr, ybr; found 5, nothing, nothing"),
        (sets.cvat_box(" ", BOX), "<box> needs a `label`"),
        (
            '<polygon label="dog" points="5,9;20,6"/>',
            "<polygon> needs at least three `points`, x,y;x,y;...; found 5,9;20,6",
        ),
        ('<polygon label="dog" points="5,9;20,6;1"/>', "<polygon> needs at least three `points`"),
        ('<polygon label="dog" points="5,9,20;6,1,1"/>', "<polygon> needs at least three `points`"),
        ('<polygon label="dog"/>', "<polygon> needs at least three `points`"),
        ('<ellipse label="dog" cx="20" cy="20" rx="-1" ry="5"/>', "<ellipse> has a negative size: -1"),
        ('<mask label="dog" left="20" top="20" width="1" height="-5"/>', "<mask> has a negative size: -5"),
        ('<cube label="dog"/>', "unknown element <cube>; expected box, ellipse, mask, cuboid, polygon, polyline, "),
    ],
)
def test_a_faulty_shape_is_named(tmp_path: Path, element: str, reason: str) -> None:
    message = fatal(write(tmp_path, DOG + "\n" + element, DOG))
    assert message.startswith(f"{tmp_path / 'annotations.xml'}:6: ")
    assert reason in message


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (sets.cvat_image("c.jpg"), "image `c.jpg` is missing; looked in"),
        (sets.cvat_image(" "), "<image> needs a `name`"),
        (sets.cvat_image("a.jpg"), "image `images/a.jpg` has another element, "),
        (sets.cvat_image("b.jpg", width=61), "the annotation says 61x40 pixels, the image has 60x40"),
        (sets.cvat_image("b.jpg", width="wide"), "width and height must be whole numbers; found wide, 40"),
        (sets.cvat_image("https://host/c.jpg?token=secret"), "is an address that does not lie below"),
    ],
)
def test_a_faulty_image_is_named(tmp_path: Path, image: str, reason: str) -> None:
    write(tmp_path, DOG, DOG)
    sets.cvat(tmp_path / "annotations.xml", sets.cvat_image("a.jpg", DOG) + "\n" + image)
    message = fatal(tmp_path)
    assert message.startswith(f"{tmp_path / 'annotations.xml'}:7: ")
    assert reason in message
    assert "secret" not in message


def test_images_without_a_size_are_read(tmp_path: Path) -> None:
    sets.image(tmp_path / "a.jpg")
    sets.cvat(tmp_path / "x.xml", f'<image name="a.jpg">{DOG}</image>')
    assert len(open_dataset(tmp_path, "all", Data())) == 1


def test_an_export_without_its_images_says_how_to_get_them(tmp_path: Path) -> None:
    sets.cvat(tmp_path / "d/annotations.xml", sets.cvat_image("a.jpg", DOG))
    with pytest.raises(
        DataError, match=r"none of its images exists\. image `a\.jpg` is missing; .* `Save images` is on"
    ):
        open_dataset(tmp_path / "d", "all", Data())


def test_files_and_folders_per_split_are_lists(tmp_path: Path) -> None:
    for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
        sets.image(tmp_path / "one/images" / name)
        sets.cvat(tmp_path / f"one/annotations/{split}.xml", sets.cvat_image(name, DOG))
        sets.image(tmp_path / f"two/{split}/images/{name}")
        sets.cvat(tmp_path / f"two/{split}/annotations.xml", sets.cvat_image(name, DOG))
    for path, folder in (("one", "images/"), ("one/annotations", "images/"), ("two", "{}/images/")):
        train, val = open_splits(tmp_path / path, Data())
        names = [record.name for record in (*train.records, *val.records)]
        assert names == [f"{folder.format('train')}a.jpg", f"{folder.format('val')}b.jpg"]
    for name in ("task_1.xml", "task_2.xml"):
        sets.cvat(tmp_path / "three" / name, sets.cvat_image("a.jpg", DOG))
    with pytest.raises(DataError, match=r"several xml files of CVAT could be the list `all`: task_1\.xml, task_2\.xml"):
        find_layout(tmp_path / "three")
    sets.cvat(tmp_path / "two/train/other.xml", sets.cvat_image("a.jpg", DOG))
    with pytest.raises(
        DataError, match=r"several xml files of CVAT could be the list `train`: train/annotations\.xml, "
    ):
        find_layout(tmp_path / "two")


def subsets(root: Path, *names: str, folder: str = "images/{}") -> Path:
    """Write a project in which an image a.jpg belongs to each subset."""
    images = []
    for number, name in enumerate(names):
        sets.image(root / folder.format(name) / "a.jpg")
        images.append(sets.cvat_image("a.jpg", sets.cvat_box(f"dog {number}", BOX), subset=name, task_id=number))
    sets.cvat(root / "annotations.xml", "\n".join(images))
    return root


@pytest.mark.parametrize("given", [".", "annotations.xml"])
def test_the_subsets_of_a_project_are_lists(tmp_path: Path, given: str) -> None:
    path = subsets(tmp_path, "Train", "Validation", "Test") / given
    train, val = open_splits(path, Data())
    assert [record.name for record in (*train.records, *val.records)] == [
        "images/Train/a.jpg",
        "images/Validation/a.jpg",
    ]
    assert train.names == val.names == ("dog 0", "dog 1", "dog 2")
    assert [dataset.split for dataset in open_lists(path, Data())] == ["train", "val", "test"]
    assert len(open_dataset(path, "all", Data())) == 3
    assert list(check(path, Data()).lists) == ["train", "val", "test"]


def test_other_subsets_are_lists_of_their_names_and_a_single_one_is_none(tmp_path: Path) -> None:
    several = subsets(tmp_path / "several", "default", "night and fog", "Test")
    assert list(find_layout(several).lists) == ["test", "default", "night and fog"]
    data = Data(train="night and fog", val="default")
    assert [len(part) for part in open_splits(several, data)] == [1, 1]
    for name in ("default", "Train"):
        single = subsets(tmp_path / name, name)
        assert list(find_layout(single).lists) == [{"default": "all", "Train": "train"}[name]]
        assert len(open_dataset(single, "all", Data())) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "x" * 99, "..", "a\nb"])
def test_a_subset_whose_name_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    body = sets.cvat_image("a.jpg", DOG, subset="Train") + sets.cvat_image("a.jpg", DOG, subset=name)
    sets.cvat(tmp_path / "annotations.xml", body)
    with pytest.raises(DataError, match="can't be the name of a list; rename it in CVAT"):
        find_layout(tmp_path)


def test_many_subsets_are_refused(tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(cvat.MAX_SUBSETS + 1)]
    sets.cvat(tmp_path / "annotations.xml", "".join(sets.cvat_image("a.jpg", subset=name) for name in names))
    with pytest.raises(DataError, match="there are 21 subsets; at most 20 are read as lists"):
        find_layout(tmp_path)


def test_subsets_after_a_long_description_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvat, "_HEAD_BYTES", 150)
    path = subsets(tmp_path, "Train", "Test") / "annotations.xml"
    path.write_text(path.read_text().replace("<meta>", f"<meta>{'<label>x</label>' * 50}"))
    assert list(find_layout(tmp_path).lists) == ["train", "test"]


def test_boxes_of_a_video_are_those_of_its_frames(tmp_path: Path) -> None:
    """As CVAT writes them: all frames of an object, up to the one where it is outside."""
    moving = [box(frame, [5 + frame, 6, 20 + frame, 30], keyframe=int(frame == 0)) for frame in range(3)]
    tracks = (track(*moving, box(3, [8, 6, 23, 30], outside=1)), track(box(4), box(5, outside=1), label="cat"))
    video(tmp_path, range(7), *tracks, meta="<start_frame>0</start_frame><stop_frame>6</stop_frame>")
    data = open_dataset(tmp_path, "all", Data())
    assert (data.names, data.faults, data.notes) == (("cat", "dog"), (), ())
    found = boxes(tmp_path)
    assert [len(found[f"frame_{number:06}"]) for number in range(7)] == [1, 1, 1, 0, 1, 0, 0]
    assert found["frame_000002"] == [[7, 6, 22, 30]]


@pytest.mark.parametrize("suffix", ["PNG", "jpg", "png"])
@pytest.mark.parametrize("folder", ["images", "."])
def test_frames_may_be_of_any_kind_next_to_the_xml(tmp_path: Path, suffix: str, folder: str) -> None:
    frames(tmp_path / folder, [0, 1], suffix)
    sets.cvat(tmp_path / "annotations.xml", track(box(0), box(1, outside=1)))
    assert {stem: len(found) for stem, found in boxes(tmp_path).items()} == {"frame_000000": 1, "frame_000001": 0}


def test_boxes_between_keys_move_evenly_until_the_object_is_outside(tmp_path: Path) -> None:
    keys = (box(4, [9, 10, 24, 38]), box(0), box(6, [11, 10, 26, 38], outside=1), box(8, [1, 2, 3, 4]))
    video(tmp_path, range(11), track(*keys), meta="<stop_frame>10</stop_frame>")
    found = boxes(tmp_path)
    assert [len(found[f"frame_{number:06}"]) for number in range(11)] == [1] * 6 + [0, 0, 1, 1, 1]
    assert found["frame_000001"] == [[6, 7, 21, 32]]
    assert found["frame_000003"] == [[8, 9, 23, 36]]
    assert found["frame_000005"] == [[10, 10, 25, 38]]
    assert found["frame_000010"] == [[1, 2, 3, 4]]


def test_rotated_boxes_turn_the_shorter_way(tmp_path: Path) -> None:
    square = [20, 15, 30, 25]
    keys = (box(0, square, rotation=350), box(2, square, rotation=10), box(3, square, outside=1))
    video(tmp_path, range(4), track(*keys))
    found = boxes(tmp_path)
    assert found["frame_000001"] == [square]
    wide = 10 * (math.cos(math.radians(10)) + math.sin(math.radians(10)))
    assert found["frame_000002"][0][2] - found["frame_000002"][0][0] == pytest.approx(wide)
    assert open_dataset(tmp_path, "all", Data()).notes == ("read as the boxes that enclose them: 2 rotated boxes",)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=5, unique=True), st.data())
def test_keys_alone_give_the_boxes_of_all_frames(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("law")
    keys.sort()
    corner = st.tuples(st.integers(0, 20), st.integers(0, 10))
    at = {frame: data.draw(corner) for frame in keys}
    sparse = [box(frame, [x, y, x + 30, y + 25]) for frame, (x, y) in at.items()]
    dense = []
    for frame in range(keys[0], 13):
        before = max(key for key in keys if key <= frame)
        after = min((key for key in keys if key >= frame), default=before)
        share = (frame - before) / (after - before) if after > before else 0
        x, y = (one + (other - one) * share for one, other in zip(at[before], at[after], strict=True))
        dense.append(box(frame, [x, y, x + 30, y + 25]))
    one, two = (boxes(video(root / name, range(13), track(*rows))) for name, rows in (("1", sparse), ("2", dense)))
    assert one.keys() == two.keys()
    for stem, rows in one.items():
        assert len(rows) == len(two[stem])
        assert all(mine == pytest.approx(theirs) for mine, theirs in zip(rows, two[stem], strict=True))


def test_other_shapes_are_not_interpolated(tmp_path: Path) -> None:
    shape = '<polygon frame="{}" points="5,9;20,6;11,30" outside="{}" occluded="0" keyframe="1"/>'
    video(tmp_path / "a", range(4), track(shape.format(0, 0), shape.format(1, 0), shape.format(2, 1)))
    assert [len(found) for found in boxes(tmp_path / "a").values()] == [1, 1, 0, 0]
    video(tmp_path / "b", range(4), track(shape.format(0, 0), shape.format(3, 1)))
    assert "the track has no shape in frames 1 to 2; only boxes can be interpolated; export it" in fatal(tmp_path / "b")
    video(tmp_path / "c", [0, 3], track(shape.format(0, 0), shape.format(3, 1)))  # only each third frame is in the task
    assert [len(found) for found in boxes(tmp_path / "c").values()] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([box(9)], ":5: there is no image of frame 9"),
        ([box(0), box(0, [1, 2, 3, 4]), box(1, outside=1)], ":6: the track has two shapes in frame 0, also in "),
        ([box(0).replace('"0"', '"x"', 1)], ":5: `frame` must be a whole number, and `outside` 0 or 1; found x, 0"),
        ([box(0, outside=2)], ":5: `frame` must be a whole number, and `outside` 0 or 1; found 0, 2"),
        ([box(0, ["x", 1, 2, 3])], ":5: <box> needs the finite numbers"),
        ([box(0, [20, 6, 5, 30]), box(1, outside=1)], ":5: box (20, 6, 5, 30) is inverted"),
    ],
)
def test_a_faulty_shape_of_a_track_is_named(tmp_path: Path, rows: Sequence[str], reason: str) -> None:
    fine = track(box(1), box(2, outside=1))
    assert reason in fatal(video(tmp_path, range(4), track(*rows), fine))


def test_frames_that_do_not_fit_the_task_are_faults(tmp_path: Path) -> None:
    one = video(tmp_path / "1", range(1, 5), track(box(1), box(2, outside=1)), meta="<stop_frame>3</stop_frame>")
    message = fatal(one)
    assert message.startswith(str(one / "images/frame_000004.png"))
    assert "the last frame of the task has the number 3; CVAT numbers frames from 0, ffmpeg from 1" in message
    two = video(tmp_path / "2", range(2), track(box(0), box(1, outside=1)))
    frames(two / "images", [1], "jpg")
    assert "this is frame 1 too, as is images/frame_000001.jpg; keep one" in fatal(two)
    (two / "images/frame_000001.jpg").unlink()
    sets.image(two / "images/frame_000001.png", (50, 40))
    assert "the annotation says 60x40 pixels, the image has 50x40" in fatal(two)


def test_a_video_without_its_frames_says_how_to_get_them(tmp_path: Path) -> None:
    sets.cvat(tmp_path / "d/annotations.xml", track(box(0)))
    sets.image(tmp_path / "d/images/a.jpg")
    with pytest.raises(
        DataError, match=r"tracks of a video, and there are no images frame_000000\.png.*`Save images`, or"
    ):
        open_dataset(tmp_path / "d", "all", Data())


def test_videos_of_a_project_lie_in_the_folders_of_their_subsets(tmp_path: Path) -> None:
    both = []
    for number, name in enumerate(("Train", "Validation")):
        frames(tmp_path / "images" / name, range(number, 3))
        both.append(track(box(1), box(2, outside=1), subset=name, task_id=number))
    sets.cvat(tmp_path / "annotations.xml", "\n".join(both))
    train, val = open_splits(tmp_path, Data())
    assert [len(record.boxes) for record in train.records] == [0, 1, 0]
    assert [record.name for record in val.records] == [
        f"images/Validation/frame_00000{number}.png" for number in (1, 2)
    ]
    sets.cvat(tmp_path / "annotations.xml", both[0] + both[0].replace('task_id="0"', 'task_id="7"'))
    with pytest.raises(
        DataError, match="there are tracks of several tasks, 0 and 7, whose frames have the same numbers"
    ):
        open_dataset(tmp_path, "train", Data())


def test_subsets_do_not_share_frames_and_tracks_are_not_mixed_with_images(tmp_path: Path) -> None:
    frames(tmp_path / "images", range(3))
    parts = [track(box(1), subset=name, task_id=0) for name in ("Train", "Validation")]
    sets.cvat(tmp_path / "annotations.xml", "\n".join(parts))
    with pytest.raises(DataError, match=r"two subsets have the frame .*export each task by itself"):
        open_dataset(tmp_path, "all", Data())
    sets.cvat(tmp_path / "annotations.xml", sets.cvat_image("frame_000000", DOG) + "\n" + track(box(1)))
    with pytest.raises(DataError, match=r"\.xml:7: there are images and tracks in this file"):
        open_dataset(tmp_path, "all", Data())


def test_boxes_between_keys_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvat, "MAX_BOXES", 5)
    with pytest.raises(
        DataError, match=r"annotations\.xml:5: there are more than 5 boxes, with those between the keys"
    ):
        open_dataset(video(tmp_path, range(9), track(box(0))), "all", Data())


def test_neither_voc_nor_cvat_takes_the_other(tmp_path: Path) -> None:
    write(tmp_path / "sets/cvat", DOG)
    sets.voc(tmp_path / "sets/voc", {"a": [("dog", BOX)]})
    assert find_layout(tmp_path / "sets/cvat").format == "cvat"
    assert find_layout(tmp_path / "sets/voc").format == "voc"
    assert find_layout(tmp_path / "sets").root == tmp_path / "sets/voc"  # CVAT's folder is no VOC set beside it
    write(tmp_path / "sets/voc", DOG)
    with pytest.raises(DataError, match=r"more than one data set is here: VOC \(Annotations/\*\.xml\); CVAT"):
        find_layout(tmp_path / "sets/voc")


def test_an_xml_with_the_element_of_cvat_but_other_content_stays_voc(tmp_path: Path) -> None:
    sets.image(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_text(sets.xml([("dog", BOX)]).replace("annotation>", "annotations>"))
    assert find_layout(tmp_path).format == "voc"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path, DOG) / "annotations.xml"
    file.write_text(file.read_text().replace(' encoding="utf-8"', ""), encoding=encoding)
    assert boxes(tmp_path) == {"a": [BOX]}


def test_a_file_that_is_cut_off_has_no_images(tmp_path: Path) -> None:
    """The last image would lack boxes."""
    file = write(tmp_path, DOG, DOG + DOG) / "annotations.xml"
    file.write_text(file.read_text()[:-60])
    report = check(tmp_path, Data(on_fault="skip"))
    assert (report.lists, [fault.kind for fault in report.faults]) == ({}, ["fatal"])
    assert "malformed xml: " in str(report.faults[0])


def test_entities_and_nested_elements_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, DOG, DOG) / "annotations.xml"
    text = file.read_text()
    file.write_text(text.replace("<annotations>", '<!DOCTYPE a [<!ENTITY a "b">]><annotations>'))
    with pytest.raises(DataError):
        open_dataset(tmp_path, "all", Data())
    file.write_text(text.replace("</meta>", f"</meta>{'<a>' * 100_000}"))
    assert "nested more than 100 deep" in fatal(tmp_path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, DOG)
    monkeypatch.setattr(cvat, "MAX_CVAT_BYTES", 100)
    assert "are too many: such a file has at most" in fatal(tmp_path)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    runs = ", ".join(["1"] * 1000)
    masks = f'<mask label="dog" rle="{runs}" left="5" top="6" width="15" height="24"/>\n' * 40_000
    sets.image(tmp_path / "a.jpg")
    with (tmp_path / "annotations.xml").open("w") as file:
        file.write("<annotations><version>1.1</version>\n" + sets.cvat_image("a.jpg", masks) + "</annotations>")
    assert (tmp_path / "annotations.xml").stat().st_size > 100 * MB
    in_child(lambda: open_dataset(tmp_path, "all", Data()), seconds=30, resident=80 * MB)
