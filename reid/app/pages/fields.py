"""Marks on fields of the page whose values follow rules of their own; see :mod:`reid.app.messages`.

They are marks and no classes, because gradio writes a file beside the module of every class that is derived from one of
its fields.
"""

from __future__ import annotations

from typing import Any


def hold_upload_name(field: Any) -> Any:
    """Let a field for files hold the name of an upload in :class:`reid.app.uploads.UploadStore`.

    Gradio would take the value for a path, copy the file and leave another, empty file behind.

    Returns:
        The same field.
    """
    field.data_model = None
    field.api_info = lambda: {"type": "string"}
    return field


def accept_any_choice(field: Any) -> Any:
    """Mark a field whose choices depend on another one: a message may arrive with a choice of before.

    Returns:
        The same field.
    """
    field.accepts_any_choice = True
    return field


def accepts_any_choice(field: Any) -> bool:
    """Whether a field has the mark of :func:`accept_any_choice`."""
    return getattr(field, "accepts_any_choice", False) is True
