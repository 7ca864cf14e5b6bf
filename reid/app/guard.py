"""The guard in front of the page: which requests it passes on, and what each may bring.

One table (``ROUTES``) names every address that is answered. Files have no address. Nothing of a request is written to
a log; refusals are counted.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from reid.app.messages import MESSAGE_BYTES, SESSION, MessageRules
from reid.app.refusals import REASONS, Refused
from reid.app.sessions import Sessions
from reid.app.uploads import UPLOAD_REQUEST_BYTES, UploadStore, read_boundary, read_only_file

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
# What gradio gets of a request's headers. It would believe others, such as X-Forwarded-Host.
PASSED_HEADERS = frozenset(
    (b"host", b"accept", b"accept-encoding", b"content-type", b"content-length", b"if-none-match", b"if-modified-since")
)
HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
VISITOR_COOKIE = "reid-visitor"
OPEN_REQUESTS = 256
MESSAGE_SECONDS = 10  # for the whole body of a message
UPLOAD_SECONDS = 30  # for the whole body of an upload
DRAIN_SECONDS = 2  # in which the rest of a refused body may arrive, so that its sender reads the answer
READER_SECONDS = 2  # in which an earlier reader of the same session may end
TIDY_SECONDS = 10  # between two looks for what is to be forgotten


@dataclass(frozen=True)
class Route:
    """One kind of address.

    Args:
        pattern: The path.
        methods: The methods that the page uses.
        handler: The method of :class:`PageGuard` that answers.
    """

    pattern: re.Pattern[str]
    methods: tuple[str, ...]
    handler: str


def _route(pattern: str, methods: str, handler: str) -> Route:
    return Route(re.compile(pattern), tuple(methods.split()), handler)


# Left out on purpose: file=, proxy=, stream, call, cancel, reset, info, API documentation, monitoring.
ROUTES = (
    _route(r"/", "GET HEAD", "_show_page"),
    _route(r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?", "GET", "_pass_on"),
    _route(r"/(assets|static|svelte)(/[A-Za-z0-9_@+-][A-Za-z0-9_.@+-]{0,120}){1,6}", "GET", "_pass_on"),
    _route(r"/gradio_api/(theme\.css|startup-events)/?", "GET", "_pass_on"),
    _route(rf"/gradio_api/heartbeat/(?P<session>{SESSION})", "GET", "_hold_session"),
    _route(r"/gradio_api/queue/data/?", "GET", "_send_results"),
    _route(r"/gradio_api/queue/join/?", "POST", "_take_message"),
    _route(r"/gradio_api/upload/?", "POST", "_take_upload"),
    _route(r"/gradio_api/upload_progress/?", "GET", "_end_progress"),
)


@dataclass(frozen=True)
class _Request:
    """A request that came from the page: its parts, and the visitor who sent it ("" without a cookie)."""

    scope: Scope
    receive: Receive
    send: Send
    headers: dict[bytes, bytes]
    match: re.Match[str]
    visitor: str


class PageGuard:
    """An ASGI application in front of another that passes on what the page needs and refuses the rest.

    It adds the headers of the policy to every answer. On a loopback address the Host header must name a loopback
    address too: otherwise a page of another host could reach this one under a name of its own (DNS rebinding).

    Args:
        application: The application behind the guard.
        rules: What the messages of the page may hold.
        sessions: The sessions of the page.
        uploads: The uploads that the page reads.
        local: Whether the server listens on a loopback address.

    Attributes:
        refused: How many requests were refused, by status.
    """

    def __init__(
        self, application: Application, rules: MessageRules, sessions: Sessions, uploads: UploadStore, local: bool
    ):
        self._application = application
        self._rules = rules
        self._sessions = sessions
        self._uploads = uploads
        self._local = local
        self._open = 0
        self.refused: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, _Body(receive), _Answer(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def tidy(self) -> None:
        """Forget uploads that nobody read and sessions that nobody uses."""
        self._uploads.forget_expired()
        await self._sessions.drop_idle()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tidy_regularly() -> None:
            while True:
                await asyncio.sleep(TIDY_SECONDS)
                await self.tidy()

        tidying = asyncio.create_task(tidy_regularly())
        try:
            await self._application(scope, receive, send)
        finally:
            tidying.cancel()

    async def _answer(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        self._open += 1
        try:
            if self._open > OPEN_REQUESTS:
                raise Refused(429)
            headers = dict(scope["headers"])
            route, match = _find_route(scope)
            _check_origin(scope, headers, self._local)
            request = _Request(scope, body.receive, answer.send, headers, match, _visitor(headers))
            await getattr(self, route.handler)(request)
        except Refused as refused:
            await self._refuse(refused.status, scope, body, answer)
        except Exception:  # noqa: BLE001 - the fault is the program's; no part of it goes to the visitor or to a log
            await self._refuse(500, scope, body, answer)
        finally:
            self._open -= 1

    async def _refuse(self, status: int, scope: Scope, body: _Body, answer: _Answer) -> None:
        self.refused[status] += 1
        if not answer.is_started:  # else the connection ends in the middle of the answer
            await body.drain(scope)
            line = json.dumps({"detail": REASONS[status]}).encode() + b"\n"
            await _send_whole(answer.send, status, b"application/json", line)

    async def _pass_on(self, request: _Request, body: bytes = b"", query: bytes = b"") -> None:
        headers = [(name, value) for name, value in request.headers.items() if name in PASSED_HEADERS]
        if body:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
        scope = {**request.scope, "headers": headers, "query_string": query}
        receive = _replay(body, request.receive) if body else request.receive
        await self._application(scope, receive, request.send)

    async def _show_page(self, request: _Request) -> None:
        if not request.visitor:
            cookie = f"{VISITOR_COOKIE}={secrets.token_hex(16)}; HttpOnly; SameSite=Lax; Path=/".encode()
            await self._pass_on(_with_header(request, (b"set-cookie", cookie)))
        else:
            await self._pass_on(request)

    async def _hold_session(self, request: _Request) -> None:
        session = request.match["session"]
        await self._sessions.enter(session, request.visitor)
        with self._sessions.hold(session):
            await self._pass_on(request)

    async def _send_results(self, request: _Request) -> None:
        session = _read_query(request.scope, "session_hash")
        if not self._sessions.has_results(session, request.visitor):
            raise Refused(404)
        for _ in range(READER_SECONDS * 10):
            with self._sessions.read_alone(session) as is_alone:
                if is_alone:
                    await self._pass_on(request, query=f"session_hash={session}".encode())
                    return
            await asyncio.sleep(0.1)
        raise Refused(429)

    async def _take_message(self, request: _Request) -> None:
        if request.headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise Refused(415)
        body = await _read_body(request, MESSAGE_BYTES, MESSAGE_SECONDS, lambda _: None)
        message = self._rules.read(body)
        await self._sessions.enter(message.session, request.visitor)
        await self._sessions.make_room_for_result(message.session)
        if not all(self._uploads.name_once(name, request.visitor) for name in message.uploads):
            raise Refused(404)
        await self._pass_on(request, message.body)

    async def _take_upload(self, request: _Request) -> None:
        boundary = read_boundary(request.headers.get(b"content-type", b""))
        with self._uploads.reserve_room(request.visitor) as take_room:
            body = await _read_body(request, UPLOAD_REQUEST_BYTES, UPLOAD_SECONDS, take_room)
            content = read_only_file(body, boundary)
        name = self._uploads.add(request.visitor, content)
        await _send_whole(request.send, 200, b"application/json", json.dumps([name]).encode())

    async def _end_progress(self, request: _Request) -> None:
        """Tell the page that its upload has arrived: on one machine there is no progress to show."""
        await _send_whole(request.send, 200, b"text/event-stream", b'data: {"msg": "done"}\n\n')


class _Body:
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


class _Answer:
    """Sends an answer with the headers of the policy, and knows whether it has begun."""

    def __init__(self, send: Send):
        self._send = send
        self.is_started = False

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.is_started = True
            event["headers"] = [*event.get("headers", ()), *HEADERS]
        await self._send(event)


def _find_route(scope: Scope) -> tuple[Route, re.Match[str]]:
    for route in ROUTES:
        match = route.pattern.fullmatch(scope["path"])
        if match:
            if scope["method"] not in route.methods:
                raise Refused(405)
            return route, match
    raise Refused(404)


def _check_origin(scope: Scope, headers: dict[bytes, bytes], local: bool) -> None:
    """Refuse what a page of another host, or of another port of this one, makes a browser send."""
    host = headers.get(b"host", b"").decode("latin-1")
    named = HOST.fullmatch(host)
    if named is None or (local and named["name"].lower() not in LOOPBACK_NAMES):
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


def _visitor(headers: dict[bytes, bytes]) -> str:
    found = re.search(
        rf"(?:^|;\s*){VISITOR_COOKIE}=([0-9a-f]{{32}})(?:;|$)", headers.get(b"cookie", b"").decode("latin-1")
    )
    return found[1] if found else ""


def _with_header(request: _Request, header: tuple[bytes, bytes]) -> _Request:
    async def send(event: Event) -> None:
        if event["type"] == "http.response.start":
            event["headers"] = [*event.get("headers", ()), header]
        await request.send(event)

    return _Request(request.scope, request.receive, send, request.headers, request.match, request.visitor)


def _read_query(scope: Scope, name: str) -> str:
    """Return a value of the query that has the form of a session; Refused (404) without one."""
    try:
        values = parse_qs(scope.get("query_string", b"").decode("ascii"), max_num_fields=8).get(name, [])
    except ValueError:
        raise Refused(404) from None
    if len(values) != 1 or not re.fullmatch(SESSION, values[0]):
        raise Refused(404)
    return str(values[0])


async def _read_body(request: _Request, limit: int, seconds: float, take_room: Callable[[int], None]) -> bytes:
    """Return the whole body of a request; Refused when it is too long, too slow, or its sender is gone."""
    length = request.headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > limit:
        raise Refused(413)
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(seconds):
            while more:
                event = await request.receive()
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


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that first gives a body that was already read, then what comes next."""
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return events.pop() if events else await receive()

    return replay


async def _send_whole(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
