"""The first values of a page are made again when a gallery was changed, before the page is sent, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from reid.app.first_view import FirstView


class Page:
    """What is looked at of a page of gradio: one component, and a configuration that is made of it."""

    def __init__(self) -> None:
        self.component = SimpleNamespace(value="anna")
        self.config = self.get_config_file()

    def get_config_file(self) -> dict[str, Any]:
        return {"value": self.component.value}


def _run(coroutine: Coroutine[object, object, object]) -> None:
    """Run a coroutine in a thread of its own: browser tests leave a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


@pytest.mark.parametrize(
    ("path", "expected"), [("/", "ben"), ("/config", "ben"), ("/config/", "ben"), ("/assets/x.js", "anna")]
)
def test_the_page_is_current_before_it_is_sent(path: str, expected: str) -> None:
    blocks, data, sent = Page(), SimpleNamespace(state=1), []

    async def send_config(*_: object) -> None:
        sent.append(blocks.config["value"])

    async def nothing(*_: object) -> dict[str, object]:
        return {}

    made: list[str] = []

    def make() -> list[str]:
        made.append("ben")
        return ["ben"]

    view = FirstView(send_config, blocks, data, [([blocks.component], make)])  # type: ignore[arg-type]
    _run(view({"type": "http", "path": path}, nothing, nothing))
    assert (sent, made) == (["anna"], [])
    data.state = None  # a gallery cannot be read
    for _ in range(2):
        _run(view({"type": "http", "path": path}, nothing, nothing))
    assert sent[1:] == [expected] * 2
    assert len(made) == (expected == "ben")
