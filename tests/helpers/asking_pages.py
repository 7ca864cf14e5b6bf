"""Pages that are asked as a visitor asks them, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.app.audit_log import AuditLog
from reid.app.gallery_service import GalleryService
from reid.app.job_queue import JobQueue
from reid.app.page_questions import Page, answer_question
from reid.app.page_values import PageParts, PageValues, PageVisit
from reid.app.pages import all_pages
from reid.app.served_data import ServedData
from reid.app.uploads import UploadStore

Ask = Callable[..., PageParts]


def service_of(data: ServedData, state: Path, purposes: tuple[str, ...] = ()) -> GalleryService:
    """Return the service of a gallery, with a queue whose jobs wait."""
    state.mkdir(exist_ok=True)
    return GalleryService(data, JobQueue(state / "jobs"), AuditLog(state / "audit.jsonl", purposes), state)


def asking(service: GalleryService, uploads: UploadStore | None = None) -> tuple[Ask, PageVisit, dict[str, Page]]:
    """Return a function that asks as one visitor, the visitor, and the pages."""
    pages = {page.name: page for page in all_pages(service, UploadStore() if uploads is None else uploads)}
    visit = PageVisit()

    def ask(page: str, action: str, **values: Any) -> PageParts:
        return answer_question(pages, PageValues({"page": page, "action": action, **values}), visit)

    return ask, visit, pages
