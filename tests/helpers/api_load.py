"""Many users of the REST interface at the same time, while a job runs: times of answers, errors, and memory.

``PYTHONPATH=tests python -m helpers.api_load GALLERY IMAGE --users 20 --seconds 300`` starts the application with a
gallery and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any


class Load:
    """What all users count together."""

    def __init__(self, address: str, image: bytes, end: float) -> None:
        self.address, self.image, self.end = address, image, end
        self.seconds: list[float] = []
        self.busy = 0  # answers with 429: too many at once
        self.errors: list[str] = []

    def ask(self, path: str, content: bytes | None = None) -> None:
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(self.address + path, content, timeout=60) as answer:
                answer.read()
            self.seconds.append(time.monotonic() - begun)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 429:
                    self.busy += 1
                else:
                    self.errors.append(f"{path}: {error.code}")
        except OSError as error:
            self.errors.append(f"{path}: {error}")

    def use(self, number: int, pause: float) -> None:
        """Search by image and by crop until the end, with pauses."""
        turn = number
        while time.monotonic() < self.end:
            turn += 1
            if turn % 2:
                self.ask("/api/search?k=10", self.image)
            else:
                self.ask(f"/api/search?crop={turn % 20}&k=10", b"")
            time.sleep(pause)


def memory_of(process: int) -> int:
    """Return the resident memory of a process in MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) // 1024


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def run(gallery: Path, image: Path, users: int, seconds: float, pause: float) -> dict[str, Any]:
    """Start the application, let the users search, and return the figures."""
    words = [sys.executable, "-m", "reid.cli", "serve", "--gallery", str(gallery), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().removeprefix("serving on ").strip()
            load = Load(address, image.read_bytes(), time.monotonic() + seconds)
            threads = [threading.Thread(target=load.use, args=(number, pause)) for number in range(users)]
            for thread in threads:
                thread.start()
            time.sleep(seconds / 5)
            after_warm_up = memory_of(server.pid)
            while time.monotonic() < load.end:
                load.ask("/api/jobs", None)
                body = json.dumps({"kind": "identify", "parameters": {"again": True}}).encode()
                request = urllib.request.Request(f"{address}/api/jobs", body, {"content-type": "application/json"})
                urllib.request.urlopen(request, timeout=60).close()
                time.sleep(20)
            for thread in threads:
                thread.join()
            return {
                "users": users,
                "seconds": seconds,
                "answers": len(load.seconds),
                "median": round(median(load.seconds), 3),
                "p95": round(percentile(load.seconds, 0.95), 3),
                "busy": load.busy,
                "errors": load.errors[:5],
                "memory_after_warm_up": after_warm_up,
                "memory_at_the_end": memory_of(server.pid),
            }
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two searches of a user")
    options = parser.parse_args()
    print(json.dumps(run(options.gallery, options.image, options.users, options.seconds, options.pause)))


if __name__ == "__main__":
    main()
