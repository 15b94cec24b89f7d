"""The server's side of the pages "Pictures" and "Explain": JSON about the album, and pictures."""

import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rcnn.config import Settings
from rcnn.config.files import MB
from rcnn.diagnose.explain.follow import follow
from rcnn.errors import ImageError, NonFiniteError, SettingsError, printable
from rcnn.images.decode import NPY_MAGIC, image_size
from rcnn.images.stream import read_picture
from rcnn.look.album import DROPPED, MISTAKES, Album, AlbumImage, Filters
from rcnn.look.explain import to_json
from rcnn.look.finder import Finder, judge_detections
from rcnn.look.threads import FewThreads
from rcnn.look.thumbnails import LARGE_SIDE, Thumbnails, encoded, message_image
from rcnn.metrics.proposal_recall import SIZES

MAX_BYTES = 64 * MB
"""Largest picture that can be dropped on the page."""

MAX_DROPPED = 16
MAX_TILES = 500
"""Number of pictures in a request for names and counts."""

MAX_NAME = 200
"""Number of characters of the name of a dropped picture."""

CACHED = {"Cache-Control": "private, max-age=3600"}
"""Header of pictures, which do not change while a server runs. Their addresses name that server."""


class PicturesApi:
    """The handlers of the requests.

    Args:
        album: the pictures.
        thumbnails: small copies of them.
        dropped: folder for the pictures that are dropped on the page.
    """

    def __init__(self, album: Album, thumbnails: Thumbnails, dropped: Path) -> None:
        self.album, self.thumbnails, self.dropped = album, thumbnails, dropped
        self.run = secrets.token_urlsafe(6)
        """Part of the addresses of pictures, so that a browser never shows cached pictures of another server."""
        # Each thread that reads pictures holds additional memory. Two each let one read while another computes.
        self._network, self._decoding, self._filtering, self._writing = (FewThreads(2) for _ in range(4))

    def routes(self) -> list[Route]:
        """Return addresses and their handlers."""
        return [
            Route("/api/state", self.state),
            Route("/api/pictures", self._filtering.handler(self.choose)),
            Route("/api/pictures", self.drop, methods=["POST"]),
            Route("/api/tiles", self._filtering.handler(self.tiles)),
            Route("/api/pictures/{index:int}", self._network.handler(self.picture)),
            Route("/api/pictures/{index:int}/image", self._decoding.handler(self.image)),
            Route("/api/pictures/{index:int}/explain", self._network.handler(self.explain)),
            Route("/api/pictures/{index:int}/thumbnail", self._decoding.handler(self.thumbnail)),
        ]

    async def state(self, request: Request) -> Response:
        """Answer with facts about the album, and how many pictures are read and predicted.

        It needs no thread, so that pages open while other requests compute.
        """
        album = self.album
        if album.failed:
            return JSONResponse({"ready": False, "failed": album.failed})
        if not album.ready:
            return JSONResponse({"ready": False, "failed": "", "read": album.read})
        finder = album.finder
        lists = dict.fromkeys(picture.list for picture in list(album.pictures))
        labelled = bool(album.pictures) and album.pictures[0].truth is not None
        roi = album.settings.roi
        return JSONResponse(
            {
                "ready": True,
                "failed": "",
                "run": self.run,
                "title": album.data.resolve().name if album.data else "",
                "notes": album.notes,
                "names": album.names,
                "lists": list(lists),
                "sizes": list(SIZES),
                "mistakes": MISTAKES if finder and labelled else {},
                "predicts": finder is not None,
                "drops": isinstance(finder, Finder),
                "threshold": album.threshold,
                "least": roi.score,
                "nms": roi.nms if finder and finder.adjustable else None,
                "dropped": DROPPED,
                **self.progress(),
            }
        )

    def progress(self) -> dict[str, int]:
        """Return the number of pictures, and of those whose prediction is done or has failed."""
        return {"pictures": len(self.album.pictures), "done": len(self.album.judged) + len(self.album.faults)}

    def choose(self, request: Request) -> Response:
        """Answer with the indices of the pictures that match the filters."""
        filters = self.filters(request.query_params)
        return JSONResponse({"indices": self.opened().choose(filters), **self.progress()})

    def tiles(self, request: Request) -> Response:
        """Answer with the names and counts of some pictures."""
        album, query = self.opened(), request.query_params
        words = [word for word in query.get("indices", "").split(",") if word]
        if len(words) > MAX_TILES:
            raise HTTPException(400, f"At most {MAX_TILES} pictures per request.")
        if not all(word.isascii() and word.isdigit() and len(word) < 12 for word in words):
            raise HTTPException(400, "indices: numbers of pictures, separated by commas.")
        indices, score = [int(word) for word in words], self.filters(query).score
        if max(indices, default=-1) >= len(album.pictures):
            raise HTTPException(400, "indices: there is no such picture.")
        return JSONResponse(
            [{"index": i, "name": printable(album.pictures[i].name), **album.counts(i, score)} for i in indices]
        )

    def picture(self, request: Request) -> Response:
        """Answer with one picture, its truth, and its detections above `roi.score` at an IoU threshold of NMS."""
        index, picture = self.requested(request)
        self.album.opened_at = time.monotonic()
        answer: dict[str, Any] = {
            "index": index,
            "name": printable(picture.name),
            "list": picture.list,
            "truth": None,
            "detections": None,
            "fault": "",
        }
        if picture.truth is not None:
            columns = zip(*(column.tolist() for column in picture.truth), strict=True)
            answer["truth"] = [{"box": box, "label": label, "ignore": ignore} for box, label, ignore in columns]
        album, nms = self.album, request.query_params.get("nms")
        try:
            answer["height"], answer["width"] = image_size(picture.path, max_pixels=album.settings.data.max_pixels)
            if album.finder is not None:
                answer["detections"] = self.detections(index, None if nms is None else number(nms, "nms"))
        except (ImageError, NonFiniteError, OSError) as error:
            answer["fault"] = album.faults.setdefault(index, album.fault_of(index, error))
        except SettingsError as error:
            raise HTTPException(400, str(error)) from None
        return JSONResponse(answer)

    def detections(self, index: int, nms: float | None) -> list[dict[str, Any]]:
        """Return the detections of a picture, best first."""
        album, picture = self.album, self.album.pictures[index]
        assert album.finder is not None
        if nms == album.settings.roi.nms and album.finder.adjustable:
            nms = None
        judged = judge_detections(album.finder.find(picture.path, nms), picture.truth)
        if nms is None:
            album.judged.setdefault(index, judged)
        columns = (*(column.tolist() for column in (*judged.prediction, judged.matched, judged.ignored)), judged.kinds)
        return [
            {"box": box, "score": score, "label": label, "object": matched, "ignored": ignored, "kind": kind}
            for box, score, label, matched, ignored, kind in zip(*columns, strict=True)
        ]

    def explain(self, request: Request) -> Response:
        """Answer with the results of every step of the network for a picture, or the reason why there are none."""
        index, picture = self.requested(request)
        album = self.album
        album.opened_at = time.monotonic()
        answer = {"name": printable(picture.name), "fault": "There is no model here. Start rcnn look with one."}
        if album.detector is not None:
            try:
                array = read_picture(picture.path, album.settings)
                explanation = album.network.submit(follow, album.detector, array, picture.truth).result()
                answer |= to_json(explanation, album.settings.rpn) | {"fault": ""}
            except (SettingsError, NonFiniteError) as error:
                reason = printable(str(error)).replace("`", "")
                answer["fault"] = f"{reason[:1].upper()}{reason[1:]}."
            except (ImageError, OSError) as error:
                answer["fault"] = album.fault_of(index, error)
        return JSONResponse(answer)

    def image(self, request: Request) -> Response:
        """Answer with a large picture."""
        encode = partial(encoded, side=LARGE_SIDE, kind="JPEG", quality=92)
        return self.encoded_or_fault(request, "image/jpeg", encode)

    def thumbnail(self, request: Request) -> Response:
        """Answer with a thumbnail."""
        return self.encoded_or_fault(request, "image/webp", self.thumbnails.get)

    def encoded_or_fault(self, request: Request, kind: str, encode: Callable[[Path, Settings], bytes]) -> Response:
        """Answer with the encoded picture, or with an image of the reason why it can't be read."""
        index, picture = self.requested(request)
        try:
            content = encode(picture.path, self.album.settings)
        except (ImageError, OSError) as error:
            return Response(message_image(self.album.fault_of(index, error)), media_type="image/svg+xml")
        return Response(content, headers=CACHED, media_type=kind)

    async def drop(self, request: Request) -> Response:
        """Accept a picture that was dropped on the page, and predict it."""
        album = self.opened()
        if not isinstance(album.finder, Finder):
            raise HTTPException(409, "No model that predicts classes is loaded. Start one with: rcnn look MODEL.")
        if len(list(self.dropped.iterdir())) >= MAX_DROPPED:
            text = f"There are {MAX_DROPPED} dropped pictures already, with those that are being uploaded."
            raise HTTPException(409, f"{text} Restart rcnn look to drop more.")
        name, size = printable(unquote(request.headers.get("x-name", "")))[:MAX_NAME] or "picture", 0
        file = self.dropped / secrets.token_hex(8)
        try:
            with file.open("xb") as written:  # from now on, it counts as one of the dropped pictures
                async for part in request.stream():
                    size += len(part)
                    if size > MAX_BYTES:
                        raise HTTPException(413, f"The picture is larger than {MAX_BYTES // MB} MB.")
                    await self._writing.run(None, written.write, part)
            index = await self._network.run(request, self.take, file, name)
        except BaseException as error:
            file.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise HTTPException(507, f"The picture can't be stored: {error.strerror or error}") from None
            raise
        return JSONResponse({"index": index}, 201)

    def take(self, file: Path, name: str) -> int:
        """Add a dropped picture to the album if it can be read, and return its index."""
        album = self.album
        assert album.finder is not None
        with file.open("rb") as content:
            if content.read(len(NPY_MAGIC)) == NPY_MAGIC:
                file = file.rename(file.with_suffix(".npy"))
        try:
            prediction = album.finder.find(file)
        except (ImageError, NonFiniteError, SettingsError) as error:
            file.unlink()
            raise HTTPException(422, printable(str(error)).replace(str(file), name)) from None
        index = album.add(file, name)
        album.judged[index] = judge_detections(prediction, None)
        return index

    def requested(self, request: Request) -> tuple[int, AlbumImage]:
        """Return the index in an address, and its picture."""
        index = request.path_params["index"]
        if index >= len(self.opened().pictures):
            raise HTTPException(404, "There is no such picture.")
        return index, self.album.pictures[index]

    def filters(self, query: QueryParams) -> Filters:
        """Return the filters in an address."""
        album = self.opened()
        label, size, mistake = (query.get(name) for name in ("class", "size", "mistake"))
        if label is not None and not (label.isascii() and label.isdigit() and int(label[:9]) < len(album.names)):
            raise HTTPException(400, "class: there is no such class.")
        if size is not None and size not in SIZES:
            raise HTTPException(400, f"size: one of {', '.join(SIZES)}.")
        if mistake is not None and mistake not in MISTAKES:
            raise HTTPException(400, f"mistake: one of {', '.join(MISTAKES)}.")
        score = number(query.get("score", "0.5"), "score")
        return Filters(query.get("list"), None if label is None else int(label[:9]), size, score, mistake)

    def opened(self) -> Album:
        """Return the album, or refuse the request if it has not been read."""
        if not self.album.ready:
            raise HTTPException(409, "The pictures are still being read.")
        return self.album


def number(word: str, name: str) -> float:
    """Return a number in an address, which must be from 0 to 1."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise HTTPException(400, f"{name}: a number from 0 to 1.")
    return value
