"""Write a text file as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from reid.errors import DataError
from reid.files import write_whole


def write_text(text: str, path: Path, what: str, *, private: bool = False) -> None:
    """Write ``text`` to ``path``: the whole file appears, or the old one stays.  Missing folders are made.

    Args:
        text: The content.
        path: The file.
        what: What the text is, such as "report", for the error message.
        private: Whether only the owner may read the file.

    Raises:
        DataError: The file cannot be written there.
    """
    try:
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"), private=private)
    except OSError as error:
        raise DataError(f"{path}: the {what} cannot be written there: {error.strerror}") from error
