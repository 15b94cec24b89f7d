"""Training schemes: which loss a step minimises. A scheme is a module whose forward is that loss (DDP wraps it)."""

from torch import Tensor, nn

from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import Batch, Keys, Targets


class Joint(nn.Module):
    """Approximate joint training (paper section 3.2, way ii): all four losses in one step.

    "Approximate": no gradient flows through the coordinates of the proposals.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, targets: Targets, keys: Keys) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (sum, count) of every loss, not yet divided."""
        return dict(self.model.loss(batch, targets, keys))


SCHEMES: dict[str, type[nn.Module]] = {"joint": Joint}
