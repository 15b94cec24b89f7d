"""A tiny detector with its batches, and small runs that tests train, kill, resume and compare."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn.config import Data, Settings, override
from rcnn.data.formats.find import open_splits
from rcnn.data.loading.loader import Item
from rcnn.data.synthetic import synthesise
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.training.distributed import Distributed
from rcnn.training.ema import EMA
from rcnn.training.log import Log
from rcnn.training.optim import build_optimizer
from rcnn.training.recorders import About, Recorder, Recorders, Row
from rcnn.training.run import Run
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import Stage, StageLoss
from rcnn.training.stages import Progress, TrainState
from rcnn.training.step import backward
from rcnn.training.trainer import Trainer
from rcnn.weights.file import load_weights
from tests.model import tiny

ALONE = Distributed(torch.device("cpu"))
SMALL = ["preprocess.short=64", "preprocess.long=96", "model.channels=16", "roi.hidden=32"]
"""Settings of a network that is trained in seconds."""
FEW_PROPOSALS = ["rpn.pre_train=60", "rpn.post_train=40", "rpn.pre_test=60", "rpn.post_test=40"]
OPTIONS: dict[str, Any] = {"model": "tiny-fpn", "epochs": 2, "batch": 2, "lr": 0.02, "device": "cpu", "quiet": True}
TIMES = {"seconds", "images_per_second", "memory_gb"}


@contextmanager
def without_pictures() -> Iterator[None]:
    """Draw no pictures, which take most of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rcnn.training.start.draw_start", lambda *_: None)
        patch.setattr("rcnn.training.summary.draw_end", lambda *_: None)
        patch.setattr("rcnn.training.recorders.standard.plot_history", lambda *_: None)
        for name in ("keep_scores", "write_report"):
            patch.setattr(f"rcnn.training.recorders.report_page.{name}", lambda *_: None)
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shapes(folder: Path, train: int, val: int) -> Path:
    """Write a data set with `train` and `val` images of 64 x 96 pixels; return its folder."""
    for split, images, seed in (("train", train, 1), ("val", val, 2)):
        synthesise(folder / "shapes", images, split=split, size=(64, 96), seed=seed)
    return folder / "shapes"


def write_random_proposals(data: Path, file: Path) -> Path:
    """Write proposals for the images of both lists: the objects, and 20 random boxes per image."""
    rng, proposals = np.random.default_rng(0), {}
    for record in (record for dataset in open_splits(data, Data()) for record in dataset.records):
        corners = rng.uniform(0, 40, (20, 2))
        boxes = [*record.boxes.tolist(), *np.hstack((corners, corners + 20)).tolist()]
        proposals[record.name] = [[*box, 1 - i / 99] for i, box in enumerate(boxes)]
    file.write_text(json.dumps(proposals), encoding="utf-8")
    return file


class Killed(Exception):
    """Ends a run without saving anything."""


@contextmanager
def killed(step: int, saved: int | None = None, stage: int = 0) -> Iterator[None]:
    """Kill the training of the block after `step` steps of a stage, with a checkpoint after `saved` of them."""

    def is_late(trainer: Trainer) -> bool:
        progress = trainer.state.progress
        if (progress.stage, progress.step) == (stage, step):
            raise Killed
        return (progress.stage, progress.step + 1) == (stage, saved)  # the checkpoint is made after the next step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "is_late", is_late)
        with pytest.raises(Killed):
            yield


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl, without times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def assert_same(run: Run, whole: Run) -> None:
    """Check that weights, average, optimiser, logs and predictions are equal to the bit."""
    assert rows(run.folder) == rows(whole.folder)
    (mine,), (theirs,) = (one.folder.glob("checkpoints/*") for one in (run, whole))
    for found, expected in ((run.best, whole.best), (run.last, whole.last), (mine, theirs)):
        assert_equal(load_weights(found)[0], load_weights(expected)[0])
    for a, b in zip(run.metrics.predictions, whole.metrics.predictions, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def item(seed: int = 0, count: int = 2, dtype: torch.dtype = torch.float32) -> Item:
    batch, targets = tiny.batch(count, seed=seed, dtype=dtype)
    return Item(batch, targets, torch.arange(count) + 10 * seed, torch.arange(count) + seed)


def part(whole: Item, rows: slice) -> Item:
    """Return some images of a batch."""

    def cut(tensors: Any) -> Any:
        return type(tensors)(*(tensor[rows] for tensor in tensors))

    return Item(cut(whole.batch), cut(whole.targets), whole.seeds[rows], whole.index[rows])


def state(
    model: FasterRCNN, total: int = 10, distributed: Distributed = ALONE, items: Iterable[Item] = (), **changes: object
) -> TrainState:
    """Return a stage that trains a model on some batches, whose images are named image-N.png."""
    basis = {"warmup": 0, "lr": 0.01, "lr_batch": 8, "amp": "float32", "optimizer": "sgd"}
    settings = override(Settings(), {"train": {**basis, **changes}})
    train = settings.train
    records = [SimpleNamespace(name=f"image-{i}.png") for i in range(99)]
    loader: Any = SimpleNamespace(
        dataset=SimpleNamespace(records=records), steps=9, epoch=lambda *_: (item for item in items)
    )
    return TrainState(
        stages=(Stage(),),
        settings=settings,
        train=train,
        model=model,
        loss=distributed.wrap(StageLoss(model)),
        optimizer=build_optimizer(model, train),
        ema=EMA(model, train.ema) if train.ema else None,
        loader=loader,
        lengths=((9, total),),
        progress=Progress(),
    )


def trainer(state: TrainState, recorder: Recorder | None = None, distributed: Distributed = ALONE) -> Trainer:
    """Return a trainer of a stage without a data set or run folder."""
    recorders = Recorders([recorder] if recorder else [], print)
    folder, log = RunFolder("nowhere"), Log(None, None)
    none: Any = None
    trainer = Trainer(state.settings, none, folder, log, distributed, recorders, none)
    trainer.state = state
    return trainer


class Keeper(Recorder):
    """Keeps everything that it receives."""

    def __init__(self) -> None:
        self.received: list[tuple[str, Any]] = []

    def start(self, about: About) -> None:
        self.received.append(("start", about))

    def step(self, numbers: Row) -> None:
        self.received.append(("step", numbers))

    def epoch(self, row: Row) -> None:
        self.received.append(("epoch", row))

    def end(self, scores: Row) -> None:
        self.received.append(("end", scores))

    @property
    def calls(self) -> list[str]:
        return [name for name, _ in self.received]

    def of(self, name: str) -> list[Any]:
        """Return what one of the four methods has received, without times."""
        found = [fact for call, fact in self.received if call == name]
        return [{key: value for key, value in fact.items() if key not in TIMES} for fact in found]


def about(folder: Path, **changes: Any) -> About:
    """Return what recorders receive at the start of a run with two epochs of two steps each."""
    facts = {"settings": {}, "names": ("cat",), "images": (4, 2), "best": ("ap",), "epochs": 2, "steps": 4, **changes}
    lengths = ((facts["epochs"], facts["steps"]),) * len(facts["best"])
    return About(**{"folder": folder, "stage": 1, "step": 0, "rows": (), "lengths": lengths, **facts})


def gradients(model: FasterRCNN, *items: Item) -> dict[str, Tensor]:
    """Return the gradients of a step on some batches."""
    model.zero_grad()
    for item in items:
        backward(state(model), ALONE, item, len(items))
    return tiny.gradients(model)


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest difference of any entry, relative to the largest entry of its tensor."""
    assert first.keys() == second.keys()
    scales = {name: tensor.abs().max().clamp(min=1e-30) for name, tensor in second.items()}
    return max(((first[name] - second[name]).abs().max() / scales[name]).item() for name in first)
