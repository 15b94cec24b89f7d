"""Check an exported graph before it is compiled or run: its kinds of nodes, their number, and its numbers of boxes.

Exports of rcnn have no loops, no branches, no functions of their own and no nodes of other libraries. A graph that has
them, or declares more boxes than its settings allow, comes from elsewhere. What such a check can't foresee, the time
and memory of the remaining nodes, `rcnn.runtime.process` limits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rcnn.config import Settings, shorten
from rcnn.errors import WeightsError

MAX_NODES = 20_000
"""Maximum number of nodes. The largest preset has 1,263 of them."""

Shape = tuple[int | None, ...]
Ports = Mapping[str, tuple[str, Shape]]
"""Name of an input or output -> the numpy name of its type, and its sides; None: any."""


class Declared(NamedTuple):
    """What a graph declares.

    Attributes:
        inputs: by name.
        outputs: by name.
        kinds: kinds of its nodes, with the library if it is another one: `Conv`, `com.stranger.Own`.
    """

    inputs: Ports
    outputs: Ports
    kinds: frozenset[str]


def check_number_of_nodes(count: int, path: str | Path) -> None:
    """Check the number of nodes of a graph.

    Raises:
        WeightsError: there are too many.
    """
    if count > MAX_NODES:
        raise WeightsError(f"{path}: its graph has over {MAX_NODES:,} nodes, more than a file exported by rcnn has")


def check_kinds(found: frozenset[str], known: frozenset[str], path: str | Path) -> None:
    """Check that a graph has only kinds of nodes that exports have.

    Raises:
        WeightsError: it has others; the message names one of them.
    """
    if unknown := sorted(found - known):
        raise WeightsError(
            f"{path}: its graph has nodes of the kind `{shorten(unknown[0])}`, which files exported by rcnn do not "
            "have, so it is not run. If it is an export of a network of your own, export it again on this machine, or "
            "use the .safetensors file"
        )


def check_rows(outputs: Ports, settings: Settings, path: str | Path) -> None:
    """Check that a graph declares at most as many detections and proposals as its settings allow.

    Raises:
        WeightsError: it declares more, or leaves the number open.
    """
    limits = {"boxes": ("roi.detections", settings.roi.detections)}
    limits["proposal_boxes"] = "rpn.post_test", settings.rpn.post_test
    for name, (key, most) in limits.items():
        rows = outputs[name][1][1] if name in outputs else 0
        if rows is None or rows > most:
            shown = "any number" if rows is None else f"{rows:,}"
            raise WeightsError(
                f"{path}: its graph declares {shown} of `{name}` per image, but its settings allow {key}={most}, so it "
                "is not run; export the detector again"
            )
