"""OpenCV with its contributed modules, which is installed on request, and searches for proposals."""

from typing import Any

from rcnn.errors import SettingsError

COUNT = 2000
"""Number of boxes kept per image, as many as table 2 of the Faster R-CNN paper uses."""


def opencv(reader: str) -> Any:
    """Import OpenCV for `reader`, the name of what needs it.

    Raises:
        SettingsError: it is not installed, or without its contributed modules.
    """
    try:
        import cv2

        _ = cv2.ximgproc.segmentation
    except (ImportError, AttributeError):
        raise SettingsError(
            f"{reader} needs OpenCV with its contributed modules: pip install 'rcnn[proposals]'"
        ) from None
    return cv2
