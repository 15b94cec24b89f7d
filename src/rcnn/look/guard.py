"""Who may ask the server of `rcnn look` for what: an ASGI layer that every request passes before anything else.

The page shows pictures and predicts for whoever asks, so it has to be sure that its own browser asks. The address that
is printed holds a token, which is exchanged once for a cookie. The Host has to be the served name and port, which other
sites can't send, also if their name is made to lead here (DNS rebinding). Nothing but GET and POST is answered, and a
POST only if it comes from a page of this server.
"""

import hmac
import secrets
import threading
from collections.abc import Callable
from urllib.parse import parse_qsl, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_PATH, LONGEST_QUERY = 1000, 16_000
"""Characters of an address before its question mark, and after it."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer."""


class Guard:
    """Lets through what the browser of the user asks for; everything else gets an answer of 4xx and a line in the log.

    Args:
        app: what is guarded.
        host: `name:port` that is served.
        log: called with a line for each wrong request, and with the address for another browser.
        home: path of the page that is opened at first.
        ending: set when the server ends.
    """

    def __init__(
        self, app: ASGIApp, host: str, log: Callable[[str], None], *, home: str, ending: threading.Event
    ) -> None:
        self.app, self.host, self.log, self.home, self.ending = app, host, log, home, ending
        self.cookie = f"rcnn-{host.rpartition(':')[2]}"
        self.token, self.secret = secrets.token_urlsafe(24), secrets.token_urlsafe(24)

    @property
    def address(self) -> str:
        """With the token, for one browser."""
        return f"http://{self.host}{self.home}?token={self.token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":  # the start and the end of the server; there are no web sockets here
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if 400 <= message["status"] < 500:
                    self.log(f"{message['status']} {scope['method'][:20]} {quote(scope['path'])[:200]}")
            await send(message)

        response = self._refusal(scope)
        await (response or self.app)(scope, receive, answer)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to what is not handed on: a refusal, or the cookie for the token."""
        headers, query = Headers(scope=scope), scope["query_string"]
        if headers.getlist("host") != [self.host]:
            return PlainTextResponse(f"This server is http://{self.host} and nothing else.", 421)
        if len(scope["path"]) > LONGEST_PATH or len(query) > LONGEST_QUERY:
            return PlainTextResponse("The address is too long.", 414)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Only GET, HEAD and POST are answered.", 405, {"Allow": "GET, HEAD, POST"})
        given = [value for name, value in parse_qsl(query.decode("latin-1")) if name == "token"]
        if given and scope["method"] == "GET" and hmac.compare_digest(given[0].encode(), self.token.encode()):
            return self._admit(scope["path"])
        if not self._known(headers):
            text = "Open the address that rcnn look printed last; it lets one browser in."
            return PlainTextResponse(text, 403)
        if scope["method"] == "POST" and headers.getlist("origin") != [f"http://{self.host}"]:
            return PlainTextResponse("This does not come from a page of this server.", 403)
        if given:  # an old address in a browser that is in already
            return RedirectResponse(self.home, 303)
        return None

    def _admit(self, path: str) -> Response:
        """Exchange the token for the cookie; the next browser gets another one."""
        self.token = secrets.token_urlsafe(24)
        self.log(f"a browser was let in; the address for another one: {self.address}")
        response = RedirectResponse(self.home if path.startswith("//") else path, 303)
        response.set_cookie(self.cookie, self.secret, httponly=True, samesite="strict")
        return response

    def _known(self, headers: Headers) -> bool:
        """Does the browser show the cookie? Other programs of this name may have left cookies besides."""
        pairs = (pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
        return any(
            name == self.cookie and hmac.compare_digest(value.encode(), self.secret.encode())
            for name, _, value in pairs
        )
