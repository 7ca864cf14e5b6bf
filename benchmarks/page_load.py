"""Many users of a running application at the same time: how long answers take, errors, memory (``page.py``)."""

from __future__ import annotations

import http.cookiejar
import json
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 2.0
JOB_SECONDS = 15.0  # between two jobs
WARM_UP = 0.25  # of the whole time


class Load:
    """What all users count together.

    Args:
        address: The address of the application.
        image: The content of an image file.
        crops: Ids of crops of the gallery.
        end: When the users stop, by ``time.monotonic``.
    """

    def __init__(self, address: str, image: bytes, crops: Sequence[int], end: float) -> None:
        self.address, self.image, self.crops, self.end = address, image, crops, end
        self.seconds: dict[str, list[float]] = {"image": [], "crop": [], "page": []}
        self.refused = 0  # answers with 429: too many at once
        self.errors: list[str] = []

    def count(self, kind: str, ask: Callable[[], None]) -> None:
        """Ask once, and count how long it took or what was wrong."""
        begun = time.monotonic()
        try:
            ask()
            self.seconds[kind].append(time.monotonic() - begun)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 429:
                    self.refused += 1
                else:
                    self.errors.append(f"{kind}: {error.code}")
        except (OSError, ValueError) as error:
            self.errors.append(f"{kind}: {error}")

    def post(self, path: str, content: bytes) -> None:
        with urllib.request.urlopen(self.address + path, content, timeout=60) as answer:
            answer.read()

    def use_api(self, number: int, pause: float) -> None:
        """Search by image and by crop until the end, with pauses."""
        turn = number
        while time.monotonic() < self.end:
            turn += 1
            if turn % 2:
                self.count("image", lambda: self.post("/api/search?k=10", self.image))
            else:
                crop = self.crops[turn % len(self.crops)]
                self.count("crop", lambda crop=crop: self.post(f"/api/search?crop={crop}&k=10", b""))  # type: ignore[misc]
            time.sleep(pause)

    def use_page(self, number: int, pause: float) -> None:
        """Click on crops as a browser does, until the end, with pauses."""
        visitor = PageVisitor(self.address, f"load{number}")
        turn = number
        while time.monotonic() < self.end:
            turn += 1
            crop = self.crops[turn % len(self.crops)]
            self.count("page", lambda crop=crop: visitor.click(crop))  # type: ignore[misc]
            time.sleep(pause)


class PageVisitor:
    """Asks the page as its script does.

    Args:
        address: The address of the application.
        session: The name of the session.
    """

    def __init__(self, address: str, session: str) -> None:
        self._address, self._session, self._turn = address, session, 0
        jar = http.cookiejar.CookieJar()
        self._open = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar)).open
        with self._open(address, timeout=60) as answer:
            answer.read()

    def click(self, crop: int) -> None:
        """Search for a crop of the gallery; ValueError where the page does not answer with answers."""
        self._turn += 1
        question = {"page": "search", "action": "search", "query": f"r{crop}", "count": "10", "seq": self._turn}
        message = {"data": [None], "event_data": question, "fn_index": 0, "session_hash": self._session}
        request = urllib.request.Request(
            f"{self._address}/gradio_api/queue/join", json.dumps(message).encode(), {"content-type": "application/json"}
        )
        with self._open(request, timeout=60) as answer:
            answer.read()
        with self._open(f"{self._address}/gradio_api/queue/data?session_hash={self._session}", timeout=60) as answer:
            text = answer.read().decode()
        if "reid-answer" not in text:
            raise ValueError(f"the page shows no answers: {text[-300:]}")


def memory_of(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def times_of(values: Sequence[float]) -> dict[str, float]:
    """Return the number of some times, their median and the time that 95 % of them do not exceed."""
    ordered = sorted(values)
    if not ordered:
        return {"answers": 0}
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"answers": len(ordered), "median": round(statistics.median(ordered), 3), "p95": round(p95, 3)}


def run_load(
    address: str, process: int, image: bytes, crops: Sequence[int], *, source: Path, users: int, seconds: float,
    pause: float,
) -> dict[str, Any]:  # fmt: skip
    """Let users search while jobs add crops and group them, and return the figures.

    Args:
        address: The address of the application.
        process: Its process, whose memory is looked at.
        image: The content of an image file.
        crops: Ids of crops to search for.
        source: A manifest of crops that the first job adds.
        users: How many users; a quarter of them uses the page, the others the REST interface.
        seconds: How long.
        pause: Seconds between two searches of a user.
    """
    begun = time.monotonic()
    load = Load(address, image, crops, begun + seconds)
    ways = [load.use_page if number % 4 == 0 else load.use_api for number in range(users)]
    threads = [threading.Thread(target=way, args=(number, pause)) for number, way in enumerate(ways)]
    for thread in threads:
        thread.start()
    memory: list[float] = []
    jobs, next_job = 0, begun
    while time.monotonic() < load.end:
        if time.monotonic() >= next_job:
            next_job += JOB_SECONDS
            wish: dict[str, Any] = {"kind": "identify", "parameters": {"again": True}}
            if not jobs:
                wish = {"kind": "add", "parameters": {"source": str(source)}}
            jobs += _submit(address, wish, load.errors)
        memory.append(memory_of(process))
        time.sleep(SAMPLE_SECONDS)
    for thread in threads:
        thread.join()
    ended = _ended_jobs(address)
    warm, late = memory[int(WARM_UP * len(memory)) :][: len(memory) // 4], memory[-len(memory) // 4 :]
    every = [one for values in load.seconds.values() for one in values]
    return {
        "users": users, "seconds": seconds, "pause": pause, "all": times_of(every),
        **{kind: times_of(values) for kind, values in load.seconds.items()},
        "refused": load.refused, "errors": load.errors[:5], "number_of_errors": len(load.errors),
        "jobs": jobs, "jobs_done": ended,
        "memory": {
            "after_warm_up": round(statistics.median(warm)), "at_the_end": round(statistics.median(late)),
            "change_percent": round(100 * (statistics.median(late) / statistics.median(warm) - 1), 1),
            "most": round(max(memory)),
        },
    }  # fmt: skip


def _submit(address: str, wish: dict[str, Any], errors: list[str]) -> int:
    content = json.dumps(wish).encode()
    request = urllib.request.Request(f"{address}/api/jobs", content, {"content-type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=60).close()
        return 1
    except OSError as error:
        errors.append(f"job: {error}")
        return 0


def _ended_jobs(address: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{address}/api/jobs", timeout=60) as answer:
        found = json.loads(answer.read())
    jobs = found["jobs"] if isinstance(found, dict) else found
    states = [one["status"] for one in jobs]
    return {state: states.count(state) for state in dict.fromkeys(states)}
