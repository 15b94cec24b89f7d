"""Detections of single pictures. Another threshold of NMS does not run the network again."""

from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from os.path import abspath
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnn.config import Settings
from rcnn.detector import Detector
from rcnn.diagnose.why.outcomes import find_alarms
from rcnn.errors import ImageError, SettingsError
from rcnn.images.stream import read_picture
from rcnn.metrics.overlap import match
from rcnn.metrics.types import Prediction, Truth
from rcnn.model.fast_rcnn import final_boxes
from rcnn.model.structures import Batch
from rcnn.model.suppress import NMS
from rcnn.report.scores import IOU

MAX_RECENT = 8
"""Number of pictures whose boxes before NMS are kept."""


class BeforeNMS(NamedTuple):
    """The boxes of one picture before NMS: the arguments of `final_boxes`, and the batch without pixels."""

    batch: Batch
    boxes: Tensor
    probability: Tensor
    valid: Tensor
    finite: Tensor


class JudgedDetections(NamedTuple):
    """The detections of one picture, and which of them are right.

    This holds at every score, since a detection never changes the match of one with a higher score.

    Attributes:
        prediction: (P,) best first.
        matched: (P,) index of the object that each matches, or -1.
        ignored: (P,) bool, whether it lies on an ignored object and counts neither as right nor as wrong.
        kinds: (P,) the kind of a wrong detection, a key of `ALARMS`; else empty.
    """

    prediction: Prediction
    matched: np.ndarray
    ignored: np.ndarray
    kinds: tuple[str, ...]

    def scores_of(self, objects: int) -> np.ndarray:
        """Return (G,) float64, the score of the detection that matches each object, or -1."""
        scores = np.full(objects, -1.0)
        hits = self.matched >= 0
        scores[self.matched[hits]] = self.prediction.scores[hits]
        return scores


def judge_detections(prediction: Prediction, truth: Truth | None) -> JudgedDetections:
    """Judge detections by the matches of the metric and the kinds of false alarms of `why`.

    A probably missing label counts as background here, since only the scores of the entire data set reveal it.
    """
    number = len(prediction.scores)
    if truth is None:
        return JudgedDetections(prediction, np.full(number, -1), np.zeros(number, bool), ("",) * number)
    matched, ignored = match(truth, prediction, IOU)
    kinds = [""] * number
    for alarm in find_alarms([truth], [prediction], IOU, 0.0):
        kinds[alarm.detection] = "background" if alarm.kind == "missing_label" else alarm.kind
    return JudgedDetections(prediction, matched, ignored, tuple(kinds))


@dataclass(frozen=True, slots=True)
class KnownDetections:
    """Detections that were made before, such as those of an audit.

    Attributes:
        settings: with which the pictures were read.
        names: classes that their labels index.
        predictions: absolute path of a picture -> its detections.
    """

    settings: Settings
    names: tuple[str, ...]
    predictions: Mapping[str, Prediction]

    adjustable: ClassVar[bool] = False

    def find(self, path: Path, nms: float | None = None, *, keep: bool = True) -> Prediction:
        """Return the detections of a picture. Arguments are as for `Finder.find`; nothing is computed.

        Raises:
            ImageError: none are known of this picture.
            SettingsError: another threshold of NMS is requested.
        """
        if nms is not None:
            raise SettingsError("the NMS of known detections can't be changed")
        try:
            return self.predictions[abspath(path)]
        except KeyError:
            raise ImageError(f"{path}: no detections are known of this picture") from None


class Finder:
    """The detections of files by one detector, for several threads.

    Args:
        detector: a detector that predicts classes.
        network: the one thread that runs it, since each further thread would hold additional memory.

    Raises:
        SettingsError: the detector does not predict classes, or needs external proposals.
    """

    def __init__(self, detector: Detector, network: Executor) -> None:
        detector.check_proposals(given=False)
        if not detector.settings.predicts_classes:
            raise SettingsError("this model has no second stage (`roi.head=none`): it only proposes boxes")
        self.detector = detector
        self._network = network
        self._recent: OrderedDict[Path, BeforeNMS] = OrderedDict()

    @property
    def adjustable(self) -> bool:
        """Whether NMS can be repeated: with a second stage in this process, and one view per picture."""
        detector, predict = self.detector, self.detector.settings.predict
        single = len(predict.scales) == 1 and predict.tile == "off"
        return detector.has_network and detector.two_stage and single

    def find(self, path: Path, nms: float | None = None, *, keep: bool = True) -> Prediction:
        """Return all detections of a picture above `roi.score`, in pixels of the file.

        Args:
            path: of the picture.
            nms: in place of `roi.nms`, if it is `adjustable`. None: as in the settings.
            keep: keep its boxes before NMS for the next call.

        Raises:
            ImageError: it can't be read.
            SettingsError: NMS is not adjustable.
            NonFiniteError: the network's output is not finite.
        """
        if not self.adjustable:
            if nms is not None:
                raise SettingsError("the NMS of this model can't be changed afterwards")
            array = read_picture(path, self.detector.settings)
            (result,) = self._network.submit(self.detector.predict, array, score=0.0).result()
        else:
            before = self._network.submit(self._before_nms, path, keep).result()
            suppress = self.detector.suppression.detections if nms is None else NMS(nms)
            detections = final_boxes(*before[1:], settings=self.detector.settings.roi, suppress=suppress)
            (result,) = self.detector.results(before.batch, detections)
        return Prediction(result.boxes, result.scores, result.labels)

    @torch.inference_mode()
    def _before_nms(self, path: Path, keep: bool) -> BeforeNMS:
        """Return the boxes of a picture before NMS, those that were kept or new ones from the network."""
        before, detector = self._recent.get(path), self.detector
        if before is None:
            preprocessor = detector.preprocessor.at_scale(detector.settings.predict.scales[0])
            array = read_picture(path, detector.settings)
            batch = preprocessor.collate([preprocessor.resize(array)], [(array.shape[0], array.shape[1])])
            pass_ = detector.network.record(batch)
            second_stage = detector.runner.fast_rcnn
            assert second_stage is not None
            assert pass_.proposals is not None
            assert pass_.detections is not None
            with detector.network.autocast:
                boxes = second_stage.refined(pass_.rois, batch.sizes.to(detector.device))
                probability = second_stage.probabilities(pass_.rois)
            without_pixels = batch._replace(images=batch.images[..., :0, :0])
            before = BeforeNMS(without_pixels, boxes, probability, pass_.proposals.valid, pass_.detections.finite)
        if keep:
            self._recent[path] = before
            self._recent.move_to_end(path)
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
        return before
