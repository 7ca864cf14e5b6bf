"""The HTTP protocol of the server, with a bound on the time of a request's headers and on the number of connections.

uvicorn closes a connection that waits between two requests, but not one that is opened and sends nothing, nor one whose
headers arrive a byte at a time: each holds a file descriptor for as long as its sender likes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # from the start of a connection, or the first byte of a later request, to the end of the headers
KEEP_ALIVE_SECONDS = 5  # between two requests of a connection
HEADER_BYTES = 2**16  # of a request's line and headers together
MAX_CONNECTIONS = 512  # a process may have 1024 files open


class BoundedConnection(H11Protocol):
    """A connection that is closed when the headers of a request take too long, or when there are too many connections.

    The time of a body is bounded in :mod:`reid.app.guard`, and that of an answer is not: searches may take long.
    """

    header_seconds = HEADER_SECONDS
    max_connections = MAX_CONNECTIONS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the headers of the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.close()
        else:
            self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Pass on what arrived; what is left of a request's headers must arrive before the deadline."""
        super().data_received(data)
        self._await_headers()

    def on_response_complete(self) -> None:
        """Let uvicorn wait for the next request, and wait for the rest of its headers if they have begun."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._forget_deadline()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        cycle: Any = self.cycle
        if self.transport.is_closing() or not (cycle is None or cycle.response_complete):
            self._forget_deadline()  # the headers are complete
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
