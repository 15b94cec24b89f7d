"""Any network of timm that returns feature maps, as `timm/NAME`. Needs `pip install rcnn[timm]`."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rcnn.backbones.trunk import Trunk
from rcnn.errors import SettingsError

_SIZINGS: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
"""Options of timm that let a network take images of any size; which one works depends on the kind of network."""

_NO_SOURCE: dict[str, None] = dict.fromkeys(("url", "file", "hf_hub_id"))


class TimmTrunk(Trunk):
    """A network of timm. Stage n ends where its features of stride 2^n come from.

    Args:
        name: timm's name of the network.
        in_channels: channels of the images.
        last: deepest level to build. None: all.

    Raises:
        SettingsError: timm is not installed, has no such network or no feature maps of it, or the network takes images
            of one size only.
    """

    foldable = False

    def __init__(self, name: str, in_channels: int = 3, last: int | None = None) -> None:
        super().__init__()
        self.name, self.in_channels = name, in_channels
        self.out_indices: tuple[int, ...] | None = None
        self.net = self._of_any_size()
        if last is not None:
            strides = self.net.feature_info.reduction()
            self.out_indices = tuple(i for i, stride in enumerate(strides) if stride <= 2**last)
            self.net = self.create()
        info = self.net.feature_info
        index = {int(stride).bit_length() - 1: i for i, stride in enumerate(info.reduction())}  # the last of equals
        self._index = {level: i for level, i in index.items() if level >= 2}
        self.levels = tuple(self._index)
        self.widths = tuple(info.channels()[i] for i in self._index.values())
        self._modules_of = {level: info.module_name(i) for level, i in index.items()}
        self._channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")

    def _of_any_size(self) -> Any:
        """Return the network with the first option that lets it take images of any size."""
        for self._sizing in _SIZINGS:
            try:
                net = self.create()
                if self._takes_any_size(net):
                    return net
            except TypeError:  # this network has no such option
                continue
        raise SettingsError(
            f"`model.backbone`: timm's `{self.name}` takes images of one size only, but a detector needs many "
            "sizes; take a network without that limit, such as timm/convnext_tiny or timm/swin_tiny_patch4_window7_224"
        )

    def create(self, weights: Mapping[str, Tensor] | None = None, *, pretrained: bool = False) -> Any:
        """Build the network with fresh weights, with the given ones or with timm's own."""
        timm = import_timm()
        options: dict[str, Any] = {"in_chans": self.in_channels, "features_only": True, **self._sizing}
        if self.out_indices is not None:
            options["out_indices"] = self.out_indices
        if weights is not None:
            # timm renames and adapts only pretrained weights; without a source it can't fetch others.
            options["pretrained_cfg_overlay"] = {"state_dict": dict(weights), "source": "", **_NO_SOURCE}
        try:
            return timm.create_model(self.name, pretrained=pretrained or weights is not None, **options)
        except RuntimeError as error:
            if weights is not None:  # the network exists, but these weights don't fit it
                raise
            near = get_close_matches(self.name, timm.list_models(), n=1)
            hint = f"; did you mean `timm/{near[0]}`?" if near and near[0] != self.name else ""
            raise SettingsError(f"`model.backbone`: timm can't make `{self.name}`: {error}{hint}") from None

    def freeze(self, stages: int, *, norm: Literal["frozen", "affine", "train"]) -> None:
        """Freeze stages as every trunk does, with timm's own frozen batch norms, which save their activations."""
        freeze_batch_norm_2d = import_timm().layers.freeze_batch_norm_2d
        if norm == "affine":
            raise SettingsError("`model.norm=affine` is not supported for networks of timm; take frozen or train")
        if norm == "frozen":
            freeze_batch_norm_2d(self.net)
        ends = [name for level, name in self._modules_of.items() if level <= stages]
        if ends:
            end = ends[-1]
            names = (end, end.replace(".", "_"), f"model.{end}")  # timm's wrappers rename
            modules = list(self.net.named_modules())  # in order of registration
            last = max(i for i, (path, _) in enumerate(modules) if any(f"{path}.".startswith(f"{n}.") for n in names))
            for _, module in modules[: last + 1]:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
                for name, child in module.named_children():
                    if isinstance(child, nn.BatchNorm2d):
                        setattr(module, name, freeze_batch_norm_2d(child))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one map per level."""
        maps = self.net(images)
        chosen = [maps[i] for i in self._index.values()]
        return [m.permute(0, 3, 1, 2) for m in chosen] if self._channels_last else chosen

    def _takes_any_size(self, net: nn.Module) -> bool:
        """Return whether a network that declares one input size also takes others."""
        known = import_timm().get_pretrained_cfg(self.name)
        if known is None or not known.fixed_input_size:
            return True
        training = net.training
        image = torch.zeros(1, self.in_channels, 96, 160, device=next(net.parameters()).device)
        try:
            with torch.no_grad():
                net.eval()(image)
        except (AssertionError, RuntimeError):
            return False
        finally:
            net.train(training)
        return True


def import_timm() -> Any:
    """Import timm, or raise an error that explains how to install it.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import timm
        import timm.layers
    except ImportError:
        raise SettingsError("`model.backbone`: networks of timm need its package: pip install rcnn[timm]") from None
    return timm
