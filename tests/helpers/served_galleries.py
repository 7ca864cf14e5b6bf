"""A small gallery that is served, with users of every role, and a client that talks to it without a socket."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from reid.app.access import Access
from reid.app.accounts import UsersFile, add_user
from reid.app.asgi import LOOPBACK_NAMES, Receive, Scope, Send, send_whole
from reid.app.audit_log import AuditLog
from reid.app.gallery_service import GalleryService
from reid.app.gate import Gate
from reid.app.job_queue import JobQueue
from reid.app.job_records import Job, path_of_job
from reid.app.opened_gallery import open_served_gallery
from reid.app.rest import rest_interface
from reid.models.checkpoint import load_checkpoint
from reid.pipeline import build_gallery
from reid.records import Sample

PASSWORD = "a long password"
HERE = "http://127.0.0.1:7860"


class PlainPage:
    """Stands for the guarded page."""

    def __init__(self) -> None:
        from collections import Counter

        self.refused: Counter[int] = Counter()
        self.users: list[object] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.users.append(scope.get("reid_user"))
            await send_whole(send, 200, b"text/html", b"the page")


class JobsHere(JobQueue):
    """A queue that runs its commands in this process, which saves the seconds in which a new one starts."""

    def _run_command(self, job: Job, lock: int) -> int:
        import reid.cli

        out, err = (path_of_job(self._folder, job.number, suffix) for suffix in ("out", "err"))
        with out.open("a") as printed, err.open("w") as told, redirect_stdout(printed), redirect_stderr(told):
            try:
                reid.cli.main(list(job.commands[job.at]))
            except SystemExit as ended:
                return ended.code if isinstance(ended.code, int) else 0
        return 0


@dataclass(frozen=True)
class Served:
    """A served gallery: what answers, its parts, and clients of it."""

    gate: Gate
    service: GalleryService
    page: PlainPage

    def client(self, name: str = "") -> TestClient:
        """Return a client; with a name, it is logged in."""
        client = TestClient(self.gate, base_url=HERE, raise_server_exceptions=False, follow_redirects=False)
        if name:
            answer = client.post("/api/login", json={"name": name, "password": PASSWORD})
            client.headers["authorization"] = f"Bearer {answer.json()['token']}"
        return client


def make_gallery(samples: tuple[Sample, ...], weights: Path, folder: Path) -> Path:
    """Build a gallery in a folder."""
    build_gallery(load_checkpoint(weights), samples, folder)
    return folder


def make_users(path: Path) -> Path:
    """Write a users file with one user of each role, who is called like the role."""
    for role in ("viewer", "operator", "admin"):
        add_user(path, role, role, PASSWORD)
    return path


def serve_gallery(folder: Path, state: Path, users: Path | None = None, **changes: Any) -> Served:
    """Put the gate and the REST interface before a gallery; jobs wait until the queue is started."""
    program = changes.pop("program", (sys.executable, "-m", "reid.cli"))
    audit = AuditLog(state / "audit.jsonl", tuple(changes.pop("purposes", ())))
    service = GalleryService(
        open_served_gallery(folder), changes.pop("queue", JobQueue)(state / "jobs", program), audit, state,
        changes.pop("sources", ()),
    )  # fmt: skip
    access = Access(None if users is None else UsersFile.read(users))
    page = PlainPage()
    gate = Gate(page, rest_interface(service), access, changes.pop("names", LOOPBACK_NAMES), **changes)
    return Served(gate, service, page)


Serve = Callable[..., Served]
