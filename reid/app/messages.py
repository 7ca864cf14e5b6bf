"""Which messages the page sends: every other message is refused before gradio reads it.

A message names an event of the page and carries one question: short texts, numbers, flags and lists of texts by the
names of the page's fields. What they mean is checked by those who answer (:mod:`reid.app.page_values`).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import gradio as gr

from reid.app.refusals import Refused
from reid.structured_text import parse_json

MESSAGE_BYTES = 2**16
TEXT_CHARACTERS = 200  # of a value, where the choices are not known beforehand
SESSION = r"[A-Za-z0-9_-]{1,64}"

UPLOADS = "uploads"  # the field of a question that names uploads
QUESTION_FIELDS = 64
QUESTION_WORDS = 1500  # of a list in a question, such as all points of a map

_SESSION = re.compile(SESSION)
_FIELD = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,47}")


@dataclass(frozen=True)
class Message:
    """A message that the page may send.

    Args:
        session: The name that the page gave to its session.
        body: The message as JSON, without anything that gradio need not know.
        uploads: The names of uploads in it.
    """

    session: str
    body: bytes
    uploads: tuple[str, ...]


@dataclass(frozen=True)
class _Event:
    states: int  # how many values the server keeps; the page sends none of them
    takes_question: bool  # whether the function reads what the page asks


FILE_KEY = "path"  # gradio takes whatever has such a key for a file


class MessageRules:
    """What each event of a page accepts.

    Args:
        blocks: The page.
    """

    def __init__(self, blocks: gr.Blocks):
        self._events = {
            number: _Event(len(event.inputs), bool(event.collects_event_data)) for number, event in blocks.fns.items()
        }
        self._triggers = frozenset(blocks.blocks)

    def read(self, body: bytes) -> Message:
        """Read a message.

        Args:
            body: The body of the request.

        Returns:
            The message.

        Raises:
            Refused: The page does not send this message (400).
        """
        message = _read_object(body)
        event = self._events.get(message.get("fn_index")) if _is_integer(message.get("fn_index")) else None
        session, trigger, values = message.get("session_hash"), message.get("trigger_id"), message.get("data")
        if event is None or not isinstance(session, str) or not _SESSION.fullmatch(session):
            raise Refused(400)
        if not (trigger is None or (_is_integer(trigger) and trigger in self._triggers)):
            raise Refused(400)
        if not isinstance(values, list) or values != [None] * event.states:
            raise Refused(400)
        question, uploads = _read_question(message.get("event_data")) if event.takes_question else (None, ())
        cleaned = {
            "data": values,
            "event_data": question,
            "fn_index": message["fn_index"],
            "trigger_id": trigger,
            "session_hash": session,
        }
        return Message(session, json.dumps(cleaned).encode(), uploads)


def _refuse_constant(_name: str) -> None:
    raise Refused(400)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        message = parse_json(body.decode("utf-8"), _refuse_constant)
    except ValueError:  # an UnicodeDecodeError is a ValueError
        raise Refused(400) from None
    if not isinstance(message, dict):
        raise Refused(400)
    return message


def _read_question(event_data: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a page asks: texts, numbers, flags and lists of texts by their names, and the uploads among them."""
    if not isinstance(event_data, dict) or len(event_data) > QUESTION_FIELDS or FILE_KEY in event_data:
        raise Refused(400)
    for name, value in event_data.items():
        values = value if isinstance(value, list) else [value]
        if not _FIELD.fullmatch(name) or len(values) > QUESTION_WORDS:
            raise Refused(400)
        if not all(isinstance(one, bool) or _is_number(one) or _is_text(one) for one in values):
            raise Refused(400)
    uploads = event_data.get(UPLOADS, [])
    if not isinstance(uploads, list) or not all(isinstance(one, str) for one in uploads):
        raise Refused(400)
    return event_data, tuple(uploads)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)


def _is_text(value: object) -> bool:
    """Whether a value is a short text without control characters and without halves of a character (surrogates)."""
    return (
        isinstance(value, str)
        and len(value) <= TEXT_CHARACTERS
        and not any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF for letter in value)
    )
