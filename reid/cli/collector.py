"""Spare the garbage collector work that frees nothing: PyTorch consists of several hundred thousand objects that stay.

Together this saves half a second of CPU time of a command that imports PyTorch.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector during the ``with`` block, which imports modules.

    Without the pause it looks through all objects again and again while their number grows.

    Example:
        >>> with collector_paused():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def skip_last_collection() -> None:
    """Let the interpreter end without looking through all objects once more; open files are closed as always."""
    atexit.unregister(gc.freeze)  # once is enough, also where a program calls several commands
    atexit.register(gc.freeze)
