"""A real standalone Milvus server, from the package milvus 2.3.5 in an environment of its own.

Set REID_MILVUS_PYTHON to the Python of that environment ("make milvus-test" makes one). The server keeps its data in a
folder of the test and is killed at its end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PYTHON = os.environ.get("REID_MILVUS_PYTHON", "")
START = """
import socket
import sys
from milvus import MilvusServer, MilvusServerConfig

def bind(self, port):
    trial = socket.socket()
    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose server was just killed is free
    try:
        trial.bind(("127.0.0.1", port))
    except OSError:
        trial.close()
        return None
    return trial

MilvusServerConfig.try_bind_port = bind
server = MilvusServer(wait_for_started=False)
server.set_base_dir(sys.argv[1])
server.listen_port = int(sys.argv[2])
while True:  # a server that starts before the session of a killed one is over ends, and service managers start it again
    server.start()
    server.server_proc.wait()
"""


def free_port() -> int:
    """Return a free port below those that the system gives to clients.

    A client that tries again and again to reach such a port of its own machine may get it itself, and then the server
    cannot have it.
    """
    for port in range(24_000 + os.getpid() % 1000, 32_000):
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


class MilvusServer:
    """A server with its data in ``folder``; :meth:`kill` ends it as a power failure would, :meth:`start` goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._parent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._parent = subprocess.Popen(
            [PYTHON, "-c", START, str(self.folder), str(self.port)], start_new_session=True, stdout=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Wait until the server answers."""
        from pymilvus import MilvusClient, MilvusException

        for _ in range(60):
            try:
                client = MilvusClient(f"http://127.0.0.1:{self.port}", timeout=10)
                client.list_collections()
                client.close()
                return
            except MilvusException:
                time.sleep(2)
        raise TimeoutError("the server does not answer")

    def kill(self) -> None:
        if self._parent is not None:
            os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent.wait()
            self._parent = None

    def uri(self, collection: str) -> str:
        return f"milvus://127.0.0.1:{self.port}/{collection}"
