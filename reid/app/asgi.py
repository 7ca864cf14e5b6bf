"""Parts of a request and of its answer, as ASGI hands them over; nothing here knows the page."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from reid.app.refusals import Refused

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:;"
    " object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
VISITOR_COOKIE = "reid-visitor"
DRAIN_SECONDS = 2  # in which the rest of a refused body may arrive, so that its sender reads the answer


class Counting(Protocol):
    """An ASGI application that counts what it refuses, by status."""

    refused: Counter[int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class RequestBody:
    """Receives the body of a request, and knows whether all of it has arrived."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._is_over = False

    async def receive(self) -> Event:
        event = await self._receive()
        self._is_over = not event.get("more_body", False)
        return event

    async def drain(self, scope: Scope) -> None:
        """Let the rest of a body arrive for a moment: a sender that is cut off does not read the answer."""
        names = {name for name, value in scope["headers"] if value != b"0"}
        if self._is_over or not names & {b"content-length", b"transfer-encoding"}:
            return
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._is_over:
                    await self.receive()
        except TimeoutError:
            pass


class ResponseSender:
    """Sends an answer with the headers of the policy, and knows whether it has begun."""

    def __init__(self, send: Send):
        self._send = send
        self.is_started = False

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.is_started = True
            event["headers"] = [*event.get("headers", ()), *HEADERS]
        await self._send(event)


def check_origin(
    scope: Scope, headers: dict[bytes, bytes], local: bool, names: Collection[str] = LOOPBACK_NAMES
) -> None:
    """Refuse what a page of another host, or of another port of this one, makes a browser send.

    ``local`` asks that the request names one of ``names`` as its host.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    named = HOST.fullmatch(host)
    if named is None or int(named["port"] or 0) > 65535 or (local and named["name"].lower() not in names):
        raise Refused(404)
    origin = headers.get(b"origin")
    if origin is not None and not _is_origin_of(origin.decode("latin-1"), host):
        raise Refused(403)
    is_link = scope["path"] == "/" and headers.get(b"sec-fetch-mode") == b"navigate"
    is_link = is_link and headers.get(b"sec-fetch-dest") == b"document"
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin") and not is_link:
        raise Refused(403)


def _is_origin_of(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and origin.lower() == f"{parts.scheme}://{host}".lower()


def visitor_of(headers: dict[bytes, bytes]) -> str:
    """Return who sent a request, by the cookie that the page gave out; "" without one."""
    found = re.search(
        rf"(?:^|;\s*){VISITOR_COOKIE}=([0-9a-f]{{32}})(?:;|$)", headers.get(b"cookie", b"").decode("latin-1")
    )
    return found[1] if found else ""


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that first gives a body that was already read, then what comes next."""
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return events.pop() if events else await receive()

    return replay


async def send_whole(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    """Send an answer that is complete."""
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_body(
    headers: dict[bytes, bytes], receive: Receive, limit: int, seconds: float, take_room: Callable[[int], None]
) -> bytes:
    """Return the whole body of a request; Refused when it is too long, too slow, or its sender is gone."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > limit:
        raise Refused(413)
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(seconds):
            while more:
                event = await receive()
                part = event.get("body", b"")
                if len(body) + len(part) > limit:
                    raise Refused(413)
                take_room(len(part))
                body += part
                if event["type"] != "http.request":
                    raise Refused(400)
                more = event.get("more_body", False)
    except TimeoutError:
        raise Refused(408) from None
    return bytes(body)
