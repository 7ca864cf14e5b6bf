"""Serving a page to this machine, and nothing but the page.

Requests are held against a short list of addresses a page needs; files have none, and a request may name no
file but one that was just uploaded.  Answers carry a policy that keeps the browser from asking any other host.
The server knows nothing of what the page shows.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
import uvicorn

from reid.errors import ConfigError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# What the page of the framework asks for.  Left out on purpose: file=, proxy=, stream, info, api docs, monitoring.
NEEDED = re.compile(
    r"/|/(assets|static|svelte)/.+|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/gradio_api/(queue/(join|data)|heartbeat/\w+|upload|upload_progress|startup-events|theme\.css|cancel|reset)/?"
)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:;"
    " object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
JOIN = "/gradio_api/queue/join"  # where the page sends what was pressed, chosen or uploaded
JOIN_BYTES = 2**20  # uploads come another way, so this is plenty
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OnlyThePage:
    """Lets through what the page needs, adds the headers of the policy, and answers 404 to the rest.

    On a loopback address the Host header must name it too: else a page from elsewhere could reach this one
    under a name of its own (DNS rebinding).  The framework opens any path or address that a message names as
    a file, so messages may name files in ``uploads`` only.
    """

    def __init__(self, application: Application, uploads: Path, local: bool):
        self._application = application
        self._uploads = uploads.resolve()
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        known = NEEDED.fullmatch(scope["path"]) and (not self._local or _names_loopback(scope))
        if known and scope["path"].rstrip("/") == JOIN:
            body = await _body(receive)
            known = body is not None and _files_within(body, self._uploads)
            receive = _again(body or b"", receive)
        if not known:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not found\n"})
            return

        async def guarded(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", ()), *HEADERS]
            await send(event)

        await self._application(scope, receive, guarded)


def _names_loopback(scope: Scope) -> bool:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return re.sub(r":\d+$", "", host) in LOOPBACK_NAMES


async def _body(receive: Receive) -> bytes | None:
    """The whole body of a request; None when it is too long or its sender has gone."""
    body, more = bytearray(), True
    while more:
        event = await receive()
        body += event.get("body", b"")
        if event["type"] != "http.request" or len(body) > JOIN_BYTES:
            return None
        more = event.get("more_body", False)
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already, then what comes next."""
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return events.pop() if events else await receive()

    return replay


def _files_within(body: bytes, folder: Path) -> bool:
    """Whether every file that a message (JSON) names is in ``folder``; a message that is no JSON names none."""
    try:
        found = [json.loads(body)]
    except ValueError:
        return True
    while found:
        value = found.pop()
        if isinstance(value, dict):
            path = value.get("path", str(folder))
            if not isinstance(path, str) or not Path(path).resolve().is_relative_to(folder):
                return False
        if isinstance(value, dict | list):
            found += value.values() if isinstance(value, dict) else value
    return True


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads that only the owner may read, gone when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="reid-demo-"))  # 0700
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # no setting from outside may open what is closed here
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listen(host: str, port: int) -> socket.socket:
    """The socket to serve on; ConfigError when the port is taken or the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot serve on {host}:{port} ({reason}); choose another port: make demo PORT=7861"
        ) from None
    return listener


class _Server(uvicorn.Server):
    """Says where it can be reached once it can be."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            typer.echo(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")


def serve(application: Application, listener: socket.socket, uploads: Path) -> None:
    """Serve until interrupted (SIGINT, SIGTERM); open requests get two seconds to end.

    ``uploads`` is the folder in which the framework keeps what visitors send.
    """
    local = is_loopback(str(listener.getsockname()[0]))
    config = uvicorn.Config(
        OnlyThePage(application, uploads, local), log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )
    try:
        _Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after a clean end
        pass
    finally:
        listener.close()
    typer.echo("stopped", err=True)
