"""Run a graph that was exported here, in batches of the sizes that a program computes fastest.

OpenVINO computes a graph whose batch size is fixed up to a third faster than one that takes any number of images, so
one for :data:`AT_ONCE` images and one for a single image are opened, each when it is first needed.  Both give an image
the same vector, bit for bit.  ONNX Runtime takes any number as fast, and is fastest where the maps of a batch stay in
the processor cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from reid.models.runtime import Array, Session, open_graph

AT_ONCE = 16  # images
HAS_FIXED_BATCHES = {"onnx": False, "openvino": True}


class GraphBatches:
    """Computes vectors by another program, for any number of images; threads may call it at the same time.

    Args:
        program: "onnx" or "openvino".
        graph: The bytes of an ONNX file that takes images (B, 3, H, W), for any B.
        source: The file of the network, for messages.
        precision: "float32", or with OpenVINO "bfloat16".

    Raises:
        ConfigError: The package of the program is missing.
    """

    def __init__(self, program: str, graph: bytes, source: str, precision: str) -> None:
        self._program, self._graph, self._source, self._precision = program, graph, source, precision
        self._sessions: dict[int | None, Session] = {}
        self._lock = threading.Lock()

    def run(self, images: Array) -> Array:
        """Compute the vectors (B, D) float32 of images (B, 3, H, W), of the type that the graph takes.

        Raises:
            WeightsError: The program cannot read the graph.
            Exception: One of :attr:`Session.errors`, where it cannot run.
        """
        return np.concatenate(list(self._run_in_parts(images)))

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What :meth:`run` raises when the program refuses its input."""
        return next((session.errors for session in self._sessions.values()), ())

    def _run_in_parts(self, images: Array) -> Iterator[Array]:
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE]
            if not HAS_FIXED_BATCHES[self._program]:
                yield self._session(None).run(part)
            elif 2 * len(part) >= AT_ONCE:
                missing = AT_ONCE - len(part)
                whole = np.concatenate([part, np.zeros_like(part[:1]).repeat(missing, 0)]) if missing else part
                yield self._session(AT_ONCE).run(whole)[: len(part)]
            else:
                yield from (self._session(1).run(part[row : row + 1]) for row in range(len(part)))

    def _session(self, batch_size: int | None) -> Session:
        """The session for a batch size; None takes any."""
        with self._lock:
            if batch_size not in self._sessions:
                self._sessions[batch_size] = open_graph(
                    self._program, self._graph, self._source, self._precision, batch_size=batch_size
                )
            return self._sessions[batch_size]
