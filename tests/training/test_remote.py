"""A training on remote data, and one that keeps decoded images, give the weights of a local one, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import rcnn
from rcnn.data.loading.pixel_cache import PixelCache
from rcnn.errors import SettingsError, StorageError, TrainingError
from rcnn.images import storage
from rcnn.training.run import Run
from tests.remote import SECRET, files_below, upload
from tests.training.pieces import OPTIONS, SMALL, assert_same, killed

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
FEW = {**OPTIONS, "overrides": [*SMALL, "model.norm=frozen"], "init": "none", "epochs": 1}


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None, no_pictures: None) -> Run:
    """Return a run on local files."""
    return rcnn.train(data, runs=tmp_path_factory.mktemp("local"), **FEW)


def test_an_epoch_on_remote_data_has_the_bits_of_a_local_one(
    local: Run, data: Path, tmp_path: Path, place: Callable[[Path], str]
) -> None:
    address = place(data)
    run = rcnn.train(address, runs=tmp_path, **FEW)
    assert_same(run, local)
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert settings["data"]["path"] == address
    assert run.folder.name == f"{location_name(address)}-1"
    here, there = (rcnn.val(run.folder, path) for path in (data, address))
    assert str(here.to_row()) == str(there.to_row())  # NaN, where no object has a size, is not equal to itself


def location_name(address: str) -> str:
    return storage.location(address).name or "data"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_from_the_cache_has_the_bits_of_one_without(
    workers: int, local: Run, data: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the second one, which reads no file, in forked processes and for remote data."""
    upload(s3, data, "set/")
    caches, of = list[bool](), PixelCache.of
    monkeypatch.setattr(
        PixelCache, "of", lambda settings: caches.append(settings.data.cache is not None) or of(settings)
    )
    options = {**FEW, "workers": workers, "overrides": [*FEW["overrides"], f"data.cache={tmp_path / 'cache'}"]}
    for source in (data, "s3://bucket/set", "s3://bucket/set"):
        assert_same(rcnn.train(source, runs=tmp_path / "runs", **options), local)
    assert len(files_below(tmp_path / "cache")) == 2 * 8
    assert all(caches)  # also when the kept weights are loaded and scored


@pytest.mark.slow
def test_lost_access_stops_a_training_with_the_command_to_resume(
    local: Run, data: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, data, "set/")
    whole, lost = storage._read, []

    def expiring(path: storage.RemotePath, count: int) -> bytes:
        if lost:
            raise StorageError(f"{path}: access was denied (ExpiredToken)")
        return whole(path, count)

    monkeypatch.setattr(storage, "_read", expiring)
    with killed(2, saved=1):
        rcnn.train("s3://bucket/set", runs=tmp_path, **FEW)
    folder = next(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("rcnn.training.shared_data.open_shared", lambda _, read: (read(), lost.append(1))[0])
        with pytest.raises(
            TrainingError, match=r"access was denied \(ExpiredToken\). Resume with: rcnn train --resume"
        ):
            rcnn.train(resume=folder, quiet=True)
    lost.clear()
    assert_same(rcnn.train(resume=folder, quiet=True), local)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": f"https://host/data.json?X-Amz-Signature={SECRET}"}, "can't have parameters, such as a signature"),
        ({"data": f"s3://key:{SECRET}@bucket/data"}, "a user, a password or a signature"),
        ({"init": f"https://host/a.safetensors?sig={SECRET}"}, "can't have parameters, such as a signature"),
        ({"runs": "s3://bucket/runs"}, "a run folder must be a local path, and an address was given"),
        ({"overrides": ["data.cache=s3://bucket/cache"]}, "data.cache must be a local path"),
    ],
)
def test_addresses_that_settings_can_not_hold_are_refused(
    arguments: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        rcnn.train(**{"data": data, "runs": tmp_path, "quiet": True, **arguments})
    assert SECRET not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_weights_are_loaded_from_an_address(
    local: Run, data: Path, tmp_path: Path, place: Callable[[Path], str]
) -> None:
    address = f"{place(local.folder / 'weights')}/best.safetensors"
    detector = rcnn.load(address, device="cpu")
    expected = rcnn.load(local.folder, device="cpu")
    image = next(data.rglob("*.jpg"))
    (found,), (wanted,) = (one.predict(image, score=0.0) for one in (detector, expected))
    assert (found.boxes == wanted.boxes).all()
    assert (found.scores == wanted.scores).all()
    run = rcnn.train(data, runs=tmp_path, start_from=address, epochs=1, quiet=True, device="cpu")
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["train"]["init"] == address
