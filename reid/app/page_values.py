"""What a page asks the application, and what it gets: plain values in, parts of the page out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from reid.app.accounts import OWNER, User

MOST_IMAGES = 16  # that are kept for one visitor's page: those of a query, and people who were found in a frame


class PageValues:
    """The values of the fields of a page; whatever the browser sends, each is of the type that is asked for.

    Args:
        values: The values by the names of the fields.

    Example:
        >>> values = PageValues({"count": "20", "cross": True, "cameras": ["a1"]})
        >>> values.number("count", 10), values.flag("cross"), values.words("cameras"), values.text("site")
        (20, True, ('a1',), '')
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        value = self._values.get(name)
        return value if isinstance(value, str) else default

    def flag(self, name: str, default: bool = False) -> bool:
        """Return whether a box is checked."""
        value = self._values.get(name)
        return value if isinstance(value, bool) else default

    def number(self, name: str, default: int, most: int = 2**53) -> int:
        """Return a whole number of at least 0."""
        value = self._values.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 17:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            return default
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self._values.get(name)
        return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


@dataclass(frozen=True)
class PageParts:
    """What a page shows from now on.

    Args:
        parts: HTML by the names of the parts that change.
        fields: New values of fields.
        error: One line that says what is wrong; "" where nothing is.
        status: What a screen reader says.
        export: The rows that the page can save.
        reveal: Whether the page scrolls to its results where they are out of sight.
        again: The action that the page asks for a moment later, as long as it is open; "" for none.
        document: A page of HTML that the page can save.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, object] = field(default_factory=dict)
    error: str = ""
    status: str = ""
    export: list[dict[str, object]] | None = None
    reveal: bool = False
    again: str = ""
    document: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the parts as the page's script reads them."""
        return {name: value for name, value in vars(self).items() if value not in (None, "", False)}


class PageVisit:
    """What the application knows of one open page: its visitor, and the images that were uploaded."""

    def __init__(self) -> None:
        self.user: User = OWNER
        self.images: dict[str, Image.Image] = {}

    def keep(self, name: str, image: Image.Image) -> None:
        """Remember an image, and forget the oldest where there are too many."""
        self.images[name] = image
        while len(self.images) > MOST_IMAGES:
            del self.images[next(iter(self.images))]

    def __deepcopy__(self, _memo: object) -> PageVisit:
        """Return a fresh one: gradio copies the first value of a state for every page that is opened."""
        return PageVisit()


PageAction = Callable[[PageValues, PageVisit], PageParts]
"""Answers one question of a page; raises ReidError for what the visitor should read."""
