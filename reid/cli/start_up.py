"""Spare short commands the CPU time that importing PyTorch and leaving it costs beside its use.

PyTorch consists of several hundred thousand objects that stay to the end.  The garbage collector of Python looks
through them many times and frees nothing, which takes half a second.
"""

from __future__ import annotations

import atexit
import gc
import os
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


def wait_without_spinning() -> None:
    """Let the threads of PyTorch sleep while they wait for each other; call this before PyTorch is imported.

    They spin otherwise, which saves time in long computations on free cores.  For one image it only costs CPU time, up
    to a second where other programs use the cores.  A value that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
