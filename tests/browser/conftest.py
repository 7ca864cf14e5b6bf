"""The application in a process of its own over a tiny street, and a headless Chromium that visits it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from helpers.person_crops import people
from helpers.tiny_page import page_arguments
from helpers.visiting import FLAGS, Demo, chromium, wait_until_idle
from reid.retrieval.gallery import Gallery

ROOT = Path(__file__).parents[2]
START_SECONDS = 180  # until the page can be visited; about 10 on an idle machine
PAGE_MILLISECONDS = 20_000  # until the page has changed


@pytest.fixture(scope="session")
def demo(
    tiny_street: Path, camera_weights: Path, plain_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demo]:
    """Run the application on two networks over the tiny street."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = page_arguments(tiny_street, camera_weights, plain_weights, folder / "galleries")
    with _running(arguments, tiny_street, folder) as running:
        yield running


@pytest.fixture
def people_demo(tmp_path: Path) -> Iterator[Demo]:
    """Run the application on a gallery of drawn embeddings, without a network, queries and images."""
    Gallery.build(people()).save(tmp_path / "people")
    with _running(["--gallery", str(tmp_path / "people")], tmp_path / "people", tmp_path) as running:
        yield running


@contextmanager
def _running(arguments: list[str], data: Path, folder: Path) -> Iterator[Demo]:
    """Run the application on a free port; it must end cleanly when it is interrupted."""
    temporary, errors = folder / "tmp", folder / "stderr"
    temporary.mkdir()
    command = [sys.executable, str(ROOT / "demo" / "app.py"), "--port", "0", *arguments]
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "GRADIO_ALLOWED_PATHS": "/"}
    with errors.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment, cwd=folder
        )
    try:
        yield Demo(process, _address(process, errors), data, temporary, errors)
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, errors.read_text()
    assert rest == "", "the address is printed once"
    assert not list(temporary.glob("reid-demo-*")), "uploads are gone when the program has ended"
    assert "Traceback" not in errors.read_text()
    assert "fault in the page" not in errors.read_text()


def _address(process: subprocess.Popen[str], errors: Path) -> str:
    """Return the address that the application prints as soon as its page can be visited."""
    lines: Queue[str] = Queue()
    stream = process.stdout
    assert stream is not None
    threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=START_SECONDS)
    except Empty:
        pytest.fail(
            f"the application did not start within {START_SECONDS} s: {errors.read_text()[-2000:]}", pytrace=False
        )
    assert line.startswith("serving on http://127.0.0.1:"), errors.read_text()[-2000:]
    return line.removeprefix("serving on ").strip()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start one Chromium with a profile of its own."""
    program = chromium()
    expect.set_options(timeout=PAGE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, demo: Demo) -> Iterator[Page]:
    """Open the page on the tiny street."""
    with _visiting(browser, demo) as page:
        yield page


@pytest.fixture
def people_page(browser: Browser, people_demo: Demo) -> Iterator[Page]:
    """Open the page on the gallery of drawn embeddings."""
    with _visiting(browser, people_demo) as page:
        yield page


@contextmanager
def _visiting(browser: Browser, demo: Demo) -> Iterator[Page]:
    """Open the page. At the end, it must have sent no request to another host and reported no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PAGE_MILLISECONDS)
    other_hosts: list[str] = []
    page_errors: list[str] = []
    own = (demo.address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else other_hosts.append(request.url))
    page.on("pageerror", lambda error: page_errors.append(str(error)))
    page.on("console", lambda line: page_errors.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(demo.address)
    expect(page.locator(".reid-answer").first).to_be_visible()
    wait_until_idle(page)
    yield page
    context.close()
    assert other_hosts == []
    assert page_errors == []
