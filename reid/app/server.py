"""The web server of the application: where it listens, what it writes, and how it ends.

Which requests it answers is decided in :mod:`reid.app.guard`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
import uvicorn

from reid.app.asgi import Counting
from reid.app.connections import HEADER_BYTES, KEEP_ALIVE_SECONDS, BoundedConnection
from reid.errors import ConfigError
from reid.files import locked

FOLDER_NAME = re.compile(r"reid-demo-[a-z0-9_]{8}")
OWNER_FILE = ".reid-demo-owner"  # locked by the program that made the folder, as long as it runs


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


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for what gradio writes, and remove it at the end of the ``with`` block.

    Only its owner may read it. Folders of earlier programs that were killed are removed first. All settings of gradio
    in the environment are removed, so that none can open what is closed here.

    Yields:
        The folder.
    """
    remove_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix="reid-demo-"))  # 0700
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    try:
        with locked(folder / OWNER_FILE):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove the private folders that killed programs of this user left behind.

    A folder counts as left behind if it has the name of one, is private, and holds an owner file that nobody locks.

    Args:
        parent: The folder in which they are.
    """
    for folder in parent.glob("reid-demo-*"):
        try:
            if not _is_private_folder(folder) or not (folder / OWNER_FILE).is_file():
                continue
            with locked(folder / OWNER_FILE, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its program still runs, or it is gone
            continue


def _is_private_folder(folder: Path) -> bool:
    status = folder.lstat()
    is_own = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == os.getuid()
    return is_own and FOLDER_NAME.fullmatch(folder.name) is not None


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

    def __init__(self, config: uvicorn.Config, address: str):
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            typer.echo(f"serving on {self._address}")


def address_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the address of a listening socket, as a browser of this machine opens it."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    guard: Counting, listener: socket.socket, address: str | None = None, tls: tuple[Path, Path] | None = None
) -> None:
    """Serve until interrupted (SIGINT, SIGTERM); open requests get two seconds to end.

    Args:
        guard: The page behind its guard.
        listener: The socket of :func:`listen`, which is closed at the end.
        address: What is printed as the address of the page; None names the socket.
        tls: Certificate and key for https.
    """
    config = uvicorn.Config(
        guard,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        http=BoundedConnection,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
        ssl_certfile=None if tls is None else tls[0],
        ssl_keyfile=None if tls is None else tls[1],
    )
    try:
        _Server(config, address or address_of(listener, "http" if tls is None else "https")).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after a clean end
        pass
    finally:
        listener.close()
    refused = ", ".join(f"{count} with {status}" for status, count in sorted(guard.refused.items()))
    typer.echo(f"stopped; refused requests: {refused}" if refused else "stopped", err=True)
