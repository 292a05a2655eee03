"""What every request passes before an endpoint sees it, and what every answer passes on its way out.

Token, drain, number of requests under way, size of the body (counted, whatever Content-Length says), deadline, a client
that leaves; then counters, and one shape for errors. It is ASGI middleware and reads no body's content.

The web demo's pages pass it too. What they get may stay open (without a deadline, but counted), a browser may send the
token as the password it asks its user for, and no page may load anything from another host.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.refusal import Refusal, busy, log_mistake
from serving.service import Service

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/health", "/ready")
"""Asked by machines without a token, at any time."""
WATCHED_PATHS = (*OPEN_PATHS, "/metrics", "/info", "/predict", "/embed", "/similarity", "/v1/embeddings")
CLIENT_LEFT = 499
"""In the counters; nobody reads the answer."""
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:"
)
"""Of the demo's pages: a browser asks no other host for anything, whatever a model's card refers to."""
CLOSING = {"Connection": "close"}
"""After what is left of a body that nobody will read."""


class Gate:
    """Middleware in front of the endpoints.

    Args:
        app (ASGIApp): What answers.
        service (Service): Bounds, token and state.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), CLIENT_LEFT
        in_demo = self.service.is_of_demo(scope["path"])
        endpoint = "demo" if in_demo else scope["path"] if scope["path"] in WATCHED_PATHS else "other"

        async def noting_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if in_demo and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = CONTENT_POLICY
            await send(message)

        try:
            await self.guarded(scope, receive, noting_send)
        except Refusal as refusal:
            if status == CLIENT_LEFT:  # nothing of an answer is on its way
                await refusal.response()(scope, receive, noting_send)
        finally:
            self.service.metrics.requests.labels(endpoint, status).inc()
            self.service.metrics.seconds.labels(endpoint).observe(time.perf_counter() - began)

    async def guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request within its bounds.

        Raises:
            Refusal: if a bound is hurt, or (500) the app fails.
        """
        if scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        in_demo = self.service.is_of_demo(scope["path"])
        check_token(headers, self.service.token, with_password=in_demo)
        self.check_room()
        may_stay_open = in_demo and scope["method"] in ("GET", "HEAD")
        self.count(may_stay_open, 1)
        try:
            async with asyncio.timeout(None if may_stay_open else self.service.limits.deadline):
                body = await read_body(headers, receive, self.service.limits.max_body)
                if body is not None:
                    await answer_unless_left(self.app, scope, body, receive, send, self.service.finished)
        except TimeoutError as error:
            raise Refusal(
                503,
                "deadline",
                f"No answer within {self.service.limits.deadline:g} s. Send fewer texts, or come again later.",
                headers={"Retry-After": "1"} | CLOSING,
            ) from error
        except Refusal:
            raise
        except Exception as error:
            log_mistake(logger, error, scope["path"])
            raise Refusal(500, "internal", "The server made a mistake; its log says more.") from error
        finally:
            self.count(may_stay_open, -1)

    def count(self, may_stay_open: bool, change: int) -> None:
        """Note that a request came or went."""
        if may_stay_open:
            self.service.open_pages += change
        else:
            self.service.in_flight += change

    def check_room(self) -> None:
        """Raise Refusal while the server drains, or has as many requests under way as it may."""
        if self.service.draining:
            headers = {"Retry-After": "1"} | CLOSING
            raise Refusal(503, "draining", "This server is shutting down. Ask another one.", headers=headers)
        under_way = self.service.in_flight + self.service.open_pages
        if under_way >= self.service.limits.max_requests:
            raise busy("too_many_requests", f"{under_way} requests are under way. Come again later.")


def check_token(headers: dict[bytes, bytes], token: str | None, with_password: bool) -> None:
    """Raise Refusal unless the request holds the token, if there is one; compared in constant time.

    Args:
        headers (dict): Of the request.
        token (str): What must be there; None for nothing.
        with_password (bool): Whether it may also come as a password, beside any user name: what browsers ask for.
    """
    if token is None:
        return
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if with_password and scheme.lower() == b"basic":
        scheme, given = b"bearer", password_of(given)
    right = hmac.compare_digest(given.strip(), token.encode())
    if scheme.lower() != b"bearer" or not right:
        wanted = {"WWW-Authenticate": 'Basic realm="The token is the password"' if with_password else "Bearer"}
        raise Refusal(401, "unauthorized", "Send the token: Authorization: Bearer TOKEN.", headers=wanted)


def password_of(credentials: bytes) -> bytes:
    """The password of `name:password` in base64; nothing where that is no base64."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


async def read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if the client left before its end.

    Raises:
        Refusal: as soon as it is known to be longer than `limit` bytes.
    """
    declared = headers.get(b"content-length", b"")
    size = int(declared) if declared.isdigit() and len(declared) < 20 else 0
    body = bytearray()
    more = True
    while more:
        if max(size, len(body)) > limit:
            raise Refusal(
                413, "body_too_large", f"A body may have {limit} bytes. Send several requests.", headers=CLOSING
            )
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False) or len(body) > limit
    return bytes(body)


async def answer_unless_left(
    app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send, finished: asyncio.Event
) -> None:
    """Let the app answer, and cancel it when the client leaves, or the server has finished."""
    over = asyncio.ensure_future(finished.wait())
    leaving = asyncio.ensure_future(until_left(receive))
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        await asyncio.shield(leaving)
        return {"type": "http.disconnect"}

    answering = asyncio.ensure_future(app(scope, replay, send))
    try:
        await asyncio.wait({answering, leaving, over}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        over.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.wait({answering})
    if not answering.cancelled():
        answering.result()


async def until_left(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
