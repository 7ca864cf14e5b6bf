"""Sessions are bounded, and what nobody reads is dropped together with what gradio keeps for it."""

from __future__ import annotations

from types import SimpleNamespace

import gradio as gr
import pytest

from helpers.threads import build_in_thread, run_in_thread
from reid.app import sessions
from reid.app.refusals import Refused
from reid.app.sessions import Sessions


class Queue:
    """The parts of gradio's queue that are looked at."""

    def __init__(self) -> None:
        self.pending_event_ids_session: dict[str, set[str]] = {}
        self.pending_messages_per_session: dict[str, object] = {}
        self.cleaned: list[str] = []

    async def clean_events(self, session_hash: str) -> None:
        self.cleaned.append(session_hash)


class Served:
    """Sessions over a queue of which the tests know everything, and a clock that they set."""

    def __init__(self) -> None:
        self.queue, self.now = Queue(), 0.0
        self.states: dict[str, object] = {}
        holder = SimpleNamespace(session_data=self.states, time_last_used={})
        self.sessions = Sessions(SimpleNamespace(_queue=self.queue, state_holder=holder), lambda: self.now)

    def enter(self, name: str, visitor: str = "") -> None:
        run_in_thread(self.sessions.enter(name, visitor))
        self.states[name] = object()

    def add_results(self, name: str, number: int) -> None:
        self.queue.pending_event_ids_session[name] = {f"{name}{i}" for i in range(number)}
        self.queue.pending_messages_per_session[name] = object()


def test_a_session_is_one_visitors() -> None:
    served = Served()
    served.enter("s", "anna")
    served.enter("s", "anna")
    with pytest.raises(Refused) as caught:
        served.enter("s", "bo")
    assert caught.value.status == 404
    assert len(served.sessions) == 1


def test_the_oldest_page_without_a_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS", 3)
    served = Served()
    for name in "abc":
        served.enter(name, name)
        served.now += 1
    with served.sessions.hold("a"):
        served.enter("d", "d")
        assert set(served.states) == {"a", "c", "d"}
        assert served.queue.cleaned == ["b"]
        with served.sessions.hold("c"), served.sessions.hold("d"), pytest.raises(Refused) as caught:
            served.enter("e", "e")
        assert caught.value.status == 429


def test_one_visitor_takes_no_room_of_others() -> None:
    served = Served()
    served.enter("other", "bo")
    for number in range(sessions.SESSIONS_OF_A_VISITOR + 5):
        served.now += 1
        served.enter(f"s{number}", "anna")
    assert len(served.sessions) == sessions.SESSIONS_OF_A_VISITOR + 1
    assert "other" in served.states
    assert "s0" not in served.states


def test_unread_results_are_bounded() -> None:
    served = Served()
    served.enter("s")
    served.add_results("s", sessions.UNREAD_OF_A_SESSION)
    with pytest.raises(Refused) as caught:
        run_in_thread(served.sessions.make_room_for_result("s"))
    assert caught.value.status == 429
    for name in "abcd":
        served.enter(name, name)
        served.add_results(name, sessions.UNREAD_OF_A_SESSION - 1)
    served.enter("new", "new")
    with pytest.raises(Refused):
        run_in_thread(served.sessions.make_room_for_result("new"))
    served.now += sessions.UNREAD_SECONDS
    served.enter("new", "new")
    run_in_thread(served.sessions.make_room_for_result("new"))
    assert "s" not in served.queue.pending_messages_per_session
    assert served.sessions.unread < sessions.UNREAD


def test_what_nobody_reads_is_dropped_after_a_time() -> None:
    served = Served()
    for name in ("left", "open"):
        served.enter(name)
        served.add_results(name, 2)
    served.states["unknown"] = object()
    with served.sessions.hold("open"):
        served.now = sessions.UNREAD_SECONDS
        run_in_thread(served.sessions.drop_idle())
        assert set(served.queue.pending_messages_per_session) == {"open"}
        assert set(served.states) == {"left", "open"}
        served.now = sessions.SESSION_SECONDS
        run_in_thread(served.sessions.drop_idle())
        assert set(served.states) == {"open"}
    run_in_thread(served.sessions.drop_idle())
    assert set(served.states) == {"open"}, "a page whose connection ended may come back"
    served.now *= 2
    run_in_thread(served.sessions.drop_idle())
    assert not served.states
    assert not served.queue.pending_event_ids_session


def test_results_have_one_reader() -> None:
    served = Served()
    served.enter("s")
    with served.sessions.claim_results("s") as first, served.sessions.claim_results("s") as second:
        assert (first, second) == (True, False)
    with served.sessions.claim_results("s") as again:
        assert again


def build_blocks() -> gr.Blocks:
    with gr.Blocks() as blocks:
        gr.Textbox()
    blocks.queue()
    gr.routes.App.create_app(blocks)
    return blocks


def test_gradio_has_the_parts_that_are_reached_into() -> None:
    blocks = build_in_thread(build_blocks)
    assert hasattr(blocks._queue, "clean_events")
    assert blocks._queue.pending_event_ids_session == {}
    assert len(blocks._queue.pending_messages_per_session) == 0
    assert blocks.state_holder.session_data == {}
    assert blocks.state_holder.time_last_used == {}
    assert hasattr(blocks._queue, "ANALYTICS_MAX_EVENTS")
