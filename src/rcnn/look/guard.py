"""Access control of the server of `rcnn look`: an ASGI layer that checks every request.

The server answers only the browser of its user, since it shows pictures and runs the detector. The printed address
holds a token, which is exchanged once for a cookie. The Host header must be the served name and port, which other sites
can't send even if their name resolves to this machine (DNS rebinding). Only GET, HEAD and POST are answered, and POST
only from a page of this server.
"""

import hmac
import secrets
import threading
from collections.abc import Callable
from urllib.parse import parse_qsl, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rcnn.look.connections import accept, timed

MAX_PATH, MAX_QUERY = 1000, 16_000
"""Number of characters of an address before and after its question mark."""

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
"""Headers of every answer."""


class Guard:
    """Passes the requests of the user's browser to the app; others are answered with 4xx and logged.

    Args:
        app: the protected app.
        host: `name:port` of the server.
        log: called with a line for each refused request, and with the address for another browser.
        home: path of the first page.
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
        """The address with the token, which admits one browser."""
        return f"http://{self.host}{self.home}?token={self.token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":  # start and end of the server; there are no web sockets
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
        if response:
            await response(scope, receive, answer)
        else:
            accept(scope)
            await self.app(scope, timed(receive), answer)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on, a refusal or a redirection; None to pass it on."""
        headers, query = Headers(scope=scope), scope["query_string"]
        if headers.getlist("host") != [self.host]:
            return PlainTextResponse(f"This server is http://{self.host} only.", 421)
        if len(scope["path"]) > MAX_PATH or len(query) > MAX_QUERY:
            return PlainTextResponse("The address is too long.", 414)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Only GET, HEAD and POST are answered.", 405, {"Allow": "GET, HEAD, POST"})
        tokens = [value for name, value in parse_qsl(query.decode("latin-1")) if name == "token"]
        if tokens and scope["method"] == "GET" and hmac.compare_digest(tokens[0].encode(), self.token.encode()):
            return self._admit(scope["path"])
        if not self._known(headers):
            return PlainTextResponse("Open the address that rcnn look printed last; it works for one browser.", 403)
        if scope["method"] == "POST" and headers.getlist("origin") != [f"http://{self.host}"]:
            return PlainTextResponse("This request does not come from a page of this server.", 403)
        if tokens:  # an old address in a browser that has the cookie
            return RedirectResponse(self.home, 303)
        return None

    def _admit(self, path: str) -> Response:
        """Return the cookie for a token, and create a token for the next browser."""
        self.token = secrets.token_urlsafe(24)
        self.log(f"a browser has connected; the address for another one: {self.address}")
        response = RedirectResponse(self.home if path.startswith("//") else path, 303)
        response.set_cookie(self.cookie, self.secret, httponly=True, samesite="strict")
        return response

    def _known(self, headers: Headers) -> bool:
        """Return whether the cookie was sent, possibly among cookies that other programs of this host have set."""
        pairs = (pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
        return any(
            name == self.cookie and hmac.compare_digest(value.encode(), self.secret.encode())
            for name, _, value in pairs
        )
