"""What stands around the page when it is served: users, the REST interface, jobs, the log, and the webhook."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from reid.app.access import Access
from reid.app.accounts import UsersFile
from reid.app.asgi import LOOPBACK_NAMES, Counting
from reid.app.audit_log import AuditLog
from reid.app.client_interface import client_interface
from reid.app.gallery_service import GalleryService
from reid.app.gate import Gate
from reid.app.job_queue import JobQueue
from reid.app.rest import rest_interface
from reid.app.served_data import ServedData
from reid.app.serving_options import host_names
from reid.app.webhook import Webhook
from reid.errors import ConfigError
from reid.files import make_output_folder


def state_folder_of(options: argparse.Namespace, data: ServedData) -> Path:
    """Return the folder in which the application keeps what is its own: beside the gallery, unless it is named."""
    gallery = data.main.folder.resolve()
    folder: Path = options.state or gallery.with_name(f"{gallery.name}-state")
    if folder.resolve() == gallery or folder.resolve().is_relative_to(gallery):
        raise ConfigError(f"--state {folder}: lies in the gallery; choose a folder beside it")
    try:
        return make_output_folder(folder, 0o700)
    except ConfigError as error:
        raise ConfigError(f"{error}, with --state") from error


@contextmanager
def gated_application(
    options: argparse.Namespace, data: ServedData, build_page: Callable[[GalleryService, bool], Counting]
) -> Iterator[Gate]:
    """Put the gate, the REST interface, the jobs and the log around the page, as long as the ``with`` block runs.

    Args:
        options: The command line, after :func:`check_safety`.
        data: What the application serves.
        build_page: Returns the guarded page for the gallery and whether only loopback names may open it.

    Yields:
        The application to serve.

    Raises:
        ReidError: The users file, the log or the state folder cannot be used.
    """
    access = Access(UsersFile.read(options.users) if options.users is not None else None)
    state = state_folder_of(options, data)
    audit = AuditLog(state / "audit.jsonl", tuple(options.purpose or ()))
    with ExitStack() as stack:
        jobs = JobQueue(state / "jobs")
        service = GalleryService(data, jobs, audit, state, options.import_folder or (), not access.is_open)
        jobs.start()
        stack.callback(jobs.close)
        if options.webhook is not None:
            webhook = Webhook(options.webhook, service)
            webhook.start()
            stack.callback(webhook.close)
        names = host_names(options)
        page = build_page(service, names == LOOPBACK_NAMES)
        client = client_interface(service) if options.gradio_client else None
        yield Gate(page, rest_interface(service), access, names, options.tls_cert is not None, client)
