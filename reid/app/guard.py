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
from dataclasses import dataclass

from reid.app.asgi import (
    VISITOR_COOKIE,
    Application,
    Event,
    Receive,
    RequestBody,
    ResponseSender,
    Scope,
    Send,
    check_origin,
    read_body,
    replay_body,
    send_whole,
    visitor_of,
)
from reid.app.messages import MESSAGE_BYTES, SESSION, MessageRules
from reid.app.refusals import REASONS, Refused
from reid.app.sessions import Sessions, read_session
from reid.app.uploads import UPLOAD_REQUEST_BYTES, UploadStore, read_boundary, read_only_file

# What gradio gets of a request's headers. It would believe others, such as X-Forwarded-Host.
PASSED_HEADERS = frozenset(
    (b"host", b"accept", b"accept-encoding", b"content-type", b"content-length", b"if-none-match", b"if-modified-since")
)
OPEN_REQUESTS = 256
MESSAGE_SECONDS = 10  # for the whole body of a message
UPLOAD_SECONDS = 30  # for the whole body of an upload
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
            await self._answer(scope, RequestBody(receive), ResponseSender(send))
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

    async def _answer(self, scope: Scope, body: RequestBody, answer: ResponseSender) -> None:
        self._open += 1
        try:
            if self._open > OPEN_REQUESTS:
                raise Refused(429)
            headers = dict(scope["headers"])
            route, match = _find_route(scope)
            check_origin(scope, headers, self._local)
            request = _Request(scope, body.receive, answer.send, headers, match, visitor_of(headers))
            await getattr(self, route.handler)(request)
        except Refused as refused:
            await self._refuse(refused.status, scope, body, answer)
        except Exception:  # noqa: BLE001 - the fault is the program's; no part of it goes to the visitor or to a log
            await self._refuse(500, scope, body, answer)
        finally:
            self._open -= 1

    async def _refuse(self, status: int, scope: Scope, body: RequestBody, answer: ResponseSender) -> None:
        self.refused[status] += 1
        if not answer.is_started:  # else the connection ends in the middle of the answer
            await body.drain(scope)
            line = json.dumps({"detail": REASONS[status]}).encode() + b"\n"
            await send_whole(answer.send, status, b"application/json", line)

    async def _pass_on(self, request: _Request, body: bytes = b"", query: bytes = b"") -> None:
        headers = [(name, value) for name, value in request.headers.items() if name in PASSED_HEADERS]
        if body:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
        scope = {**request.scope, "headers": headers, "query_string": query}
        receive = replay_body(body, request.receive) if body else request.receive
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
        session = read_session(request.scope)
        query = f"session_hash={session}".encode()
        await self._sessions.read_results(session, request.visitor, lambda: self._pass_on(request, query=query))

    async def _take_message(self, request: _Request) -> None:
        if request.headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise Refused(415)
        body = await read_body(request.headers, request.receive, MESSAGE_BYTES, MESSAGE_SECONDS, lambda _: None)
        message = self._rules.read(body)
        await self._sessions.enter(message.session, request.visitor)
        await self._sessions.make_room_for_result(message.session)
        if not all(self._uploads.name_once(name, request.visitor) for name in message.uploads):
            raise Refused(404)
        await self._pass_on(request, message.body)

    async def _take_upload(self, request: _Request) -> None:
        boundary = read_boundary(request.headers.get(b"content-type", b""))
        with self._uploads.reserve_room(request.visitor) as take_room:
            body = await read_body(request.headers, request.receive, UPLOAD_REQUEST_BYTES, UPLOAD_SECONDS, take_room)
            content = read_only_file(body, boundary)
        name = self._uploads.add(request.visitor, content)
        await send_whole(request.send, 200, b"application/json", json.dumps([name]).encode())

    async def _end_progress(self, request: _Request) -> None:
        """Tell the page that its upload has arrived: on one machine there is no progress to show."""
        await send_whole(request.send, 200, b"text/event-stream", b'data: {"msg": "done"}\n\n')


def _find_route(scope: Scope) -> tuple[Route, re.Match[str]]:
    for route in ROUTES:
        match = route.pattern.fullmatch(scope["path"])
        if match:
            if scope["method"] not in route.methods:
                raise Refused(405)
            return route, match
    raise Refused(404)


def _with_header(request: _Request, header: tuple[bytes, bytes]) -> _Request:
    async def send(event: Event) -> None:
        if event["type"] == "http.response.start":
            event["headers"] = [*event.get("headers", ()), header]
        await request.send(event)

    return _Request(request.scope, request.receive, send, request.headers, request.match, request.visitor)
