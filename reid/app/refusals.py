"""How the server refuses a request: a status and one line."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?<![\w.<>])(?:[\w.~-]*/)+([\w.-]+)")
REASONS = {
    400: "the request is not one that this page sends",
    401: "log in first, or with another name or password",
    403: "this page answers only requests of its own, and what the user may do",
    404: "not found",
    405: "this address is not used in this way",
    408: "the request took too long",
    413: "the request is too large",
    415: "the request has another content type than this page sends",
    429: "too many requests at once; wait a moment",
    500: "the request could not be answered",
}


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error of the program
    """A request is not answered.

    Args:
        status: The status of the answer, a key of ``REASONS``.
    """

    def __init__(self, status: int):
        super().__init__(REASONS[status])
        self.status = status


def without_paths(text: str) -> str:
    """Return a text with only the last name of every path.

    Example:
        >>> without_paths("/srv/site/galleries/shop: the gallery is empty")
        'shop: the gallery is empty'
    """
    return _PATH.sub(r"\1", text)
