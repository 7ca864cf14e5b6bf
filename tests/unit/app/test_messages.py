"""Only messages that the page sends are read: their fields hold what a visitor can choose there."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
import pytest

from helpers.threads import build_in_thread
from reid.app.messages import MessageRules
from reid.app.pages.fields import accept_any_choice, hold_upload_name
from reid.app.refusals import Refused

VALUES = [None, "a", "any", True, 10, None]
NAME = "upload-" + "0" * 32


def press(event: gr.EventData) -> str:
    return str(event._data)


@pytest.fixture(scope="module")
def rules() -> MessageRules:
    """The rules of a page with one field of each sort: event 0 takes all of them, event 1 a pressed key."""
    return build_in_thread(build_rules)


def build_rules() -> MessageRules:
    with gr.Blocks() as blocks:
        fields: list[Any] = [
            gr.State("kept"),
            gr.Radio(["a", "b"]),
            accept_any_choice(gr.Dropdown(["c"])),
            gr.Checkbox(),
            gr.Slider(5, 50),
            hold_upload_name(gr.File()),
        ]
        shown = gr.HTML()
        gr.Button().click(lambda *_: "", fields, shown, preprocess=False)
        gr.Button().click(press, None, shown)
    return MessageRules(blocks)


def message(**changes: object) -> bytes:
    parts: dict[str, Any] = {"data": VALUES, "fn_index": 0, "session_hash": "s1", "trigger_id": None}
    return json.dumps(parts | changes).encode()


def replaced(position: int, value: object) -> list[object]:
    return [value if index == position else old for index, old in enumerate(VALUES)]


def status_of(rules: MessageRules, body: bytes) -> int:
    try:
        rules.read(body)
    except Refused as refused:
        return refused.status
    return 200


def test_a_message_of_the_page_loses_what_gradio_need_not_know(rules: MessageRules) -> None:
    read = rules.read(message(batched=True, event_id="x", oauth_token="x", simple_format=True, event_data=[[[]]]))
    assert json.loads(read.body) == {
        "data": VALUES,
        "event_data": None,
        "fn_index": 0,
        "trigger_id": None,
        "session_hash": "s1",
    }
    assert (read.session, read.uploads) == ("s1", ())


def test_an_upload_is_named_and_gradio_sees_no_path(rules: MessageRules) -> None:
    crop = {"path": NAME, "url": "http://x/", "meta": {"_type": "gradio.FileData"}}
    read = rules.read(message(data=replaced(5, crop)))
    assert read.uploads == (NAME,)
    assert json.loads(read.body)["data"] == replaced(5, NAME)


@pytest.mark.parametrize(
    "changes",
    [
        *({"fn_index": value} for value in (2, -1, 2**70, None, "0", 0.0, True, [], {})),
        *({"session_hash": value} for value in (None, "", "a" * 65, "\0", "\ud800", "../x", 7, [])),
        *({"trigger_id": value} for value in (-1, 999, "1", 1.5, [], True)),
        *({"data": value} for value in (None, {}, "x", [], VALUES[:-1], [*VALUES, None])),
        *({"data": replaced(0, value)} for value in ("x", 0, [])),
        *({"data": replaced(1, value)} for value in (None, "c", 0, True, [], ["a"], "\0")),
        *({"data": replaced(2, value)} for value in (0, [], "x" * 201, "a\0", "\ud800", "a\n")),
        *({"data": replaced(3, value)} for value in (None, 0, 1, "true")),
        *({"data": replaced(4, value)} for value in (None, 4, 51, "10", True, 1e999, 2**2000, [])),
        *({"data": replaced(5, value)} for value in ("x", NAME, 0, [], [{"path": NAME}])),
        *({"data": replaced(position, {"path": NAME})} for position in range(5)),
    ],
)
def test_other_messages_are_refused(rules: MessageRules, changes: dict[str, object]) -> None:
    assert status_of(rules, message(**changes)) == 400


@pytest.mark.parametrize("path", [None, 7, [], {}])
def test_a_file_must_be_named_by_a_text(rules: MessageRules, path: object) -> None:
    assert status_of(rules, message(data=replaced(5, {"path": path}))) == 404
    assert status_of(rules, message(data=replaced(5, {}))) == 404


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"7", b'"x"', b"{", b"\xff", b"NaN", b"[" * 60_000,
                                  b'{"a":' * 9999, b"9" * 60_000, b'{"data": NaN}', b'{"id": Infinity}'])  # fmt: skip
def test_what_is_no_message_is_refused(rules: MessageRules, body: bytes) -> None:
    assert status_of(rules, body) == 400


@pytest.mark.parametrize(
    ("pressed", "status"),
    [({"key": 3}, 200), ({"key": 3, "more": [[]]}, 200), ({"key": "3"}, 400), ({"key": True}, 400),
     ({"key": 2**80}, 400), ({}, 400), (None, 400), ([], 400)],
)  # fmt: skip
def test_only_a_key_is_read_of_what_was_pressed(rules: MessageRules, pressed: object, status: int) -> None:
    body = message(fn_index=1, data=[], event_data=pressed)
    assert status_of(rules, body) == status
    if status == 200:
        assert json.loads(rules.read(body).body)["event_data"] == {"key": 3}
