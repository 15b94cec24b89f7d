"""`rcnn.why`: where a detector lost each object of a data set, what each false alarm is, and what to change first."""

from rcnn.config import override
from rcnn.config.aliases import suggest_settings
from rcnn.data.formats.find import Split, open_dataset
from rcnn.detector import Detector
from rcnn.diagnose.why.analyse import analyse
from rcnn.diagnose.why.tables import WhyReport, report
from rcnn.images.storage import Location
from rcnn.open_model import load


@suggest_settings
def why(
    detector: Detector | str | Location,
    data: str | Location,
    *,
    split: Split = "val",
    iou: float = 0.5,
    score: float | None = None,
    batch: int = 8,
    on_fault: str | None = None,
) -> WhyReport:
    """Find where a detector lost each object of a data set, what each false alarm is, and what to change first.

    Args:
        detector: from `rcnn.load`, or what that loads: a run folder, a file or a name.
        data: folder, COCO json, data.yaml or csv.
        split: train, val, test or all.
        iou: lowest IoU of a correct box, 0.1 to 1; at least 0.5 without a second stage.
        score: lowest score of a detection that counts, 0 to 1. None: `predict.score`, by default the threshold stored
            with the weights.
        batch: images per batch.
        on_fault: damaged, stop or skip, as `data.on_fault`. None: as in the detector's settings.

    Raises:
        WeightsError: as for `rcnn.load`.
        SettingsError: a number is out of its range, or the detector has no steps to examine: a one-stage detector, an
            exported file, or an untrained RPN.
        DataError: the data can't be read, has no images, or holds a class that the detector does not know.
        NonFiniteError: the network's output is not finite.
    """
    detector = load(detector) if isinstance(detector, str | Location) else detector
    settings = override(detector.settings, {"data": {} if on_fault is None else {"on_fault": on_fault}})
    dataset = open_dataset(data, split, settings.data, names=detector.names)
    score = settings.predict.score if score is None else score
    return report(analyse(detector, dataset, iou=iou, score=score, batch=batch), dataset, settings)
