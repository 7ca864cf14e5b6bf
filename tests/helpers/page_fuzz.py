"""Send requests that no page sends to the application: ``PYTHONPATH=tests python -m helpers.page_fuzz --cases 10000``.

The requests know the page's addresses and the form of its messages, and spoil one or more parts of them. They are drawn
from a seed. The real application answers them in a process of its own, over loopback.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.tiny_page import make_tiny_page

ROOT = Path(__file__).parents[2]
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
WRONG_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 7.5, 1e308, 2**70, "", "x", "\0", "\ud800", "../../etc/passwd", "/etc/passwd", [], [[]], {},
    {"path": "/etc/passwd"}, {"path": "/etc/passwd\0"}, {"path": "\udfff"}, {"path": None}, {"path": "."},
    {"path": "upload-" + "0" * 32, "meta": {"_type": "gradio.FileData"}}, {"path": "http://192.0.2.1/x.png"},
    {"__type__": "update", "value": 1}, "y" * 5000, "visible", "both", "street-a", "person",
)  # fmt: skip
QUESTIONS = (
    ("search", "search"), ("search", "search"), ("search", "pick"), ("search", "others"), ("search", "random"),
    ("search", "enlarge"), ("people", "show"), ("people", "timeline"), ("people", "name"), ("cameras", "show"),
    ("cameras", "waiting"), ("cameras", "add"), ("cameras", "discard"), ("cameras", "neighbours"), ("cameras", "undo"),
    ("cameras", "switch"),
    ("gallery", "show"), ("gallery", "preview"), ("gallery", "cancel"), ("evaluation", "show"), ("map", "show"),
    ("map", "choose"), ("map", "group"), ("gallery", "erase"), ("map", "none"), ("none", "show"), ("", "follow"),
)  # fmt: skip
RIGHT_VALUES: dict[str, tuple[Any, ...]] = {
    "query": ("q0", "q7", "r0", "r5", "r99999999", "upload", "", "x1", "q" + "9" * 30),
    "images": ([], ["upload-" + "0" * 32]), "cross": (True, False), "modality": ("both", "visible", "infrared"),
    "count": ("5", "50", "0", "51"), "ranking": ("plain", "normalized", "reranked", "other"), "compare": (True, False),
    "one_per": ("", "identity", "person", "track", "path"), "cameras": ([], ["a1"], ["x"]), "without": ([], ["a1"]),
    "after": ("", "2026-03-02T10:00", "never"), "before": ("", "2026-03-02T10:00"), "scope": ("own", "all"),
    "site": ("street-a", "street-b", "none"), "category": ("person", "vehicle", "none"), "camera": ("*", "a1", "?"),
    "row": ("0", "5", "-1", "x"), "persons": ("person-1", "person-1,person-2", "x"), "start": ("0", "9999"),
    "colour": ("camera", "identity", "person", "none"), "protocol": ("", "queries", "every crop"), "job": ("1", "x"),
    "new_camera": ("dock", "", "a1"), "new_light": ("", "infrared", "none"), "new_source": ("", "dock", "../.."),
    "rows": ([], ["r0", "r5"], ["r" + "9" * 30, "x"]), "gallery_state": ("", "x-1"), "change": ("1", "x"),
    "projection": ("pca", "umap", "none"),
    "erase_where": ("camera = 'a1'", "1 +", "x" * 900, "camera = 'none'"), "erase_camera": ("a1", "'", "", "a9"),
    "erase_before": ("2026-03-02", "never"), "name": ("anna", "person-1"),
}  # fmt: skip
FIELDS = (*RIGHT_VALUES, "page", "action", "seq", "uploads", "other")
WRONG_NUMBERS: tuple[Any, ...] = (-1, 999, 2**40, None, "0", True, 1.5, [], {})
PATHS = (
    "/", "/config", "/theme.css", "/assets/", "/assets/x.js", "/assets/%00", "/assets/%ed%a0%80", "/static/..%2f..",
    "/static/img/logo.svg", "/static/img", "/svelte/" + "a" * 300, "/gradio_api/startup-events",
    "/gradio_api/heartbeat/%00", "/gradio_api/heartbeat/" + "s" * 90, "/gradio_api/queue/data",
    "/gradio_api/queue/data?session_hash=none", "/gradio_api/queue/data?session_hash=%00",
    "/gradio_api/queue/data?session_hash=a&session_hash=b", "/gradio_api/queue/data?session_hash=%ff%fe",
    "/gradio_api/upload_progress?upload_id=%00", "/gradio_api/file=/etc/passwd", "/gradio_api/file=%00", "/file=x",
    "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/run/predict",
    "/gradio_api/call/x", "/gradio_api/component_server", "/gradio_api/deep_link?session_hash=a", "/?deep_link=../x",
    "/gradio_api/vibe-edit", "/gradio_api/stream/x", "/login", "/monitoring", "/docs", "/%2e%2e/etc/passwd", "//x/y",
)  # fmt: skip
HEADERS: tuple[dict[str, str], ...] = (
    {}, {}, {}, {}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.example"},
    {"Host": "localhost:99999"}, {"Range": "bytes=9-1"},
    {"Host": "\xff"}, {"X-Forwarded-Host": "[evil"}, {"X-Forwarded-Proto": "\xff"},
    {"Cookie": "reid-visitor=" + "a" * 32}, {"Cookie": "reid-visitor=;;=\xff"}, {"Content-Type": "text/plain"},
    {"Content-Type": "multipart/form-data"}, {"Accept-Encoding": "br;q=x"}, {"X-Gradio-Server": "\xff"},
)  # fmt: skip


@dataclass
class Outcome:
    """What a run of the fuzz found.

    Args:
        statuses: How many answers had each status; 0 is a connection that ended without an answer.
        faults: One line for each answer that must not be, at most 20.
        before: The resident memory of the application before the cases, in MiB.
        after: The same after them.
        left: The files that the application left behind.
        log: What it wrote to stderr while it served.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    before: int = 0
    after: int = 0
    left: list[str] = field(default_factory=list)
    log: str = ""


@dataclass(frozen=True)
class Case:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


def draw_case(draw: random.Random, events: list[dict[str, Any]], number: int) -> Case:
    """Draw a request; ``events`` are the page's dependencies, as ``/config`` lists them."""
    kind = draw.choice(("join", "join", "join", "upload", "path", "body"))
    headers = dict(draw.choice(HEADERS))
    if kind == "join":
        body = spoil_message(draw, events, f"fuzz{number % 200}")
        return Case("POST", JOIN, body, {"Content-Type": "application/json"} | headers)
    if kind == "upload":
        body, content_type = spoil_upload(draw)
        return Case("POST", UPLOAD, body, {"Content-Type": content_type} | headers)
    if kind == "path":
        return Case(draw.choice(("GET", "GET", "HEAD", "POST", "PUT", "DELETE")), draw.choice(PATHS), b"", headers)
    path = draw.choice((JOIN, UPLOAD, "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/queue/join/"))
    body = draw.choice((b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 20_000, b"9" * 9000, b"NaN"))
    return Case("POST", path, body, {"Content-Type": "application/json"} | headers)


def draw_question(draw: random.Random) -> dict[str, Any]:
    """Return a question that the page asks, or nearly; none of them writes anything."""
    page, action = draw.choice(QUESTIONS)
    question: dict[str, Any] = {"page": page, "action": action, "seq": draw.randrange(1000)}
    for _ in range(draw.randrange(6)):
        name = draw.choice(tuple(RIGHT_VALUES))
        question[name] = draw.choice(RIGHT_VALUES[name])
    return question


def spoil_message(draw: random.Random, events: list[dict[str, Any]], session: str) -> bytes:
    """Return a message of the page with up to three wrong parts."""
    event = draw.choice(events)
    message: dict[str, Any] = {
        "data": [None] * event["states"],
        "event_data": draw_question(draw),
        "fn_index": event["id"],
        "trigger_id": None,
        "session_hash": session,
    }
    for _ in range(draw.randrange(4)):
        part = draw.choice(
            ("question", "question", "value", "data", "event_data", "fn_index", "trigger_id", "session_hash", "more")
        )
        if part == "value" and isinstance(message["data"], list) and message["data"]:
            message["data"][draw.randrange(len(message["data"]))] = draw.choice(WRONG_VALUES)
        elif part == "data":
            message["data"] = draw.choice((None, {}, [], ["x"] * 100, [None] * 9, "data"))
        elif part == "event_data":
            message["event_data"] = draw.choice((*WRONG_VALUES, {"page": None}, {"page": {}}, {"seq": 2**80}))
        elif part == "question" and isinstance(message["event_data"], dict):
            message["event_data"] = {**message["event_data"], draw.choice(FIELDS): draw.choice(WRONG_VALUES)}
        elif part in ("fn_index", "trigger_id"):
            message[part] = draw.choice(WRONG_NUMBERS)
        elif part == "session_hash":
            message[part] = draw.choice((None, "", "\0", "\ud800", "a" * 500, 7, [], "../x", session))
        else:
            message |= {"batched": True, "simple_format": True, "event_id": "x", "oauth_token": "x", "request": {}}
    return json.dumps(message).encode()


def spoil_upload(draw: random.Random) -> tuple[bytes, str]:
    """Return a form with an upload, mostly wrong, and its content type."""
    name = draw.choice(("files", "files", "file", "a", "files[]", ""))
    file = draw.choice(("a.png", "../../a.png", "", "\0.png", "x" * 3000, "a\r\nb: c", 'q".png'))
    content = draw.choice((b"", b"hello", draw.randbytes(2000), b"\r\n--x", b"\x89PNG\r\n\x1a\n" + draw.randbytes(100)))
    part = (
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode() + content + b"\r\n"
    )
    end = draw.choice((b"--x--\r\n", b"--x--", b"", b"--x"))
    kind = draw.choice(
        ("multipart/form-data; boundary=x",) * 4 + ("multipart/form-data", "multipart/form-data; boundary=")
    )
    return part * draw.choice((1, 1, 1, 0, 2, 3)) + end, kind


def events_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each event of the page with the number of its states."""
    return [{"id": step["id"], "states": len(step["inputs"])} for step in config["dependencies"]]


def ask(port: int, case: Case, seconds: float = 30, whole_stream: bool = False) -> tuple[int, bytes]:
    """Send a request; return the status and the answer, (0, b"") when the connection ends without one.

    A stream of events is read only if ``whole_stream`` asks for it, because some never end.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.putrequest(case.method, case.path, skip_host="Host" in case.headers)
        for name, value in (case.headers | {"Content-Length": str(len(case.body))}).items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(case.body)
        answer = connection.getresponse()
        is_stream = "event-stream" in answer.headers.get("Content-Type", "")
        return answer.status, b"" if is_stream and not whole_stream else answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def find_faults(case: Case, status: int, answer: bytes, secrets: tuple[str, ...]) -> list[str]:
    """Return a line for each thing that must not be in an answer."""
    faults = []
    if status >= 500:
        faults.append(f"status {status}")
    if status >= 400 and answer.count(b"\n") > 1:
        faults.append("more than one line")
    faults += [
        f"the answer names {secret}" for secret in (*secrets, "Traceback", 'File "') if secret.encode() in answer
    ]
    return [f"{case.method} {case.path[:80]} {case.headers} {case.body[:200]!r}: {fault}" for fault in faults]


def memory_of(process: int) -> int:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


@contextmanager
def running_page(arguments: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Run the application with its temporary files and its log in ``folder``; yields it, its port and the log."""
    temporary, log = folder / "tmp", folder / "log"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, str(ROOT / "demo" / "app.py"), "--port", "0", *arguments]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if "http" not in line:
            raise RuntimeError(f"the application did not start: {log.read_text()[-2000:]}")
        yield process, int(line.rsplit(":", 1)[1]), log
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def fuzz(arguments: list[str], folder: Path, cases: int, seed: int = 0) -> Outcome:
    """Send ``cases`` requests to the application, which is started with ``arguments``."""
    draw, outcome = random.Random(seed), Outcome()
    with running_page(arguments, folder) as (process, port, log):
        started = log.stat().st_size
        config = json.loads(ask(port, Case("GET", "/config", b"", {}))[1])
        secrets = (str(folder), str(ROOT), str(Path.home()) + "/", "site-packages")
        events = events_of(config)
        for number in range(min(cases, 100)):  # a program takes memory for its first answers that it keeps
            ask(port, draw_case(draw, events, number))
        outcome.before = memory_of(process.pid)
        for number in range(cases):
            case = draw_case(draw, events, number)
            status, answer = ask(port, case)
            outcome.statuses[status] += 1
            outcome.faults += find_faults(case, status, answer, secrets)[: 20 - len(outcome.faults)]
        outcome.after = memory_of(process.pid)
        hidden = [path for path in (folder / "tmp").rglob("*") if path.is_file() and path.stat().st_size]
        outcome.left = [str(path) for path in hidden]
    outcome.log = log.read_bytes()[started:].decode()
    outcome.left += [str(path) for path in (folder / "tmp").glob("reid-demo-*")]
    return outcome


def cut_connections(port: int, number: int) -> None:
    """Begin ``number`` uploads and end each connection in the middle."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(50_000)
    request = f"POST {UPLOAD} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    for _ in range(number):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(request.encode() + b"Content-Length: 900000\r\n\r\n" + head)


def main() -> int:
    """Fuzz the application over a tiny street; exit 1 when a fault was found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        outcome = fuzz(make_tiny_page(Path(name)), Path(name), options.cases, options.seed)
    print(f"answers by status: {dict(sorted(outcome.statuses.items()))}")
    print(f"memory: {outcome.before} MiB before, {outcome.after} MiB after")
    for line in (*outcome.faults, *(f"left behind: {path}" for path in outcome.left)):
        print(line)
    return 1 if outcome.faults or outcome.left or "Traceback" in outcome.log else 0


if __name__ == "__main__":
    sys.exit(main())
