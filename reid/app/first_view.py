"""What the page shows when it is opened, made again after another program has erased something.

Gradio keeps the first value of every component, with the images in it, and sends it to whoever opens the page. Without
this module, an erased person would be shown to new visitors until the application is started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from reid.app.asgi import Application, Receive, Scope, Send

if TYPE_CHECKING:
    import gradio as gr

    from reid.app.served_data import ServedData

FirstValues = tuple[Sequence[Any], Callable[[], Sequence[Any]]]
"""Components, and a function that returns their first values."""
PATHS = ("", "/config")  # that answer with the first values


class FirstView:
    """An ASGI application in front of the page, which keeps its first values current.

    Args:
        application: The application of the page.
        blocks: The page.
        data: What the page shows.
        values: The components whose first values depend on the data.
    """

    def __init__(self, application: Application, blocks: gr.Blocks, data: ServedData, values: Sequence[FirstValues]):
        self._application = application
        self._blocks = blocks
        self._data = data
        self._values = tuple(values)
        self._state = data.state
        self._lock = Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") in PATHS:
            await asyncio.to_thread(self.refresh)
        await self._application(scope, receive, send)

    def refresh(self) -> None:
        """Make the first values again if a gallery was changed since they were made."""
        with self._lock:
            state = self._data.state
            if state == self._state:
                return
            for components, make in self._values:
                for component, value in zip(components, make(), strict=True):
                    component.value = value
            self._blocks.config = self._blocks.get_config_file()
            self._state = state
