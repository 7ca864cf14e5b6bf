"""The sessions of the page: whose they are, how many there may be, and when gradio forgets them.

A page that is open holds a connection. What a page without a connection has not read is dropped after a while, and so
is all that gradio keeps for it. This is the only module that reaches into the queue and the state of gradio.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from reid.app.asgi import Scope
from reid.app.refusals import Refused

SESSIONS = 64
SESSIONS_OF_A_VISITOR = 16
UNREAD = 24  # results that wait to be read or computed, in all sessions; below the size of gradio's queue
UNREAD_OF_A_SESSION = 8
UNREAD_SECONDS = 30  # after which the results of a session without a connection are dropped
READER_SECONDS = 2  # in which an earlier reader of the same session may end
SESSION_SECONDS = 300  # after which a session without a connection is dropped
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass
class _Session:
    visitor: str
    last_used: float
    connections: int = 0
    has_reader: bool = False


class Sessions:
    """The sessions of all visitors.

    Args:
        blocks: The page.
        clock: Returns the time in seconds.
    """

    def __init__(self, blocks: Any, clock: Callable[[], float] = time.monotonic):
        self._blocks = blocks
        self._clock = clock
        self._sessions: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def unread(self) -> int:
        """How many results wait to be read or computed, in all sessions."""
        return sum(len(events) for events in self._blocks._queue.pending_event_ids_session.values())

    async def enter(self, name: str, visitor: str) -> None:
        """Use a session, a new one or one of the same visitor.

        Raises:
            Refused: The session is another visitor's (404), or too many pages are open (429).
        """
        session = self._sessions.get(name)
        if session is None:
            await self._make_room(visitor)
            session = self._sessions[name] = _Session(visitor, self._clock())
        if session.visitor != visitor:
            raise Refused(404)
        session.last_used = self._clock()

    async def make_room_for_result(self, name: str) -> None:
        """Make sure that one more result may wait in a session that was entered.

        Raises:
            Refused: Too many results wait already (429).
        """
        if self._unread_of(name) >= UNREAD_OF_A_SESSION:
            raise Refused(429)
        while self.unread >= UNREAD:
            idle = [other for other in self._idle(UNREAD_SECONDS / 10) if self._unread_of(other)]
            if not idle:
                raise Refused(429)
            await self._drop_results(idle[0])

    def has_results(self, name: str, visitor: str) -> bool:
        """Whether a session is the visitor's and may be read."""
        session = self._sessions.get(name)
        is_own = session is not None and session.visitor == visitor
        return is_own and name in self._blocks._queue.pending_messages_per_session

    async def read_results(self, name: str, visitor: str, send: Callable[[], Awaitable[None]]) -> None:
        """Send the results of a session, by one reader at a time.

        Args:
            name: The session.
            visitor: Who reads.
            send: Sends what waits, and what is computed while it sends.

        Raises:
            Refused: The session is another visitor's or has nothing to read (404), or somebody else reads it (429).
        """
        if not self.has_results(name, visitor):
            raise Refused(404)
        for _ in range(READER_SECONDS * 10):
            with self.claim_results(name) as is_free:
                if is_free:
                    await send()
                    return
            await asyncio.sleep(0.1)
        raise Refused(429)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep a session that was entered, as long as the ``with`` block runs."""
        session = self._sessions[name]
        session.connections += 1
        try:
            yield
        finally:
            session.connections -= 1
            session.last_used = self._clock()

    @contextmanager
    def claim_results(self, name: str) -> Iterator[bool]:
        """Keep a session, and yield whether nobody else reads its results."""
        session = self._sessions[name]
        if session.has_reader:
            yield False
            return
        session.has_reader = True
        try:
            with self.hold(name):
                yield True
        finally:
            session.has_reader = False

    async def drop_idle(self) -> None:
        """Drop what pages without a connection left behind."""
        for name in self._idle(UNREAD_SECONDS):
            await self._drop_results(name)
        for name in self._idle(SESSION_SECONDS):
            await self._drop(name)
        # gradio makes the state of a dropped session again when one of its events ends after that.
        for name in set(self._blocks.state_holder.session_data) - set(self._sessions):
            self._forget_state(name)

    def _idle(self, seconds: float) -> list[str]:
        """Return the sessions that nobody has used for some seconds, the longest first."""
        now = self._clock()
        idle = [
            name
            for name, session in self._sessions.items()
            if session.connections == 0 and now - session.last_used >= seconds
        ]
        return sorted(idle, key=lambda name: self._sessions[name].last_used)

    def _unread_of(self, name: str) -> int:
        return len(self._blocks._queue.pending_event_ids_session.get(name, ()))

    async def _make_room(self, visitor: str) -> None:
        idle = self._idle(0)
        own = [name for name, session in self._sessions.items() if session.visitor == visitor]
        if len(own) >= SESSIONS_OF_A_VISITOR:
            idle = [name for name in idle if name in own]
        elif len(self._sessions) < SESSIONS:
            return
        if not idle:
            raise Refused(429)
        await self._drop(idle[0])

    async def _drop(self, name: str) -> None:
        self._sessions.pop(name, None)
        await self._drop_results(name)
        self._forget_state(name)

    async def _drop_results(self, name: str) -> None:
        queue = self._blocks._queue
        await queue.clean_events(session_hash=name)
        queue.pending_event_ids_session.pop(name, None)
        if name in queue.pending_messages_per_session:
            del queue.pending_messages_per_session[name]

    def _forget_state(self, name: str) -> None:
        holder = self._blocks.state_holder
        holder.session_data.pop(name, None)
        holder.time_last_used.pop(name, None)


def read_session(scope: Scope) -> str:
    """Return the session that the query of an address names; Refused (404) without one."""
    try:
        values = parse_qs(scope.get("query_string", b"").decode("ascii"), max_num_fields=8).get("session_hash", [])
    except ValueError:
        raise Refused(404) from None
    if len(values) != 1 or not _NAME.fullmatch(values[0]):
        raise Refused(404)
    return str(values[0])
