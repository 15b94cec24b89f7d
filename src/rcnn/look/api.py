"""What the pages of `rcnn look` ask the server for: JSON of what an album holds, and pictures."""

import secrets
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rcnn.config.files import MB
from rcnn.diagnose.explain.follow import follow
from rcnn.errors import ImageError, NonFiniteError, SettingsError, printable
from rcnn.images.decode import NPY_MAGIC, image_size
from rcnn.images.stream import read_picture
from rcnn.look.album import DROPPED, Album, Picture
from rcnn.look.choice import MISTAKES, Choice
from rcnn.look.finder import judged
from rcnn.look.inside import inside
from rcnn.look.thumbnails import LARGE, Thumbnails, encoded, sign
from rcnn.metrics.proposal_recall import SIZES
from rcnn.metrics.types import Prediction

LARGEST = 64 * MB
"""Bytes of a picture that is dropped on the page."""

MOST_DROPPED = 16
MOST_TILES = 500
"""Pictures that are asked for at once, at most."""

KEPT = {"Cache-Control": "private, max-age=3600"}
"""Pictures do not change while the server runs, and their addresses name the server's run."""

NAME = 200
"""Letters of the name of a dropped picture."""


class Api:
    """The answers, as methods that are routes.

    Args:
        album: what is shown.
        thumbnails: its small copies.
        dropped: folder for the pictures that are dropped on the page.
    """

    def __init__(self, album: Album, thumbnails: Thumbnails, dropped: Path) -> None:
        self.album, self.thumbnails, self.dropped = album, thumbnails, dropped
        self.run = secrets.token_urlsafe(6)
        """Part of the addresses of pictures, so that a browser never takes those of another run from its cache."""

    def routes(self) -> list[Route]:
        """Addresses and their answers."""
        return [
            Route("/api/state", self.state),
            Route("/api/pictures", self.choose),
            Route("/api/pictures", self.drop, methods=["POST"]),
            Route("/api/tiles", self.tiles),
            Route("/api/pictures/{place:int}", self.picture),
            Route("/api/pictures/{place:int}/image", self.image),
            Route("/api/pictures/{place:int}/inside", self.inside),
            Route("/api/pictures/{place:int}/thumbnail", self.thumbnail),
        ]

    def state(self, request: Request) -> Response:
        """What is shown, and how far it is read and predicted."""
        album = self.album
        if album.failed:
            return JSONResponse({"ready": False, "failed": album.failed})
        if not album.ready:
            return JSONResponse({"ready": False, "failed": "", "read": album.read})
        detector, finder = album.detector, album.finder
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
                "detects": finder is not None,
                "threshold": detector.threshold if detector else 0.5,
                "least": roi.score,
                "nms": roi.nms if finder and finder.adjustable else None,
                "dropped": DROPPED,
                **self.progress(),
            }
        )

    def progress(self) -> dict[str, int]:
        """Numbers of pictures, and of those that are predicted or can't be."""
        return {"pictures": len(self.album.pictures), "done": len(self.album.found) + len(self.album.faults)}

    def choose(self, request: Request) -> Response:
        """The places of the pictures that have what the filters ask for."""
        choice = self.choice(request.query_params)
        return JSONResponse({"places": self.opened().choose(choice), **self.progress()})

    def tiles(self, request: Request) -> Response:
        """Names and counts of some pictures."""
        album, query = self.opened(), request.query_params
        words = [word for word in query.get("places", "").split(",") if word]
        if len(words) > MOST_TILES:
            raise HTTPException(400, f"At most {MOST_TILES} pictures at once.")
        places, score = [self.place(word) for word in words], self.choice(query).score
        return JSONResponse(
            [
                {"place": place, "name": printable(album.pictures[place].name), **album.counts(place, score)}
                for place in places
            ]
        )

    def picture(self, request: Request) -> Response:
        """One picture with its truth and all detections above `roi.score`, at an IoU threshold of NMS."""
        place, picture = self.asked(request)
        self.album.asked = time.monotonic()
        told: dict[str, Any] = {
            "place": place,
            "name": printable(picture.name),
            "list": picture.list,
            "truth": None,
            "detections": None,
            "fault": "",
        }
        if picture.truth is not None:
            columns = zip(*(column.tolist() for column in picture.truth), strict=True)
            told["truth"] = [{"box": box, "label": label, "ignore": ignore} for box, label, ignore in columns]
        album, nms = self.album, request.query_params.get("nms")
        try:
            told["height"], told["width"] = image_size(picture.path, max_pixels=album.settings.data.max_pixels)
            if album.finder is not None:
                told["detections"] = self.detections(place, None if nms is None else number(nms, "nms"))
        except (ImageError, NonFiniteError, OSError) as error:
            album.faults.setdefault(place, album.told(place, error))
            told["fault"] = album.faults[place]
        except SettingsError as error:
            raise HTTPException(400, str(error)) from None
        return JSONResponse(told)

    def detections(self, place: int, nms: float | None) -> list[dict[str, Any]]:
        """The detections of a picture, best first."""
        album, picture = self.album, self.album.pictures[place]
        assert album.finder is not None
        if nms == album.settings.roi.nms and album.finder.adjustable:
            nms = None
        result = album.finder.find(picture.path, nms)
        found = judged(Prediction(result.boxes, result.scores, result.labels), picture.truth)
        if nms is None:
            album.found.setdefault(place, found)
        columns = (*(column.tolist() for column in (*found.prediction, found.matched, found.ignored)), found.kinds)
        return [
            {"box": box, "score": score, "label": label, "object": taken, "ignored": ignored, "kind": kind}
            for box, score, label, taken, ignored, kind in zip(*columns, strict=True)
        ]

    def inside(self, request: Request) -> Response:
        """What the stages of the network make of a picture, or why that can't be shown."""
        place, picture = self.asked(request)
        album = self.album
        album.asked = time.monotonic()
        told = {"name": printable(picture.name), "fault": "There is no model here; start rcnn look with one."}
        if album.detector is not None:
            try:
                array = read_picture(picture.path, album.settings)
                walk = album.network.submit(follow, album.detector, array, picture.truth).result()
                told |= inside(walk, album.settings.rpn) | {"fault": ""}
            except (SettingsError, NonFiniteError) as error:
                reason = printable(str(error)).replace("`", "")
                told["fault"] = f"{reason[:1].upper()}{reason[1:]}."
            except (ImageError, OSError) as error:
                told["fault"] = album.told(place, error)
        return JSONResponse(told)

    def image(self, request: Request) -> Response:
        """A picture to look at large."""
        _, picture = self.asked(request)
        try:
            content = encoded(picture.path, self.album.settings, LARGE, "JPEG", 92)
        except (ImageError, OSError) as error:
            return Response(sign(self.album.told(self.asked(request)[0], error)), media_type="image/svg+xml")
        return Response(content, headers=KEPT, media_type="image/jpeg")

    def thumbnail(self, request: Request) -> Response:
        """A small picture, or why there is none."""
        place, picture = self.asked(request)
        try:
            content = self.thumbnails.get(picture.path, self.album.settings)
        except (ImageError, OSError) as error:
            return Response(sign(self.album.told(place, error)), media_type="image/svg+xml")
        return Response(content, headers=KEPT, media_type="image/webp")

    async def drop(self, request: Request) -> Response:
        """Take a picture that was dropped on the page, and predict it."""
        album = self.opened()
        if album.finder is None:
            raise HTTPException(409, "There is no model here that detects; give one: rcnn look MODEL.")
        folder = self.dropped
        if len(list(folder.iterdir())) >= MOST_DROPPED:
            raise HTTPException(
                409, f"There are {MOST_DROPPED} dropped pictures already; start rcnn look again for more."
            )
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > LARGEST:
                raise HTTPException(413, f"The picture has more than {LARGEST // MB} MB.")
        name = printable(unquote(request.headers.get("x-name", "")))[:NAME] or "picture"
        file = folder / f"{secrets.token_hex(8)}{'.npy' if content.startswith(NPY_MAGIC) else ''}"
        return JSONResponse({"place": await run_in_threadpool(self.take, file, bytes(content), name)}, 201)

    def take(self, file: Path, content: bytes, name: str) -> int:
        """Keep a dropped picture if it can be read."""
        album = self.album
        assert album.finder is not None
        file.write_bytes(content)
        try:
            result = album.finder.find(file)
        except (ImageError, NonFiniteError, SettingsError) as error:
            file.unlink()
            reason = printable(str(error)).replace(str(file), name)
            raise HTTPException(422, reason) from None
        place = album.add(file, name)
        album.found[place] = judged(Prediction(result.boxes, result.scores, result.labels), None)
        return place

    def asked(self, request: Request) -> tuple[int, Picture]:
        """The picture that an address names."""
        place = request.path_params["place"]
        if place >= len(self.opened().pictures):
            raise HTTPException(404, "There is no such picture.")
        return place, self.album.pictures[place]

    def place(self, word: str) -> int:
        """The place of a picture among the words of an address."""
        if not (word.isascii() and word.isdigit() and len(word) < 12 and int(word) < len(self.album.pictures)):
            raise HTTPException(400, "A place of a picture is a number.")
        return int(word)

    def choice(self, query: QueryParams) -> Choice:
        """The filters of an address."""
        album = self.opened()
        label, size, mistake = (query.get(name) for name in ("class", "size", "mistake"))
        if label is not None and not (label.isascii() and label.isdigit() and int(label[:9]) < len(album.names)):
            raise HTTPException(400, "class: there is no such class.")
        if size is not None and size not in SIZES:
            raise HTTPException(400, f"size: one of {', '.join(SIZES)}.")
        if mistake is not None and mistake not in MISTAKES:
            raise HTTPException(400, f"mistake: one of {', '.join(MISTAKES)}.")
        score = number(query.get("score", "0.5"), "score")
        return Choice(query.get("list"), None if label is None else int(label[:9]), size, score, mistake)

    def opened(self) -> Album:
        """The album, once it is read."""
        if not self.album.ready:
            raise HTTPException(409, "The pictures are still being read.")
        return self.album


def number(word: str, name: str) -> float:
    """A share in an address."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise HTTPException(400, f"{name}: a number from 0 to 1.")
    return value
