"""The gate of the application: host names, logins, the REST interface under ``/api``, and the page behind it.

The page has its own guard (:mod:`reid.app.guard`). The gate decides before it who sends a request, and hands requests
of the REST interface over with a body that has arrived whole and within its bounds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection

from reid.app.access import LOGIN_COOKIE, LOGIN_SECONDS, USER_KEY, Access
from reid.app.accounts import LONGEST_PASSWORD, User
from reid.app.asgi import (
    LOOPBACK_NAMES,
    Application,
    Counting,
    Receive,
    RequestBody,
    ResponseSender,
    Scope,
    Send,
    check_origin,
    read_body,
    replay_body,
    send_whole,
)
from reid.app.client_interface import CLIENT, CLIENT_BYTES, MESSAGE, ROUTES, check_message
from reid.app.login_page import FORM_BYTES, login_page, read_login_form
from reid.app.refusals import REASONS, Refused
from reid.app.uploads import UPLOAD_BYTES
from reid.structured_text import parse_json

API = "/api"
HEALTH = "/api/health"  # is answered without a login
OPEN_REQUESTS = 32  # of the REST interface at a time
WAITING_BYTES = 6 * UPLOAD_BYTES  # of all bodies that have arrived or arrive
BODY_SECONDS = 30
QUERY_BYTES = 2**13
HTML = b"text/html; charset=utf-8"


class Gate:
    """An ASGI application in front of the guarded page and of the REST interface.

    Args:
        page: The page behind its guard.
        rest: The REST interface; None for a page without one.
        access: The users.
        names: The host names that requests may name, in small letters; None allows any, behind a login.
        secure: Whether the server speaks TLS, so that the cookie of a login is only sent with it.
        client: What answers ``gradio_client``; None refuses it.

    Attributes:
        refused: How many requests were refused, by status; those of the page are among them.
    """

    def __init__(
        self,
        page: Counting,
        rest: Application | None,
        access: Access,
        names: Collection[str] | None = LOOPBACK_NAMES,
        secure: bool = False,
        client: Application | None = None,
    ):
        self._page = page
        self._rest = rest
        self._access = access
        self._names = names
        self._secure = secure
        self._client = client
        self._open = 0
        self._bytes = 0
        self.refused = page.refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._page(scope, receive, send)
            return
        body, answer = RequestBody(receive), ResponseSender(send)
        try:
            headers = dict(scope["headers"])
            check_origin(scope, headers, self._names is not None, self._names or ())
            if scope["path"] in ("/login", "/logout"):
                await self._change_login(scope, headers, body, answer)
                return
            user = self._access.user_of(headers)
            scope = {**scope, USER_KEY: user}
            if scope["path"] == API or scope["path"].startswith(f"{API}/"):
                await self._answer_api(scope, headers, user, body, answer)
                return
            if self._client is not None and scope["path"].startswith(f"{CLIENT}/"):
                await self._answer_client(self._client, scope, headers, user, body, answer)
                return
            if user is None:
                await self._ask_for_login(scope, answer)
                return
        except Refused as refused:
            await self._refuse(refused.status, scope, body, answer)
            return
        except Exception:  # noqa: BLE001 - the fault is the program's; no part of it goes to the visitor or to a log
            await self._refuse(500, scope, body, answer)
            return
        await self._page(scope, receive, send)

    async def _refuse(self, status: int, scope: Scope, body: RequestBody, answer: ResponseSender) -> None:
        self.refused[status] += 1
        if not answer.is_started:
            await body.drain(scope)
            line = json.dumps({"detail": REASONS[status]}).encode() + b"\n"
            await send_whole(answer.send, status, b"application/json", line)

    async def _ask_for_login(self, scope: Scope, answer: ResponseSender) -> None:
        if scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
            raise Refused(401)
        query = scope.get("query_string", b"").decode("latin-1")
        await send_whole(answer.send, 401, HTML, login_page(query))

    async def _change_login(
        self, scope: Scope, headers: dict[bytes, bytes], body: RequestBody, answer: ResponseSender
    ) -> None:
        """Log a user of the page in or out."""
        if self._access.is_open:
            raise Refused(404)
        if scope["method"] != "POST":
            raise Refused(405)
        content = await read_body(headers, body.receive, FORM_BYTES, BODY_SECONDS, lambda _: None)
        if scope["path"] == "/logout":
            self._access.log_out(headers)
            await _redirect(answer.send, "/", self._cookie("", 0))
            return
        name, password, query = read_login_form(content)
        try:
            token, _ = await asyncio.to_thread(self._access.log_in, name, password, _address_of(scope))
        except Refused as refused:
            self.refused[refused.status] += 1
            await send_whole(answer.send, refused.status, HTML, login_page(query, refused.status))
            return
        await _redirect(answer.send, f"/?{query}" if query else "/", self._cookie(token, LOGIN_SECONDS))

    def _cookie(self, token: str, seconds: int) -> bytes:
        secure = "; Secure" if self._secure else ""
        return f"{LOGIN_COOKIE}={token}; HttpOnly; SameSite=Lax; Path=/; Max-Age={seconds}{secure}".encode()

    async def _answer_api(
        self, scope: Scope, headers: dict[bytes, bytes], user: User | None, body: RequestBody, answer: ResponseSender
    ) -> None:
        """Answer a request of the REST interface."""
        if self._rest is None or len(scope.get("query_string", b"")) > QUERY_BYTES:
            raise Refused(404)
        if self._open >= OPEN_REQUESTS:
            raise Refused(429)
        taken = 0

        def take_room(size: int) -> None:
            nonlocal taken
            if self._bytes + size > WAITING_BYTES:
                raise Refused(429)
            taken += size
            self._bytes += size

        self._open += 1
        try:
            if scope["path"] == f"{API}/login":
                await self._log_in_program(scope, headers, body, answer)
                return
            if user is None and scope["path"] != HEALTH:
                raise Refused(401)
            content = await read_body(headers, body.receive, UPLOAD_BYTES, BODY_SECONDS, take_room)
            await self._rest(scope, replay_body(content, body.receive), answer.send)
        finally:
            self._open -= 1
            self._bytes -= taken

    async def _answer_client(
        self,
        client: Application,
        scope: Scope,
        headers: dict[bytes, bytes],
        user: User | None,
        body: RequestBody,
        answer: ResponseSender,
    ) -> None:
        """Answer a request of ``gradio_client``; only what it sends is known here."""
        if user is None:
            raise Refused(401)
        if ROUTES.get(scope["path"]) != scope["method"] or len(scope.get("query_string", b"")) > QUERY_BYTES:
            raise Refused(404)
        if self._open >= OPEN_REQUESTS:
            raise Refused(429)
        self._open += 1
        try:
            content = await read_body(headers, body.receive, CLIENT_BYTES, BODY_SECONDS, lambda _: None)
            if scope["path"] == MESSAGE:
                check_message(content)
            await client(scope, replay_body(content, body.receive), answer.send)
        finally:
            self._open -= 1

    async def _log_in_program(
        self, scope: Scope, headers: dict[bytes, bytes], body: RequestBody, answer: ResponseSender
    ) -> None:
        """Give a program a token for the header ``Authorization: Bearer TOKEN``."""
        if self._access.is_open:
            raise Refused(404)
        if scope["method"] != "POST":
            raise Refused(405)
        content = await read_body(headers, body.receive, FORM_BYTES, BODY_SECONDS, lambda _: None)
        try:
            form = parse_json(content.decode("utf-8"))
        except ValueError:
            raise Refused(400) from None
        name, password = (form.get(key) for key in ("name", "password")) if isinstance(form, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(password, str) or len(password) > LONGEST_PASSWORD:
            raise Refused(400)
        token, user = await asyncio.to_thread(self._access.log_in, name, password, _address_of(scope))
        reply = {"token": token, "name": user.name, "role": str(user.role), "seconds": LOGIN_SECONDS}
        await send_whole(answer.send, 200, b"application/json", json.dumps(reply).encode())


def _address_of(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


async def _redirect(send: Send, to: str, cookie: bytes) -> None:
    headers = [
        (b"location", to.encode()),
        (b"set-cookie", cookie),
        (b"content-length", b"0"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
