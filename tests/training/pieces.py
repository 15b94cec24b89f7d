"""A tiny detector and its batches for tests of training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import rcnn.training.recorders.history as history_file
import rcnn.training.recorders.report_page as page_file
import rcnn.training.start as start_file
import rcnn.training.summary as summary_file
from rcnn.config import Settings, override
from rcnn.data.loading.loader import Item
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.training.distributed import Distributed
from rcnn.training.ema import EMA
from rcnn.training.log import Log
from rcnn.training.optim import build_optimizer
from rcnn.training.recorders import About, Recorder, Recorders
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import Joint, Stage
from rcnn.training.stages import Progress, TrainState
from rcnn.training.trainer import Trainer
from tests.model import tiny

ALONE = Distributed(torch.device("cpu"))


@contextmanager
def without_pictures() -> Iterator[None]:
    """Pictures take most of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        for file, name in (
            (start_file, "draw_start"),
            (history_file, "plot_history"),
            (summary_file, "draw_end"),
            (page_file, "keep_scores"),
            (page_file, "write_report"),
        ):
            patch.setattr(file, name, lambda *_, **__: None)
        yield


def item(seed: int = 0, count: int = 2, dtype: torch.dtype = torch.float32) -> Item:
    batch, targets = tiny.batch(count, seed=seed, dtype=dtype)
    return Item(batch, targets, torch.arange(count) + 10 * seed, torch.arange(count) + seed)


def part(whole: Item, rows: slice) -> Item:
    """Some images of a batch."""

    def cut(tensors: Any) -> Any:
        return type(tensors)(*(tensor[rows] for tensor in tensors))

    return Item(cut(whole.batch), cut(whole.targets), whole.seeds[rows], whole.index[rows])


def state(
    model: FasterRCNN, total: int = 10, distributed: Distributed = ALONE, items: Iterable[Item] = (), **changes: object
) -> TrainState:
    """A stage that trains a model on some batches, whose images are called image-N.png."""
    basis = {"warmup": 0, "lr": 0.01, "lr_batch": 8, "amp": "float32", "optimizer": "sgd"}
    settings = override(Settings(), {"train": {**basis, **changes}})
    train = settings.train
    records = [SimpleNamespace(name=f"image-{i}.png") for i in range(99)]
    loader: Any = SimpleNamespace(
        dataset=SimpleNamespace(records=records), steps=9, epoch=lambda *_: (item for item in items)
    )
    return TrainState(
        stages=(Stage(Joint),),
        settings=settings,
        train=train,
        model=model,
        loss=distributed.wrap(Joint(model)),
        optimizer=build_optimizer(model, train),
        ema=EMA(model, train.ema) if train.ema else None,
        loader=loader,
        lengths=((9, total),),
        progress=Progress(),
    )


def trainer(state: TrainState, recorder: Recorder | None = None, distributed: Distributed = ALONE) -> Trainer:
    """A trainer of a stage without a data set and a run folder."""
    recorders = Recorders([recorder] if recorder else [], print)
    folder, log = RunFolder("nowhere"), Log(None, None)
    none: Any = None
    made = Trainer(state.settings, none, folder, log, distributed, recorders, none)
    made.state = state
    return made


def about(folder: Path, **changes: Any) -> About:
    """What recorders receive at the start of a new run of two epochs of two steps each."""
    facts = {"settings": {}, "names": ("cat",), "images": (4, 2), "best": ("ap",), "epochs": 2, "steps": 4, **changes}
    lengths = ((facts["epochs"], facts["steps"]),) * len(facts["best"])
    return About(**{"folder": folder, "stage": 1, "step": 0, "rows": (), "lengths": lengths, **facts})


def gradients(model: FasterRCNN) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest difference of any entry, in units of its tensor's largest one."""
    assert first.keys() == second.keys()
    scales = {name: tensor.abs().max().clamp(min=1e-30) for name, tensor in second.items()}
    return max(((first[name] - second[name]).abs().max() / scales[name]).item() for name in first)
