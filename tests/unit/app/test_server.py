"""The server of the application: which requests it answers, where it listens and how it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reid.app import application, server
from reid.errors import ConfigError

UPLOADS = Path("/uploads")
PAGE = ["/", "/config", "/theme.css", "/assets/index-a1.js", "/static/fonts/a.woff2", "/gradio_api/queue/join",
        "/gradio_api/queue/data", "/gradio_api/upload", "/gradio_api/heartbeat/abc1"]  # fmt: skip
CLOSED = ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file/x", "/gradio_api/info", "/docs",
          "/gradio_api/proxy=http://x/", "/monitoring", "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api",
          "/config/x", "/x/assets/a", "//", "/gradio_api/queue/join/../../file=/etc/passwd",
          "/gradio_api/call/answer", "/gradio_api/api/predict", "/gradio_api/component_server"]  # fmt: skip


def request(
    path: str, host: str = "127.0.0.1:7860", local: bool = True, kind: str = "http", parts: Sequence[bytes] = (b"",)
) -> list[dict[str, Any]]:
    """Return what the guard sends for a request, in front of an application that echoes what it receives."""
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting[-1]["more_body"] = False

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        event = await receive() if scope["type"] == "http" else {"body": b""}
        await send({"type": "http.response.body", "body": b"yes" + event["body"]})

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        return waiting.pop(0)

    scope = {"type": kind, "path": path, "headers": [(b"host", host.encode())]}
    guard = server.PageGuard(echo, UPLOADS, local)
    # In a thread of its own, because the browser of other tests keeps an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(guard(scope, receive, send))).result()
    return sent


@pytest.mark.parametrize(
    ("named", "status"),
    [
        ("/uploads/ab12/crop.jpg", 200),
        ("/etc/passwd", 404),
        ("/uploads/../etc/passwd", 404),
        ("/uploads-of-others/crop.jpg", 404),
        ("http://example.org/crop.jpg", 404),
        ("crop.jpg", 404),
        (7, 404),
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/queue/join/"])
def test_a_message_may_only_name_uploads(named: object, status: int, path: str) -> None:
    body = json.dumps({"data": [1, None, {"a": [{"path": named, "meta": {"_type": "gradio.FileData"}}]}]}).encode()
    start, answer = request(path, parts=[body[:20], body[20:]])
    assert start["status"] == status
    assert answer["body"] == (b"yes" + body if status == 200 else b"not found\n")


def test_a_message_without_files_passes_unchanged_and_a_long_one_is_refused() -> None:
    join = "/gradio_api/queue/join"
    assert request(join, parts=[b'{"data": [true, "both"]}'])[1]["body"] == b'yes{"data": [true, "both"]}'
    assert request(join, parts=[b"no json"])[1]["body"] == b"yesno json"
    assert request(join, parts=[b" " * 2**19] * 3)[0]["status"] == 404


@pytest.mark.parametrize("path", PAGE)
def test_the_page_is_served_with_its_policy(path: str) -> None:
    start, body = request(path)
    headers = dict(start["headers"])
    assert (start["status"], body["body"], headers[b"x-own"]) == (200, b"yes", b"1")
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("path", CLOSED)
def test_other_addresses_are_not_found(path: str) -> None:
    start, body = request(path)
    assert start["status"] == 404
    assert b"yes" not in body["body"]


@pytest.mark.parametrize(
    ("host", "local", "status"),
    [
        ("localhost:7860", True, 200),
        ("[::1]:7860", True, 200),
        ("127.0.0.1", True, 200),
        ("evil.example:7860", True, 404),
        ("127.0.0.1.evil.example", True, 404),
        ("", True, 404),
        ("evil.example:7860", False, 200),
    ],
)
def test_on_loopback_the_host_must_be_a_loopback_name(host: str, local: bool, status: int) -> None:
    assert request("/", host, local)[0]["status"] == status


def test_the_start_of_the_application_passes() -> None:
    assert request("", kind="lifespan")[0]["status"] == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("street.example", False)],
)  # fmt: skip
def test_is_loopback(host: str, loopback: bool) -> None:
    assert server.is_loopback(host) is loopback


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            server.listen("127.0.0.1", port)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "in use" in str(caught.value)
    assert "--port" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("192.0.2.1", 0), ("no such host", 0)])
def test_an_address_of_another_machine_is_refused(host: str, port: int) -> None:
    with pytest.raises(ConfigError) as caught:
        server.listen(host, port)
    assert f"{host}:{port}" in str(caught.value)


def test_uploads_are_private_and_gradio_settings_of_the_environment_are_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server.os, "environ", {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "HOME": "/root"})
    with server.private_folder() as folder:
        (folder / "upload").mkdir()
        (folder / "upload" / "crop.jpg").write_bytes(b"x")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert server.os.environ == {
            "HOME": "/root",
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
    assert not folder.exists()


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the program without serving it; returns exit code, stdout and stderr."""
    monkeypatch.setattr(application.signal, "signal", lambda *_: None)
    monkeypatch.setattr(server.os, "environ", dict(server.os.environ))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = application.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_main_reports_a_taken_port_before_any_work(main, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, out, err = main("--port", other.getsockname()[1], "--data", tmp_path / "data")
    assert (code, out) == (1, "")
    assert err.startswith("error: cannot serve on 127.0.0.1:")
    assert err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_main_warns_before_it_serves_to_other_machines(main, tiny_street: Path, tmp_path: Path) -> None:
    code, _, err = main("--port", 0, "--host", "0.0.0.0", "--data", tiny_street, "--weights", tmp_path / "none.pth")
    assert code == 1
    warning, error = err.splitlines()
    assert warning.startswith("warning: --host 0.0.0.0")
    assert "people" in warning
    assert error.startswith("error: ")
    assert "none.pth" in error


def test_an_interruption_ends_with_a_line(main, monkeypatch: pytest.MonkeyPatch) -> None:
    from reid.app import served_data

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(served_data, "prepare_data", interrupted)
    code, out, err = main("--port", 0)
    assert (code, out) == (130, "")
    assert err.count("\n") == 1
