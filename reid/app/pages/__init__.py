"""The pages of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reid.app.gallery_service import GalleryService
    from reid.app.page_questions import Page
    from reid.app.uploads import UploadStore


def all_pages(service: GalleryService, uploads: UploadStore) -> list[Page]:
    """Return the pages, in the order of their links."""
    from reid.app.pages.cameras_page import CamerasPage
    from reid.app.pages.evaluation_page import EvaluationPage
    from reid.app.pages.gallery_page import GalleryPage
    from reid.app.pages.map_page import MapPage
    from reid.app.pages.people_page import PeoplePage
    from reid.app.pages.search_page import SearchPage

    return [
        SearchPage(service, uploads),
        PeoplePage(service),
        CamerasPage(service),
        GalleryPage(service),
        EvaluationPage(service),
        MapPage(service),
    ]
