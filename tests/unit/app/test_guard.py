"""The guard of the page: which requests it passes on, from whom, how large and how slow they may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.threads import run_in_thread
from reid.app import asgi, guard
from reid.app.messages import MESSAGE_BYTES, Message
from reid.app.refusals import Refused
from reid.app.sessions import Sessions
from reid.app.uploads import UPLOAD_BYTES, UploadStore

PAGE = ["/", "/config", "/theme.css", "/assets/index-a1.js", "/static/fonts/a.woff2", "/gradio_api/startup-events",
        "/gradio_api/heartbeat/abc1", "/gradio_api/upload_progress"]  # fmt: skip
CLOSED = ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file/x", "/gradio_api/info", "/docs",
          "/gradio_api/proxy=http://x/", "/monitoring", "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api",
          "/config/x", "/x/assets/a", "//", "/gradio_api/queue/join/../../file=/etc/passwd", "/assets/../../x",
          "/assets/a\0", "/assets/\ud800", "/assets/" + "a" * 500, "/gradio_api/heartbeat/\0",
          "/gradio_api/heartbeat/" + "a" * 65, "/gradio_api/call/answer", "/gradio_api/api/predict",
          "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/component_server"]  # fmt: skip
JOIN, UPLOAD, DATA = "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/queue/data"
HERE = "127.0.0.1:7860"
JSON_TYPE = {"content-type": "application/json"}
FORM_TYPE = {"content-type": "multipart/form-data; boundary=x"}
ANNA, BO = ({"cookie": f"reid-visitor={letter * 32}"} for letter in "ab")


class Rules:
    """Rules that accept what is JSON and reads the names of uploads in it."""

    def read(self, body: bytes) -> Message:
        try:
            message = json.loads(body)
        except ValueError:
            raise Refused(400) from None
        return Message(message.get("session", "s"), body, tuple(message.get("uploads", ())))


class Queue:
    """The parts of gradio's queue that are looked at."""

    def __init__(self) -> None:
        self.pending_event_ids_session: dict[str, set[str]] = {}
        self.pending_messages_per_session: dict[str, object] = {}

    async def clean_events(self, session_hash: str) -> None:
        """Take the waiting events of a session away."""


def form(content: bytes = b"hello", name: str = "files", parts: int = 1) -> bytes:
    part = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'.encode() + content
    return (part + b"\r\n") * parts + b"--x--\r\n"


class Page:
    """A guard in front of an application that echoes what it receives."""

    def __init__(self, local: bool = True) -> None:
        self.received: list[Any] = []
        self.uploads = UploadStore()
        holder = SimpleNamespace(session_data={}, time_last_used={})
        self.blocks = SimpleNamespace(_queue=Queue(), state_holder=holder)
        self.sessions = Sessions(self.blocks)
        rules: Any = Rules()
        self.guard = guard.PageGuard(self._echo, rules, self.sessions, self.uploads, local)

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        self.received.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        event = await receive() if scope["type"] == "http" else {"body": b""}
        await send({"type": "http.response.body", "body": b"yes" + event["body"]})

    def ask(
        self,
        path: str,
        method: str = "GET",
        parts: Sequence[bytes] = (b"",),
        headers: dict[str, str] | None = None,
        kind: str = "http",
        query: bytes = b"",
    ) -> tuple[int, bytes, dict[bytes, bytes]]:
        """Return the status, the body and the headers of the answer to a request."""
        sent: list[Any] = []
        waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        waiting[-1]["more_body"] = False

        async def send(event: Any) -> None:
            sent.append(event)

        async def receive() -> Any:
            return waiting.pop(0) if waiting else await asyncio.Event().wait()

        named = {"host": HERE, "content-length": str(sum(map(len, parts)))} | (headers or {})
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
        scope = {"type": kind, "path": path, "method": method, "headers": pairs, "query_string": query}
        run_in_thread(self.guard(scope, receive, send))
        if kind != "http":
            return sent[0].get("status", 0), b"", {}
        return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])

    def join(self, message: object, **headers: str) -> int:
        """Return the status of a message."""
        return self.ask(JOIN, "POST", [json.dumps(message).encode()], JSON_TYPE | headers)[0]

    def upload(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Return the status of an upload, and what the page answered."""
        status, answer, _ = self.ask(UPLOAD, "POST", [body[:50], body[50:]], FORM_TYPE | headers)
        return status, json.loads(answer)


@pytest.mark.parametrize("path", PAGE)
def test_the_page_is_served_with_its_policy(path: str) -> None:
    status, _, headers = Page().ask(path)
    assert status == 200
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy
    assert headers[b"cross-origin-resource-policy"] == b"same-origin"


@pytest.mark.parametrize("path", CLOSED)
def test_other_addresses_are_not_found_in_one_line(path: str) -> None:
    page = Page()
    for method in ("GET", "POST"):
        status, body, _ = page.ask(path, method)
        assert (status, body.count(b"\n")) == (404, 1)
    assert page.received == []
    assert page.guard.refused == {404: 2}


@pytest.mark.parametrize(("path", "method"), [("/", "POST"), (JOIN, "GET"), (UPLOAD, "PUT"), ("/config", "DELETE")])
def test_other_methods_are_refused(path: str, method: str) -> None:
    assert Page().ask(path, method)[0] == 405


def test_the_start_of_the_application_passes_and_a_socket_of_the_web_does_not() -> None:
    page = Page()
    assert page.ask("", kind="lifespan")[0] == 200
    assert page.ask("/", kind="websocket")[0] == 0
    assert len(page.received) == 1


@pytest.mark.parametrize(
    ("host", "local", "status"),
    [
        ("localhost:7860", True, 200),
        ("[::1]:7860", True, 200),
        ("127.0.0.1", True, 200),
        ("evil.example:7860", True, 404),
        ("127.0.0.1.evil.example", True, 404),
        ("localhost:99999", True, 404),
        ("", True, 404),
        ("evil.example:7860", False, 200),
        ("evil example", False, 404),
        ("\xff", False, 404),
    ],
)
def test_on_loopback_the_host_must_be_a_loopback_name(host: str, local: bool, status: int) -> None:
    assert Page(local).ask("/", headers={"host": host})[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": f"http://{HERE}"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": f"http://{HERE}.evil.example"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
    ],
)
def test_other_sites_may_not_ask(headers: dict[str, str], status: int) -> None:
    page = Page()
    assert page.ask("/", headers=headers)[0] == status
    assert page.ask(UPLOAD, "POST", [form()], FORM_TYPE | headers)[0] == status
    assert len(page.uploads) == (status == 200)


def test_a_link_of_another_site_opens_the_page_and_nothing_else() -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert Page().ask("/", headers=link)[0] == 200
    assert Page().ask("/config", headers=link)[0] == 403


def test_only_harmless_headers_reach_the_application() -> None:
    page = Page()
    forged = {"x-forwarded-host": "evil.example", "range": "bytes=9-1", "origin": f"http://{HERE}", "accept": "*/*"}
    page.ask("/", headers=forged | ANNA, query=b"deep_link=../x")
    assert {name for name, _ in page.received[0]["headers"]} == {b"host", b"content-length", b"accept"}
    assert page.received[0]["query_string"] == b""


def test_a_visitor_gets_a_cookie_once() -> None:
    page = Page()
    cookie = page.ask("/")[2][b"set-cookie"].decode()
    assert cookie.startswith("reid-visitor=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert b"set-cookie" not in page.ask("/", headers=ANNA)[2]


def test_a_message_is_bounded_and_must_be_json() -> None:
    page = Page()
    assert page.join({"session": "s"}) == 200
    assert page.ask(JOIN, "POST", [b"{}"], {"content-type": "text/plain"})[0] == 415
    assert page.ask(JOIN, "POST", [b"no json"], JSON_TYPE)[0] == 400
    assert page.ask(JOIN, "POST", [b" " * MESSAGE_BYTES, b"{}"], JSON_TYPE)[0] == 413
    assert page.ask(JOIN, "POST", [b" " * MESSAGE_BYTES, b"{}"], JSON_TYPE | {"content-length": "2"})[0] == 413
    assert page.ask(JOIN, "POST", [b"{}"], JSON_TYPE | {"content-length": "x"})[0] == 413


def test_a_body_that_does_not_come_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MESSAGE_SECONDS", 0.01)
    monkeypatch.setattr(asgi, "DRAIN_SECONDS", 0.01)
    page = Page()

    async def receive() -> Any:
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    pairs = [(b"host", HERE.encode()), (b"content-length", b"9"), (b"content-type", b"application/json")]
    scope = {"type": "http", "path": JOIN, "method": "POST", "headers": pairs, "query_string": b""}
    run_in_thread(page.guard(scope, receive, send))
    assert sent[0]["status"] == 408


def test_a_session_belongs_to_its_visitor() -> None:
    page = Page()
    assert page.join({"session": "s"}, **ANNA) == 200
    assert page.join({"session": "s"}, **ANNA) == 200
    assert page.join({"session": "s"}, **BO) == 404
    assert page.join({"session": "s"}) == 404
    page.blocks._queue.pending_messages_per_session["s"] = object()
    assert page.ask(DATA, headers=ANNA, query=b"session_hash=s")[0] == 200
    assert page.ask(DATA, headers=BO, query=b"session_hash=s")[0] == 404


@pytest.mark.parametrize("query", [b"", b"session_hash=none", b"session_hash=%00", b"session_hash=a&session_hash=b",
                                   b"session_hash=%ff", b"session_hash=" + b"a" * 99, b"\xff", b"&" * 99])  # fmt: skip
def test_results_of_no_session_are_not_found(query: bytes) -> None:
    assert Page().ask(DATA, query=query)[0] == 404


def test_an_upload_is_kept_in_memory_under_a_random_name() -> None:
    page = Page()
    first, second = (page.upload(form())[1][0] for _ in range(2))
    assert first != second
    assert first.startswith("upload-")
    assert "/" not in first
    assert (page.uploads.take(first), page.uploads.take(second)) == (b"hello", b"hello")
    assert page.upload(form(b""))[0] == 200


def test_only_the_own_upload_can_be_named_and_only_once() -> None:
    page = Page()
    (name,) = page.upload(form(), **ANNA)[1]
    assert page.join({"uploads": [name], "session": "b"}, **BO) == 404
    assert page.join({"uploads": ["/etc/passwd"], "session": "a"}, **ANNA) == 404
    assert page.join({"uploads": [name], "session": "a"}, **ANNA) == 200
    assert page.join({"uploads": [name], "session": "a"}, **ANNA) == 404


@pytest.mark.parametrize(
    "body",
    [form(name="file"), form(name="other"), form(parts=2), form(parts=0), b"", form()[:-4], form()[:40], b"--x--",
     b"text", form() + form(), b"--x\r\n" + b"a: b\r\n" * 2000 + b"\r\n\r\n--x--"],
)  # fmt: skip
def test_a_form_must_hold_one_file_and_nothing_else(body: bytes) -> None:
    page = Page()
    assert page.upload(body)[0] == 400
    assert len(page.uploads) == 0


def test_uploads_are_bounded() -> None:
    page = Page()
    assert page.ask(UPLOAD, "POST", [form()], {"content-type": "application/json"})[0] == 415
    assert page.upload(form(bytes(UPLOAD_BYTES + 1)))[0] == 413
    assert page.upload(form(bytes(UPLOAD_BYTES + 9999)))[0] == 413
    statuses = [page.upload(form(bytes(UPLOAD_BYTES)), **ANNA)[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert [page.upload(form(bytes(UPLOAD_BYTES)), **BO)[0] for _ in range(3)] == [200, 200, 200]
    assert len(page.uploads) == 6
    assert page.upload(form())[0] == 200, "a small one still fits beside them"


def test_a_fault_of_the_program_says_nothing_of_it() -> None:
    page = Page()

    async def fail(*_: Any) -> None:
        raise RuntimeError("/secret/path")

    page.guard._application = fail
    status, body, _ = page.ask("/")
    assert (status, b"secret" in body, body.count(b"\n")) == (500, False, 1)


def test_requests_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "OPEN_REQUESTS", 0)
    assert Page().ask("/")[0] == 429
