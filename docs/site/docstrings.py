"""Bring the docstrings of this project into the form that the site's reader of docstrings knows.

They have a section ``Example:``, which the reader calls ``Examples:``, and refer to other names by roles such as
``:func:``, which it does not know.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|exc):`~?([^`]+)`")


class ProjectDocstrings(griffe.Extension):
    """Change docstrings while they are loaded; the sources stay as they are."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002
        """Change the docstring of one module, class or function."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(r"`\1`", text)
