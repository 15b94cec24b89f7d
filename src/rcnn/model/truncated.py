"""Truncated SVD of fully connected layers (Fast R-CNN, section 3.1): two smaller layers in place of one.

W (out, in) is replaced by its best approximation of rank t, U_t diag(s_t) V_t^T: a layer of diag(s_t) V_t^T without a
bias, and one of U_t with the bias of W. They have t (in + out) weights instead of in * out.
"""

from collections.abc import Sequence

import torch
from torch import nn

from rcnn.errors import SettingsError


def linear_layers(head: nn.Module) -> dict[str, nn.Linear]:
    """Return the fully connected layers of a second stage's head in order, by name: fc6 and fc7 of VGG and ZF."""
    return {name: layer for name, layer in head.named_modules() if isinstance(layer, nn.Linear)}


def check_ranks(head: nn.Module | None, ranks: Sequence[int]) -> None:
    """Check that the layers of a head can be truncated to these ranks.

    Args:
        head: head of the second stage; None if there is no second stage.
        ranks: `predict.svd`, one for each fully connected layer.

    Raises:
        SettingsError: there are no such layers, their number differs, or a rank is larger than its layer.
    """
    layers = {} if head is None else linear_layers(head)
    setting = f"predict.svd={list(ranks)}"
    if not layers:
        raise SettingsError(
            f"{setting} truncates the fully connected layers of the second stage's head, and this detector has none "
            "there (roi.head=fc and conv-fc have): leave it out"
        )
    shapes = {name: f"{name} of {layer.out_features} x {layer.in_features}" for name, layer in layers.items()}
    if len(ranks) != len(layers):
        raise SettingsError(f"{setting}: give one rank for each of the head's layers: {', '.join(shapes.values())}")
    for (name, layer), rank in zip(layers.items(), ranks, strict=True):
        if rank > (full := min(layer.out_features, layer.in_features)):
            raise SettingsError(f"{setting}: {rank} is larger than the rank of {shapes[name]}: give {full} at most")


def truncate_head(head: nn.Module, ranks: Sequence[int]) -> None:
    """Replace the fully connected layers of a head in place, by pairs of the given ranks; see `check_ranks`."""
    for (name, layer), rank in zip(linear_layers(head).items(), ranks, strict=True):
        head.set_submodule(name, truncated(layer, rank))


@torch.no_grad()
def truncated(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Return two layers whose product is the best approximation of a layer at that rank, in the Frobenius norm.

    U_t are the leading eigenvectors of W W^T (with fewer columns than rows, V_t are those of W^T W), in float64. Since
    diag(s_t) V_t^T = U_t^T W, the other side need not be computed, and there is no division by small singular values.

    Args:
        layer: with weights (out, in) and perhaps a bias.
        rank: t, at most min(out, in).
    """
    weight = layer.weight.double()
    if len(weight) <= weight.shape[1]:
        left = torch.linalg.eigh(weight @ weight.T).eigenvectors[:, -rank:]
        right = left.T @ weight
    else:
        right = torch.linalg.eigh(weight.T @ weight).eigenvectors[:, -rank:].T
        left = weight @ right.T
    first, second = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
    pair = nn.Sequential(first, second).to(layer.weight).requires_grad_(False)
    first.weight.copy_(right)
    second.weight.copy_(left)
    second.bias.zero_() if layer.bias is None else second.bias.copy_(layer.bias)
    return pair.train(layer.training)
