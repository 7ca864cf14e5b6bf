"""The gate: who may ask, under which host name, how much at a time, and what a login gives."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers.served_galleries import HERE, PASSWORD, PlainPage, make_users
from helpers.threads import run_in_thread
from reid.app import gate as gates
from reid.app.access import USER_KEY, Access
from reid.app.accounts import OWNER, Role, User, UsersFile
from reid.app.asgi import LOOPBACK_NAMES
from reid.app.gate import Gate


class Rest:
    """A REST interface that says who asked, and keeps the body."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.fails = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.fails:
            raise RuntimeError("secret")
        self.bodies.append((await receive())["body"])
        name = scope[USER_KEY].name if scope[USER_KEY] else "nobody"
        await gates.send_whole(send, 200, b"text/plain", name.encode())


@pytest.fixture
def users(tmp_path: Path) -> UsersFile:
    return UsersFile.read(make_users(tmp_path / "users.toml"))


def make(users: UsersFile | None = None, **changes: Any) -> tuple[TestClient, PlainPage, Rest]:
    page, rest = PlainPage(), Rest()
    gate = Gate(page, rest, Access(users), changes.pop("names", LOOPBACK_NAMES), **changes)
    return TestClient(gate, base_url=HERE, raise_server_exceptions=False, follow_redirects=False), page, rest


def test_without_users_everyone_on_this_machine_is_the_owner() -> None:
    client, page, rest = make()
    assert client.get("/").text == "the page"
    assert page.users == [OWNER]
    assert client.post("/api/search", content=b"picture").status_code == 200
    assert rest.bodies == [b"picture"]
    assert client.post("/login").status_code == client.post("/api/login").status_code == 404


def test_with_users_a_login_comes_first(users: UsersFile) -> None:
    client, page, rest = make(users)
    shown = client.get("/?tab=scores&x=%3Cb%3E")
    assert shown.status_code == 401
    assert 'name="password"' in shown.text
    assert 'value="tab=scores&amp;x=%3Cb%3E"' in shown.text
    for path in ("/config", "/gradio_api/queue/join", "/assets/a.js", "/api/gallery", "/api/openapi.json"):
        assert client.get(path).status_code == 401
    assert not page.users
    assert not rest.bodies
    assert client.get("/api/health").text == "nobody"

    form = {"name": "operator", "password": PASSWORD, "query": "tab=scores"}
    answer = client.post("/login", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?tab=scores")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    assert client.get("/").text == "the page"
    assert page.users == [User("operator", Role.OPERATOR)]
    assert client.get("/api/gallery").text == "operator"
    assert client.post("/logout").status_code == 303
    assert client.get("/config").status_code == 401


def test_a_wrong_password_is_counted_and_the_form_says_so(users: UsersFile) -> None:
    client, _, _ = make(users)
    codes = [client.post("/login", data={"name": "viewer", "password": "wrong"}).status_code for _ in range(6)]
    assert codes == [401] * 5 + [429]
    assert client.post("/login", data={"name": "viewer", "password": PASSWORD}).status_code == 429
    assert client.post("/api/login", json={"name": "viewer", "password": PASSWORD}).status_code == 429


@pytest.mark.parametrize(
    "query", ["//evil.example", "x\r\nset-cookie: a=b", "a" * 3000, "https://evil.example", '"><script>']
)
def test_a_login_leads_only_back_to_the_page(users: UsersFile, query: str) -> None:
    client, _, _ = make(users)
    answer = client.post("/login", data={"name": "viewer", "password": PASSWORD, "query": query})
    assert answer.headers["location"] == "/"
    assert "evil" not in answer.headers["set-cookie"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"name": 1, "password": []}', b"\xff", b"[" * 5000])
def test_a_damaged_login_is_refused(users: UsersFile, content: bytes) -> None:
    client, _, _ = make(users)
    assert client.post("/api/login", content=content).status_code in (400, 401)
    assert client.post("/login", content=content).status_code in (400, 401)
    assert client.get("/login").status_code == client.get("/api/login").status_code == 405


def test_tls_makes_the_cookie_secure(users: UsersFile) -> None:
    client, _, _ = make(users, secure=True)
    assert "; Secure" in client.post("/login", data={"name": "viewer", "password": PASSWORD}).headers["set-cookie"]


@pytest.mark.parametrize(
    ("names", "host", "status"),
    [(LOOPBACK_NAMES, "localhost:7860", 200), (LOOPBACK_NAMES, "evil.example", 404),
     ((*LOOPBACK_NAMES, "reid.example.org"), "Reid.Example.org", 200), (None, "192.168.1.5:7860", 200),
     (None, "a b", 404), ((*LOOPBACK_NAMES, "reid.example.org"), "reid.example.org.evil", 404)],
)  # fmt: skip
def test_the_host_name_must_be_allowed(names: tuple[str, ...] | None, host: str, status: int) -> None:
    client, _, _ = make(names=names)
    for path in ("/", "/api/gallery"):
        assert client.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
def test_pages_of_others_may_not_ask(headers: dict[str, str]) -> None:
    client, page, rest = make()
    assert client.post("/api/erase", headers=headers, content=b"{}").status_code == 403
    assert not rest.bodies
    assert not page.users
    assert client.post("/api/erase", headers={"origin": HERE}, content=b"{}").status_code == 200


def test_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "UPLOAD_BYTES", 1000)
    monkeypatch.setattr(gates, "WAITING_BYTES", 1500)
    client, _, rest = make()
    assert client.post("/api/search", content=b"x" * 1000).status_code == 200
    assert client.post("/api/search", content=b"x" * 1001).status_code == 413
    monkeypatch.setattr(gates, "WAITING_BYTES", 900)
    assert client.post("/api/search", content=b"x" * 1000).status_code == 429
    assert client.get("/api/gallery?" + "a" * 9000).status_code == 404
    assert len(rest.bodies) == 1


def test_requests_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "OPEN_REQUESTS", 2)
    run_in_thread(_ask_three_at_once())


async def _ask_three_at_once() -> None:
    """Ask three times before the first body has arrived."""
    gate, arrived = Gate(PlainPage(), Rest(), Access(None)), asyncio.Event()
    codes: list[int] = []

    async def receive() -> dict[str, Any]:
        await arrived.wait()
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            codes.append(event["status"])

    scope = {
        "type": "http",
        "path": "/api/x",
        "method": "POST",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-length", b"1")],
    }
    waiting = [asyncio.create_task(gate(dict(scope), receive, send)) for _ in range(2)]
    await asyncio.sleep(0)
    third = asyncio.create_task(gate(dict(scope), receive, send))
    await asyncio.sleep(0.05)
    arrived.set()
    await asyncio.gather(*waiting, third)
    assert sorted(codes) == [200, 200, 429]


def test_a_fault_is_one_line_without_its_text() -> None:
    client, page, rest = make()
    rest.fails = True
    answer = client.get("/api/gallery")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert page.refused == Counter({500: 1})
