"""The real application answers requests that no page sends: with refusals, in little memory, leaving no file."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.page_fuzz import JOIN, UPLOAD, Case, ask, cut_connections, fuzz, memory_of, running_page
from helpers.tiny_page import page_arguments
from reid.retrieval.erasure import erase_identity
from reid.retrieval.gallery import Gallery
from reid.retrieval.tombstones import TOMBSTONES_FILE

GROWTH = 150  # MiB that 500 requests may leave behind; 10,000 left 15
UPLOAD_GROWTH = 450  # MiB for six of the largest images at the same time; they took 243


@pytest.fixture(scope="module")
def arguments(
    tiny_street: Path, camera_weights: Path, plain_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    return page_arguments(tiny_street, camera_weights, plain_weights, tmp_path_factory.mktemp("galleries"))


def test_no_request_is_a_fault(arguments: list[str], tmp_path: Path) -> None:
    outcome = fuzz(arguments, tmp_path, cases=500, seed=1)
    assert outcome.faults == []
    assert outcome.left == []
    assert outcome.statuses[200] > 10, "right messages are among them"
    assert sum(outcome.statuses.values()) == 500
    assert outcome.after - outcome.before < GROWTH
    (line,) = outcome.log.splitlines()
    assert line.startswith("stopped; refused requests: ")


def form(content: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n"


def upload_and_ask(port: int, content: bytes, session: str) -> tuple[int, str]:
    """Upload an image as the page does, and return the status of the last answer and the line or image shown."""
    config: dict[str, Any] = json.loads(ask(port, Case("GET", "/config", b"", {}))[1])
    step = next(step for step in config["dependencies"] if any(name == "select" for _, name in step["targets"]))
    cookie = {"Cookie": f"reid-visitor={session * 32}"}
    headers = {"Content-Type": "multipart/form-data; boundary=x"} | cookie
    status, answer = ask(port, Case("POST", UPLOAD, form(content), headers))
    if status != 200:
        return status, ""
    name = json.loads(answer)[0]
    question = {"page": "search", "action": "search", "seq": 1, "query": "upload", "images": [name], "uploads": [name]}
    message = {"data": [None], "event_data": question, "fn_index": step["id"], "session_hash": f"session{session}"}
    headers = {"Content-Type": "application/json"} | cookie
    status, _ = ask(port, Case("POST", JOIN, json.dumps(message).encode(), headers))
    results = Case("GET", f"/gradio_api/queue/data?session_hash=session{session}", b"", cookie)
    return status, ask(port, results, whole_stream=True)[1].decode()


def image_of(mode: str, size: tuple[int, int]) -> bytes:
    """Return a PNG of one colour, which is small on the way and large in memory."""
    stream = BytesIO()
    pixels = np.full(size[::-1], 1000, np.uint16)
    (Image.fromarray(pixels) if mode == "I;16" else Image.new(mode, size)).save(stream, "PNG")
    return stream.getvalue()


def test_large_images_at_once_take_little_memory_and_no_file(arguments: list[str], tmp_path: Path) -> None:
    images = [image_of(*drawn) for drawn in (("RGB", (5000, 5000)), ("I;16", (5000, 5000)), ("I;16", (2500, 2000)))]
    crop = image_of("RGB", (64, 128))
    with running_page(arguments, tmp_path) as (process, port, _):
        assert '"success":true' in upload_and_ask(port, crop, "f")[1]
        before = memory_of(process.pid)
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda i: upload_and_ask(port, images[i % 3], "abcdef"[i]), range(6)))
        assert [status for status, _ in answers] == [200] * 6
        assert all('"success":true' in text for _, text in answers)
        assert peak_of(process.pid) - before < UPLOAD_GROWTH
        same = [upload_and_ask(port, crop, visitor)[1] for visitor in "ab"]
        assert all('"success":true' in text and "damaged" not in text for text in same)
        cut_connections(port, 5)
        (folder,) = (tmp_path / "tmp").glob("reid-demo-*")
        assert [path.name for path in folder.rglob("*") if path.is_file()] == [".reid-demo-owner"]
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [".reid-demo-owner"], (
        "a kill leaves no upload behind"
    )


def peak_of(process: int) -> int:
    """Return the largest resident memory that a process has had, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def test_a_page_that_is_opened_later_shows_nobody_who_was_erased(arguments: list[str], tmp_path: Path) -> None:
    """The last test here, because it changes the galleries."""
    street = Path(arguments[arguments.index("--galleries") + 1]) / "street"
    with running_page(arguments, tmp_path) as (_, port, _):
        shown = [ask(port, Case("GET", path, b"", {}))[1].decode() for path in ("/", "/config")]
        names = {sample.identity for sample in Gallery.open(street).samples}
        seen = {name for name in names if f"{name} " in shown[1]}
        erased = max(seen, key=shown[1].count)
        erase_identity(street, erased)
        for path, before in zip(("/", "/config"), shown, strict=True):
            assert erased in before
            status, later = ask(port, Case("GET", path, b"", {}))
            assert (status, later.decode().count(erased)) == (200, 0)
            assert later.count(b"data:image") > before.count("data:image") / 2
        for gallery in street.parent.iterdir():
            (gallery / TOMBSTONES_FILE).write_text("{}")  # damaged: nobody knows who was erased
        status, later = ask(port, Case("GET", "/config", b"", {}))
        assert (status, later.count(b"data:image")) == (200, 0)
