"""A tiny detector and its batches for tests of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rcnn.training.recorders.history as history_file
import rcnn.training.recorders.report_page as page_file
import rcnn.training.train as train_file
from rcnn.config import Train
from rcnn.data.loading.loader import Item
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.training.distributed import Distributed
from rcnn.training.ema import EMA
from rcnn.training.loop import Engine
from rcnn.training.optim import build_optimizer
from rcnn.training.recorders import About
from rcnn.training.schemes import Joint
from tests.model import tiny


@contextmanager
def without_pictures() -> Iterator[None]:
    """Pictures take most of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        for file, name in (
            (train_file, "draw_start"),
            (history_file, "plot_history"),
            (train_file, "draw_end"),
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


def engine(
    model: FasterRCNN, total: int = 10, distributed: Distributed | None = None, ahead: int = 0, **changes: object
) -> Engine:
    settings = Train.model_validate(
        {"warmup": 0, "lr": 0.01, "lr_batch": 8, "amp": "float32", "optimizer": "sgd", **changes}
    )
    distributed = distributed or Distributed(torch.device("cpu"))
    return Engine(
        model=model,
        loss=distributed.wrap(Joint(model)),
        optimizer=build_optimizer(model, settings),
        ema=EMA(model, settings.ema) if settings.ema else None,
        settings=settings,
        distributed=distributed,
        total=total,
        image_names=lambda index: [f"image-{i}.png" for i in index.tolist()],
        ahead=ahead,
    )


def about(folder: Path, **changes: Any) -> About:
    """What recorders are told of a new run of two epochs of two steps each."""
    facts = {"settings": {}, "names": ("cat",), "images": (4, 2), "best": ("ap",), "epochs": 2, "steps": 4}
    return About(**{"folder": folder, **facts, "stage": 1, "step": 0, "rows": (), **changes})


def gradients(model: FasterRCNN) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest difference of any entry, in units of its tensor's largest one."""
    assert first.keys() == second.keys()
    scales = {name: tensor.abs().max().clamp(min=1e-30) for name, tensor in second.items()}
    return max(((first[name] - second[name]).abs().max() / scales[name]).item() for name in first)
