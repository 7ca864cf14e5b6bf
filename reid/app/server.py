"""A web server that serves the page and nothing else.

Only the addresses on a short list, those that the page needs, are answered. Files have no address, and a request may
name no file except one that was just uploaded. Every answer carries a policy that keeps the browser from sending
requests to any other host.
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

# The addresses that gradio's page requests. These are left out on purpose: file=, proxy=, stream, info, API
# documentation, monitoring.
PAGE_ADDRESSES = re.compile(
    r"/|/(assets|static|svelte)/.+|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/gradio_api/(queue/(join|data)|heartbeat/\w+|upload|upload_progress|startup-events|theme\.css|cancel|reset)/?"
)
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:;"
    " object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
EVENT_ADDRESS = "/gradio_api/queue/join"  # the page sends here what a visitor pressed, chose or uploaded
EVENT_BYTES = 2**20  # plenty, because the content of an upload is sent to another address
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``, a host name or an IP address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
        (True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class PageGuard:
    """An ASGI application in front of another that passes on what the page needs and answers 404 to the rest.

    It adds the headers of the policy to every answer. On a loopback address the Host header must name a loopback
    address too: otherwise a page of another host could reach this one under a name of its own (DNS rebinding).
    Gradio opens any path or address that a message names as a file, so messages may only name files in ``uploads``.

    Args:
        application: The application behind the guard.
        uploads: The folder in which gradio keeps uploads.
        local: Whether the server listens on a loopback address.
    """

    def __init__(self, application: Application, uploads: Path, local: bool):
        self._application = application
        self._uploads = uploads.resolve()
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        allowed = PAGE_ADDRESSES.fullmatch(scope["path"]) and (not self._local or _names_loopback(scope))
        if allowed and scope["path"].rstrip("/") == EVENT_ADDRESS:
            body = await _read_body(receive)
            allowed = body is not None and _names_only_files_in(self._uploads, body)
            receive = _replay(body or b"", receive)
        if not allowed:
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


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body of a request; None when it is too long or the sender is gone."""
    body, more = bytearray(), True
    while more:
        event = await receive()
        body += event.get("body", b"")
        if event["type"] != "http.request" or len(body) > EVENT_BYTES:
            return None
        more = event.get("more_body", False)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that first gives a body that was already read, then what comes next."""
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return events.pop() if events else await receive()

    return replay


def _names_only_files_in(folder: Path, body: bytes) -> bool:
    """Whether every file that a message (JSON) names is in ``folder``; a message that is not JSON names none."""
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
    """Make a folder for uploads that only its owner may read, and remove it at the end of the ``with`` block.

    All settings of gradio in the environment are removed, so that none can open what is closed here.

    Yields:
        The folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="reid-demo-"))  # 0700
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to serve on.

    Args:
        host: The name or address of this machine.
        port: The port; 0 takes any free one.

    Returns:
        The listening socket.

    Raises:
        ConfigError: The port is taken, or the address is not one of this machine.
    """
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
            f"cannot serve on {host}:{port} ({reason}); choose another port: --port 7861, or make demo PORT=7861"
        ) from None
    return listener


class _Server(uvicorn.Server):
    """Prints its address on stdout as soon as a browser can open it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            typer.echo(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")


def serve(application: Application, listener: socket.socket, uploads: Path) -> None:
    """Serve until interrupted (SIGINT, SIGTERM); open requests get two seconds to end.

    Args:
        application: The page as an ASGI application.
        listener: The socket of :func:`listen`, which is closed at the end.
        uploads: The folder in which gradio keeps uploads.
    """
    local = is_loopback(str(listener.getsockname()[0]))
    config = uvicorn.Config(
        PageGuard(application, uploads, local), log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )
    try:
        _Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after a clean end
        pass
    finally:
        listener.close()
    typer.echo("stopped", err=True)
