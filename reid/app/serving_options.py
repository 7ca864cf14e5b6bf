"""The options of the served application about users, TLS, host names, jobs, the log and the webhook."""

from __future__ import annotations

import argparse
import socket
import ssl
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

import typer

from reid.app.asgi import HOST, LOOPBACK_NAMES
from reid.app.server import is_loopback
from reid.errors import ConfigError

Tls = tuple[Path, Path]


def add_safety_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of users, TLS, host names, jobs, the log and the webhook."""
    parser.add_argument("--users", type=Path, help="users file; without one, only this machine is served")
    parser.add_argument("--tls-cert", type=Path, help="certificate file (PEM) for https")
    parser.add_argument("--tls-key", type=Path, help="file of the certificate's key (PEM)")
    parser.add_argument("--allow-host", action="append", help="host name under which the page is opened")
    parser.add_argument("--state", type=Path, help="folder for jobs, the log and crops that are sent")
    parser.add_argument("--import-folder", type=Path, action="append", help="folder below which jobs may read data")
    parser.add_argument("--purpose", action="append", help="purpose that a search may name")
    parser.add_argument("--gradio-client", action="store_true", help="answer gradio_client as well, under /client")
    parser.add_argument("--webhook", help="address that is told about new crops")


def check_safety(options: argparse.Namespace) -> None:
    """Check what can be checked before any work.

    Raises:
        ConfigError: The page would be open to others without users, or a file or an address cannot be used.
    """
    if options.users is None and not is_loopback(options.host):
        raise ConfigError(
            f"--host {options.host}: others could see and search the images of people without a password; name a users"
            ' file by --users ("reid users add FILE NAME" makes one), or forward the port with ssh'
        )
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key: expected both or none")
    if options.tls_cert is not None:
        _check_tls(options.tls_cert, options.tls_key)
    for name in options.allow_host or ():
        if not HOST.fullmatch(name) or (":" in name and not name.startswith("[")):
            raise ConfigError(f'--allow-host "{name}": expected a host name without a port, such as reid.example.org')
    for folder in options.import_folder or ():
        if not folder.is_dir():
            raise ConfigError(f"--import-folder {folder}: no such folder")
    if options.webhook is not None:
        check_webhook(options.webhook)


def _check_tls(certificate: Path, key: Path) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(
            f"{certificate}, {key}: cannot be used for https ({reason}); expected two PEM files"
        ) from error


def tls_of(options: argparse.Namespace) -> Tls | None:
    """Return certificate and key; None without TLS."""
    return None if options.tls_cert is None else (options.tls_cert, options.tls_key)


def host_names(options: argparse.Namespace) -> Collection[str] | None:
    """Return the host names that requests may name, in small letters; None allows any, behind a login.

    Example:
        >>> host_names(argparse.Namespace(host="0.0.0.0", allow_host=["Reid.example.org"]))[-1]
        'reid.example.org'
    """
    given = tuple(name.lower() for name in options.allow_host or ())
    if is_loopback(options.host) or given:
        return (*LOOPBACK_NAMES, *given)
    return None


def check_webhook(url: str) -> str:
    """Return an address to which messages can be sent; ConfigError otherwise.

    Example:
        >>> check_webhook("https://example.org/seen")
        'https://example.org/seen'
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
    if not is_usable or not url.isprintable() or " " in url:
        raise ConfigError(f'--webhook "{url}": expected an address such as https://example.org/seen')
    return url


def address_for_others(host: str, port: int, scheme: str, names: Collection[str] = ()) -> str:
    """Return the address at which others can open what listens on all addresses of this machine.

    Args:
        host: The address that is listened on.
        port: The port.
        scheme: "http" or "https".
        names: Host names that were given; the first one is taken, unless only this machine is served.

    Example:
        >>> address_for_others("127.0.0.1", 7860, "http")
        'http://127.0.0.1:7860'
    """
    name = "" if is_loopback(host) else next(iter(names), "")
    if not name:
        name = _own_address(host) if host in ("0.0.0.0", "::") else host
        name = f"[{name}]" if ":" in name else name
    return f"{scheme}://{name}:{port}"


def _own_address(wildcard: str) -> str:
    """Return the address of this machine in its network; no packet is sent to find it."""
    family, target = (socket.AF_INET, "192.0.2.1") if wildcard == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
        except OSError:  # no network
            return socket.gethostname()


def warn_without_tls(options: argparse.Namespace) -> None:
    """Say so where passwords and images go over the network as they are."""
    if not is_loopback(options.host) and options.tls_cert is None:
        typer.echo("warning: without --tls-cert, passwords and images go over the network unprotected", err=True)
