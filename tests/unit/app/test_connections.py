"""Connections that send nothing, or their headers a byte at a time, are closed; slow answers and bodies are not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from reid.app.connections import HEADER_BYTES, BoundedConnection

SHORT = 0.3  # seconds


class Quick(BoundedConnection):
    header_seconds = SHORT
    max_connections = 3


async def slow_page(scope: Any, receive: Any, send: Any) -> None:
    """Answer after all of the body and a wait that is longer than headers may take."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    await asyncio.sleep(2 * SHORT)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(protocol: type[asyncio.Protocol]) -> Iterator[int]:
    config = uvicorn.Config(
        slow_page, http=protocol, ws="none", lifespan="off", log_level="critical", timeout_keep_alive=1,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def port() -> Iterator[int]:
    with serving(Quick) as number:
        yield number


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def read_to_end(connection: socket.socket) -> bytes:
    """All that arrives until the server closes the connection; a TimeoutError if it never does."""
    received = b""
    try:
        while part := connection.recv(2**16):
            received += part
    except ConnectionResetError:
        pass
    return received


def is_closed_while_sending(connection: socket.socket, line: bytes) -> bool:
    """Send a byte at a time; say whether the server closed the connection before the end."""
    connection.settimeout(0.02)
    for number in range(len(line)):
        try:
            connection.send(line[number : number + 1])
            if connection.recv(1) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


def test_a_connection_that_sends_nothing_is_closed(port: int) -> None:
    with connect(port) as connection:
        assert read_to_end(connection) == b""


def test_headers_that_stop_or_arrive_byte_by_byte_are_not_waited_for(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(REQUEST)
        assert read_to_end(connection) == b""
    with connect(port) as connection:
        assert is_closed_while_sending(connection, REQUEST + b"X: " + b"a" * 2000)


def test_a_slow_body_and_a_slow_answer_are_waited_for(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(REQUEST + b"Content-Length: 40\r\n\r\n")
        assert not is_closed_while_sending(connection, b"b" * 40)  # takes longer than headers may
        connection.settimeout(20)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")


def test_the_headers_of_a_second_request_have_a_time_of_their_own(port: int) -> None:
    with connect(port) as connection:
        for _ in range(2):
            connection.sendall(REQUEST + b"\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        assert is_closed_while_sending(connection, REQUEST + b"X: " + b"a" * 2000)
    with connect(port) as connection:  # the beginning of the second arrives with the first
        connection.sendall(REQUEST + b"\r\n" + REQUEST)
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")
    with connect(port) as connection:  # nothing follows
        connection.sendall(REQUEST + b"\r\n")
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")


def test_endless_headers_are_refused(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(REQUEST + b"X: " + b"a" * (2 * HEADER_BYTES))
        assert read_to_end(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")


def test_connections_are_counted() -> None:
    class Patient(Quick):
        header_seconds = 60.0

    with serving(Patient) as port:
        held = [connect(port) for _ in range(Quick.max_connections)]
        held[0].sendall(REQUEST + b"\r\n")
        assert held[0].recv(2**16).startswith(b"HTTP/1.1 200")  # so all of them have been accepted
        with connect(port) as late:
            assert read_to_end(late) == b""
        held.pop().close()
        for connection in held:
            connection.close()


def test_the_first_protocol_would_wait() -> None:
    """The wrong variant: what uvicorn does by itself is what the tests above refuse."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    with serving(H11Protocol) as port, connect(port) as connection:
        assert not is_closed_while_sending(connection, REQUEST + b"X: aaaaaaaaaaaaaaaaaaaaaaaa")
