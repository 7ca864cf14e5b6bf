"""Start commands as several processes that work together, as torchrun does, and wait for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(
    words: Sequence[object], count: int, cwd: Path, program: Sequence[object] = ("-m", "reid.cli")
) -> list[subprocess.Popen[str]]:
    """Start ``python -m reid.cli``, or another program, with these words in ``count`` processes of one group."""
    port = free_port()
    running = []
    for rank in range(count):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
        environment = {
            **os.environ,
            **{name: str(value) for name, value in variables.items()},
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        running.append(
            subprocess.Popen(
                [sys.executable, *map(str, (*program, *words))],
                cwd=cwd,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def finish(running: Sequence[subprocess.Popen[str]], timeout: float = 240) -> list[tuple[int, str, list[str]]]:
    """Wait for the processes; return exit code, stdout and the lines of stderr of each, without progress bars."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        (process.returncode, out, [line for line in err.splitlines() if "it/s" not in line and "img/s" not in line])
        for process, (out, err) in zip(running, outputs, strict=True)
    ]
