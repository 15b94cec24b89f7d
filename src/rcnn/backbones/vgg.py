"""VGG-16 (Simonyan and Zisserman, 2015) as in Faster R-CNN: 13 convolutions, Caffe's pooling, no fifth pooling."""

from torch import nn

from rcnn.backbones.trunk import SequentialTrunk, Tap, initialise, up_to

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_TAPS = (Tap(2, "15", 256), Tap(3, "22", 512), Tap(4, "29", 512))
_STAGES = (("0", "2"), ("5", "7"), ("10", "12", "14"), ("17", "19", "21"), ("24", "26", "28"))


def vgg16(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """Levels 2 to 4 (to `last`): outputs of conv3_3, conv4_3 and conv5_3, before their pooling; stage n is convn_x.

    Pooling rounds sizes up, so that 600x1000 gives 38x63 cells and 224x224 gives 14x14.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for width, convs in _BLOCKS:
        for _ in range(convs):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
    features = nn.Sequential(*layers)
    initialise(features)
    return SequentialTrunk(features, up_to(_TAPS, last), _STAGES)
