"""How quickly the page and the REST interface answer, in a browser and under load; everything is printed as JSON.

    python benchmarks/page.py --gallery galleries/crops --image query.jpg --source more.csv [--json FILE]
    python benchmarks/page.py --part million --work FOLDER

The parts are: ``start`` (seconds until the page is served and loaded), ``click`` (30 clicks in headless Chromium, from
the click until the answers are drawn), ``answers`` (50 answers in each of three rankings), ``million`` (a gallery of
random rows that is made in ``--work`` where it is not there, with plain scores), and ``load`` (users who search for
minutes while jobs add crops and group them). Playwright and Chromium are needed for ``click``, ``answers`` and
``million``. ``load_average`` tells how busy the machine was: figures of a busy
machine say little about an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from page_load import memory_of, run_load, times_of

CLICKS, WARM_CLICKS = 30, 3
RANKINGS = ("plain", "normalized", "reranked")
CLICK = """async (number) => {
    const buttons = document.querySelectorAll('#reid-picker button'), answers = document.querySelector('#reid-answers');
    const section = document.querySelector('section[data-page="search"]');
    const begun = performance.now();
    await new Promise((done) => {
        const seen = new MutationObserver(() => { seen.disconnect(); requestAnimationFrame(() => setTimeout(done)); });
        seen.observe(answers, {childList: true});
        buttons[number % buttons.length].click();
    });
    return (performance.now() - begun) / 1000;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--gallery", type=Path)
    parser.add_argument("--image", type=Path, help="image that users of the REST interface search with")
    parser.add_argument("--source", type=Path, help="manifest of crops that are added meanwhile")
    parser.add_argument("--work", type=Path, default=Path("page-benchmark"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two searches of a user")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = [name for name in PARTS if options.part in (name, "all")]
    options.work.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in wanted:
        before = os.getloadavg()[0]
        facts[name] = PARTS[name](options)
        facts[name]["load_average"] = [round(before, 1), round(os.getloadavg()[0], 1)]
        print(json.dumps({name: facts[name]}), file=sys.stderr, flush=True)
    text = json.dumps(facts, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)


@contextmanager
def serving(gallery: Path, state: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """Serve a gallery; yield the process, its address, and the seconds until it was printed."""
    words = [sys.executable, "-m", "reid.cli", "serve", "--gallery", str(gallery), "--port", "0", "--state", str(state)]
    begun = time.monotonic()
    with subprocess.Popen([*words, *more], stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise SystemExit("the program has no output")
            line = process.stdout.readline()
            if not line.startswith("serving on "):
                raise SystemExit(f"the program does not serve: {line}")
            yield process, line.removeprefix("serving on ").strip(), time.monotonic() - begun
        finally:
            process.terminate()


@contextmanager
def browsing(options: argparse.Namespace, address: str) -> Iterator[Any]:
    """Open the page in Chromium, and wait until it listens."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("[data-ready=yes]", state="attached")
        page.evaluate(CLICK, 0)  # the first question waits until the page is connected
        yield page
        browser.close()


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds until the page is served, and until a program has loaded it."""
    served, loaded = [], []
    for _ in range(3):
        with serving(options.gallery, options.work / "state") as (_, address, seconds):
            begun = time.monotonic()
            urllib.request.urlopen(address, timeout=60).close()
            served.append(seconds)
            loaded.append(seconds + time.monotonic() - begun)
    return {"served": [round(one, 2) for one in served], "loaded": [round(one, 2) for one in loaded]}


def click(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a click on a crop until its answers are drawn."""
    with serving(options.gallery, options.work / "state") as (process, address, _), browsing(options, address) as page:
        times = [page.evaluate(CLICK, number) for number in range(WARM_CLICKS + CLICKS)][WARM_CLICKS:]
        return times_of(times) | {"fastest": round(min(times), 3), "memory": round(memory_of(process.pid))}


def answers(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a click for 50 answers, in each ranking."""
    found = {}
    with serving(options.gallery, options.work / "state") as (_, address, _), browsing(options, address) as page:
        page.evaluate("document.querySelector('[name=count]').value = '50'")
        for ranking in RANKINGS:
            page.evaluate(f"document.querySelector('[name=ranking][value={ranking}]').checked = true")
            times = [page.evaluate(CLICK, number) for number in range(WARM_CLICKS + 10)][WARM_CLICKS:]
            shown = page.evaluate("document.querySelectorAll('.reid-answer').length")
            found[ranking] = times_of(times) | {"shown": shown}
    return found


def million(options: argparse.Namespace) -> dict[str, Any]:
    """Start and queries of a large gallery of random rows, through the REST interface and in the browser."""
    folder = options.work / f"rows-{options.rows}-{options.dimension}"
    if not folder.exists():
        make_rows(folder, options.rows, options.dimension)
    with serving(folder, options.work / "state-rows") as (process, address, seconds):
        begun = time.monotonic()
        urllib.request.urlopen(address, timeout=120).close()
        loaded = seconds + time.monotonic() - begun
        crops = [(number * 7919) % options.rows for number in range(WARM_CLICKS + CLICKS)]
        asked = [_timed(lambda crop=crop: _search(address, crop)) for crop in crops][WARM_CLICKS:]  # type: ignore[misc]
        with browsing(options, address) as page:
            clicked = [page.evaluate(CLICK, number) for number in range(WARM_CLICKS + CLICKS)][WARM_CLICKS:]
        return {
            "rows": options.rows, "dimension": options.dimension, "served": round(seconds, 2),
            "loaded": round(loaded, 2), "rest": times_of(asked), "click": times_of(clicked),
            "memory": round(memory_of(process.pid)),
        }  # fmt: skip


def make_rows(folder: Path, rows: int, dimension: int) -> None:
    """Make a gallery of random unit vectors of six cameras, without images."""
    import numpy as np

    from reid.records import Embeddings, Sample
    from reid.retrieval.gallery import Gallery

    random = np.random.default_rng(0)
    vectors = random.standard_normal((rows, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    day = datetime(2026, 3, 2, 8)
    samples = tuple(
        Sample(
            Path(f"/none/{number:07}.jpg"), f"p{number // 20}", f"c{number % 6}", time=day.replace(minute=number % 60)
        )
        for number in range(rows)
    )
    Gallery.build(Embeddings(samples, vectors, "f00d")).save(folder)


def _search(address: str, crop: int) -> None:
    with urllib.request.urlopen(f"{address}/api/search?crop={crop}&k=10&ranking=plain", b"", timeout=60) as answer:
        answer.read()


def _timed(ask: Callable[[], object]) -> float:
    begun = time.monotonic()
    ask()
    return time.monotonic() - begun


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Users of the REST interface and of the page, and jobs, for some minutes; on a copy of the gallery."""
    folder, state = options.work / "load-gallery", options.work / "load-state"
    for one in (folder, state):
        shutil.rmtree(one, ignore_errors=True)
    shutil.copytree(options.gallery, folder)
    allowed = f"--import-folder={options.source.resolve().parent}"
    with serving(folder, state, allowed) as (process, address, _):
        with urllib.request.urlopen(f"{address}/api/search?crop=0&k=20", b"", timeout=60) as answer:
            crops = [one["crop"] for one in json.loads(answer.read())["answers"]]
        return run_load(
            address, process.pid, options.image.read_bytes(), crops, source=options.source.resolve(),
            users=options.users, seconds=options.seconds, pause=options.pause,
        )  # fmt: skip


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "start": start, "click": click, "answers": answers, "million": million, "load": load,
}  # fmt: skip


if __name__ == "__main__":
    main()
