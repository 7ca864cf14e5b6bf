"""Run ONNX files of others with ONNX Runtime, within bounds of memory and time.

A small file can ask for a tensor of any size, which its graph may compute from constants or from the image, and a loop
can go on without end.  So no look at the graph is enough: the allocator refuses what goes beyond its bound, and a run
that takes too long is stopped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_MEMORY = 2**33  # bytes of all tensors of the models of a program; at most half of the machine's memory
MAX_SECONDS = 300.0  # of one run
MAX_SIDE = 4096  # pixels of an image that a model takes

Array = npt.NDArray[Any]


@cache
def bound_memory() -> int:
    """Give all models that this program opens a common allocator with a bound; the first call decides.

    Returns:
        The bound in bytes.

    Raises:
        ImportError: If ONNX Runtime is not installed.
    """
    import onnxruntime

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = min(MAX_MEMORY, machine // 2)
    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    settings = {"max_mem": most, "arena_extend_strategy": 1}  # 1: no more than is asked for
    defaults = {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), onnxruntime.OrtArenaCfg({**settings, **defaults})
    )
    return most


def open_session(model: bytes | str, providers: Sequence[str], threads: int = 0) -> Any:
    """Open a model with ONNX Runtime.

    Args:
        model: The bytes of an ONNX file, or its path.
        providers: What runs it, the preferred one first, such as "CPUExecutionProvider".
        threads: Threads of one run; 0 leaves it to ONNX Runtime.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        Exception: If the model cannot be read; the errors of ONNX Runtime share no other base.
    """
    import onnxruntime

    bound_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # silent, because every error arrives as an exception too
    options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def run_session(session: Any, outputs: Sequence[str] | None, inputs: Mapping[str, Array]) -> list[Array]:
    """Run a model once.

    Args:
        session: A session of :func:`open_session`; threads may share it.
        outputs: The names of the outputs to compute; None computes all.
        inputs: The inputs by name.

    Returns:
        The outputs.

    Raises:
        TimeoutError: If it takes longer than :data:`MAX_SECONDS`.
        Exception: If the model cannot be run; the errors of ONNX Runtime share no other base.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    is_late = threading.Event()

    def stop() -> None:
        is_late.set()
        options.terminate = True  # seen between two operators

    watch = threading.Timer(MAX_SECONDS, stop)
    watch.daemon = True
    watch.start()
    try:
        found: list[Array] = [np.asarray(value) for value in session.run(outputs, dict(inputs), options)]
    except Exception as error:
        if is_late.is_set():
            raise TimeoutError(f"stopped, because it did not end within {MAX_SECONDS:g} seconds") from error
        raise
    finally:
        watch.cancel()
    return found
