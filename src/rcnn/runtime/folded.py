"""A network with batch norm folded into its convolutions."""

import copy

from rcnn.backbones.norm import fold_batch_norm
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.truncated import truncate_head


def folded(model: FasterRCNN) -> FasterRCNN:
    """Return a copy of the model in eval mode, without gradients, with batch norm folded into the convolutions.

    The head's fully connected layers are truncated to the ranks of `predict.svd`, if it has any.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(copied)
    if copied.settings.predict.svd and copied.fast_rcnn is not None:
        for stage in copied.fast_rcnn.heads:
            truncate_head(stage.head, copied.settings.predict.svd)
    return copied
