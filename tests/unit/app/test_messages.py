"""Only messages that the page sends are read: one question of short values by the names of fields."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
import pytest

from helpers.threads import build_in_thread
from reid.app.messages import QUESTION_FIELDS, QUESTION_WORDS, MessageRules
from reid.app.refusals import Refused

NAME = "upload-" + "0" * 32
QUESTION = {"page": "search", "action": "search", "seq": 3, "cross": True, "cameras": ["a1", "b2"]}


def press(_kept: str, event: gr.EventData) -> str:
    return str(event._data)


@pytest.fixture(scope="module")
def rules() -> MessageRules:
    """The rules of a page: event 0 takes a state and a question, event 1 nothing."""
    return build_in_thread(build_rules)


def build_rules() -> MessageRules:
    with gr.Blocks() as blocks:
        kept, shown = gr.State("kept"), gr.HTML()
        gr.Button().click(press, kept, shown, preprocess=False)
        gr.Button().click(lambda: "", None, shown)
    return MessageRules(blocks)


def message(**changes: object) -> bytes:
    parts: dict[str, Any] = {"data": [None], "event_data": QUESTION, "fn_index": 0, "session_hash": "s1"}
    return json.dumps(parts | {"trigger_id": None} | changes).encode()


def status_of(rules: MessageRules, body: bytes) -> int:
    try:
        rules.read(body)
    except Refused as refused:
        return refused.status
    return 200


def test_a_message_of_the_page_loses_what_gradio_need_not_know(rules: MessageRules) -> None:
    read = rules.read(message(batched=True, event_id="x", oauth_token="x", simple_format=True))
    assert json.loads(read.body) == {
        "data": [None],
        "event_data": QUESTION,
        "fn_index": 0,
        "trigger_id": None,
        "session_hash": "s1",
    }
    assert (read.session, read.uploads) == ("s1", ())
    assert json.loads(rules.read(message(fn_index=1, data=[])).body)["event_data"] is None, "it reads no question"


def test_the_uploads_of_a_question_are_named(rules: MessageRules) -> None:
    assert rules.read(message(event_data=QUESTION | {"uploads": [NAME]})).uploads == (NAME,)


@pytest.mark.parametrize(
    "changes",
    [
        *({"fn_index": value} for value in (2, -1, 2**70, None, "0", 0.0, True, [], {})),
        *({"session_hash": value} for value in (None, "", "a" * 65, "\0", "\ud800", "../x", 7, [])),
        *({"trigger_id": value} for value in (-1, 999, "1", 1.5, [], True)),
        *({"data": value} for value in (None, {}, "x", [], [None, None], ["x"], [0], [{"path": NAME}])),
        *({"event_data": value} for value in (None, [], "x", 7, True)),
        *(
            {"event_data": {"query": value}}
            for value in (None, {}, {"path": NAME}, "x" * 201, "a\0", "\ud800", "a\n", 2**2000, 1e999, [[]], [None])
        ),
        *({"event_data": {name: "x"}} for name in ("", "a b", "../x", "\0", "1", "_x", "n" * 49, "path")),
        *({"event_data": {"uploads": value}} for value in (NAME, 7, True, [7], [True], {})),
        {"event_data": {f"f{number}": 1 for number in range(QUESTION_FIELDS + 1)}},
        {"event_data": {"cameras": ["a"] * (QUESTION_WORDS + 1)}},
    ],
)
def test_other_messages_are_refused(rules: MessageRules, changes: dict[str, object]) -> None:
    assert status_of(rules, message(**changes)) == 400


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"7", b'"x"', b"{", b"\xff", b"NaN", b"[" * 60_000,
                                  b'{"a":' * 9999, b"9" * 60_000, b'{"data": NaN}', b'{"id": Infinity}'])  # fmt: skip
def test_what_is_no_message_is_refused(rules: MessageRules, body: bytes) -> None:
    assert status_of(rules, body) == 400
