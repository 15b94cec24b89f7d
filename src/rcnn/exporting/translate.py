"""Translations into ONNX of our operators (non-maximum suppression, RoI align, RoI max pooling) and of stable sort.

Each function has the arguments of its operator (see `rcnn.ops`) and builds the nodes of the graph with onnxscript.
B images, N boxes, M = max_output, R RoIs per image, C channels, S = output_size, P pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

Value = Any
"""A tensor in the graph that is being built."""


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return operator -> its translation, for `torch.onnx.export`."""
    return {
        torch.ops.rcnn.nms.default: nms,
        torch.ops.rcnn.roi_align.default: roi_align,
        torch.ops.rcnn.roi_pool.default: roi_pool,
        torch.ops.aten.sort.stable: stable_sort,  # torch.onnx translates only `sort` without `stable`
    }


def nms(
    boxes: Value, scores: Value, groups: Value, valid: Value, iou_threshold: float, max_output: int
) -> tuple[Value, Value]:
    """Translate `rcnn::nms` for scores of at least 0 and groups 0, 1, ...: index (B, M) into N, and valid (B, M).

    Groups are shifted apart on a square grid, on which float32 boxes lose fewer bits than in one row.
    """
    op = _op()
    usable = op.And(valid, op.Not(op.IsNaN(scores)))
    scores = op.Where(usable, scores, _float(-1.0))
    top = op.ReduceMax(
        boxes, _ints(1, 2), keepdims=1
    )  # (B, 1, 1), separate for each image, so that images do not affect one another
    span = op.Add(op.Sub(top, op.ReduceMin(boxes, _ints(1, 2), keepdims=1)), _float(1.0))
    number = op.Cast(groups, to=1)
    side = op.Ceil(op.Sqrt(op.Add(op.ReduceMax(number, keepdims=0), _float(1.0))))
    row = op.Floor(op.Div(number, side))
    column = op.Sub(number, op.Mul(row, side))
    place = op.Unsqueeze(op.Concat(op.Unsqueeze(column, _ints(2)), op.Unsqueeze(row, _ints(2)), axis=2), _ints(2))
    shift = op.Mul(op.Reshape(op.Concat(place, place, axis=2), _ints(0, 0, 4)), span)  # (B, N, 4)
    scores = op.Unsqueeze(scores, _ints(1))
    picked = op.NonMaxSuppression(  # (n, 3): image, 0, box; by image, the best first
        op.Add(boxes, shift), scores, _ints(max_output), _floats(iou_threshold), _floats(-0.5)
    )
    image, _, box = (op.Squeeze(part, _ints(1)) for part in op.Split(picked, axis=1, num_outputs=3))
    images = op.Unsqueeze(op.Range(_int(0), op.Squeeze(op.Shape(boxes, start=0, end=1)), _int(1)), _ints(1))  # (B, 1)
    counts = op.ReduceSum(op.Cast(op.Equal(images, op.Unsqueeze(image, _ints(0))), to=7), _ints(1), keepdims=1)
    first = op.CumSum(counts, _int(0), exclusive=1)  # (B, 1) of each image's boxes in `picked`
    places = op.Unsqueeze(op.Constant(value=_tensor(np.arange(max_output))), _ints(0))  # (1, M)
    kept = op.Less(places, counts)  # (B, M)
    box = op.Concat(box, _ints(0), axis=0)  # so that `Gather` has an element if nothing was kept
    index = op.Gather(box, op.Where(kept, op.Add(first, places), _int(0)))
    return op.Where(kept, index, _int(0)), kept


def roi_align(
    levels: Sequence[Value],
    boxes: Value,
    level: Value,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Value:
    """Translate `rcnn::roi_align`: (B, R, S, S, C)."""

    def pool(feature: Value, rois: Value, image: Value, scale: float) -> Value:
        return _op().RoiAlign(
            feature,
            rois,
            image,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=output_size,
            output_width=output_size,
            sampling_ratio=sampling_ratio,
            spatial_scale=scale,
        )

    return _op().Transpose(_by_level(pool, levels, boxes, level, scales), perm=[0, 1, 3, 4, 2])


def roi_pool(
    levels: Sequence[Value], boxes: Value, level: Value, scales: Sequence[float], output_size: int
) -> tuple[Value, Value]:
    """Translate `rcnn::roi_pool`: (B, R, C, S, S), twice, since only training needs the pixels of the maxima."""

    def pool(feature: Value, rois: Value, image: Value, scale: float) -> Value:
        op = _op()
        rois = op.Concat(op.Unsqueeze(op.Cast(image, to=1), _ints(1)), rois, axis=1)  # (n, 5)
        return op.MaxRoiPool(feature, rois, pooled_shape=[output_size, output_size], spatial_scale=scale)

    pooled = _by_level(pool, levels, boxes, level, scales)
    return pooled, pooled


def stable_sort(
    values: Value, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    """Translate `aten::sort.stable` to `TopK`, which returns equal values in their order, also in onnxruntime."""
    op = _op()
    length = op.Gather(op.Shape(values), _ints(dim))  # (1,)
    return op.TopK(values, length, axis=dim, largest=int(descending))


def _by_level(
    pool: Callable[[Value, Value, Value, float], Value],
    levels: Sequence[Value],
    boxes: Value,
    level: Value,
    scales: Sequence[float],
) -> Value:
    """Return (B, R, C, S, S), each box pooled from its level by `pool(map, boxes (n, 4), images (n,), scale)`."""
    op = _op()
    shape = op.Shape(level)  # (2,)
    rois = op.Reshape(boxes, _ints(-1, 4))
    images = op.Range(_int(0), op.Squeeze(op.Slice(shape, _ints(0), _ints(1))), _int(1))
    images = op.Reshape(op.Expand(op.Unsqueeze(images, _ints(1)), shape), _ints(-1))  # (B * R,)
    if len(levels) == 1:
        pooled = pool(levels[0], rois, images, scales[0])
    else:
        level = op.Reshape(level, _ints(-1))
        rows = [op.Squeeze(op.NonZero(op.Equal(level, _int(number))), _ints(0)) for number in range(len(levels))]
        parts = [
            pool(feature, op.Gather(rois, row), op.Gather(images, row), scale)
            for feature, row, scale in zip(levels, rows, scales, strict=True)
        ]
        # The parts are concatenated by level; each RoI takes its row of them.
        order = op.Concat(*rows, axis=0)
        places = op.Range(_int(0), op.Squeeze(op.Shape(order)), _int(1))
        pooled = op.Gather(op.Concat(*parts, axis=0), op.ScatterElements(places, order, places))
    return op.Reshape(pooled, op.Concat(shape, op.Shape(pooled, start=1), axis=0))


def _op() -> Any:
    from onnxscript import opset18

    return opset18


def _tensor(values: np.ndarray) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(values)


def _int(value: int) -> Value:
    return _op().Constant(value=_tensor(np.array(value, dtype=np.int64)))


def _ints(*values: int) -> Value:
    return _op().Constant(value=_tensor(np.array(values, dtype=np.int64)))


def _float(value: float) -> Value:
    return _op().Constant(value=_tensor(np.array(value, dtype=np.float32)))


def _floats(*values: float) -> Value:
    return _op().Constant(value=_tensor(np.array(values, dtype=np.float32)))
