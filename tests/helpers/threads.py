"""Work in a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own: the browser of other tests keeps an event loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work)).result()


def build_in_thread(build: Callable[[], T]) -> T:
    """Call a function inside an event loop: outside of one, gradio opens loops and leaves them open."""

    async def call() -> T:
        return build()

    return run_in_thread(call())
