"""The pages of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reid.app.page_hub import Page
    from reid.app.served_data import ServedData
    from reid.app.uploads import UploadStore


def all_pages(data: ServedData, uploads: UploadStore) -> list[Page]:
    """Return the pages, in the order of their links."""
    from reid.app.pages.people_page import PeoplePage
    from reid.app.pages.search_page import SearchPage

    return [SearchPage(data, uploads), PeoplePage(data)]
