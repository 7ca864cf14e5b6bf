"""Find the export of a network that fits a time budget on this machine: width, precision, and program.

Every combination is exported, run on one image at a time, in turns so that other programs disturb all alike, and
compared with the widest network in float32 on crops.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reid.edge.neighbour_overlap import neighbour_overlap
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.export import graph_of_camera, write_graph
from reid.models.quantization import quantize_graph
from reid.records import FloatArray

ROUNDS = 15  # in each of which every export embeds one image
SUFFIXES = {"ONNX Runtime": ".onnx", "OpenVINO": ".xml"}
BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*")


@dataclass(frozen=True)
class TimedExport:
    """One combination, and what it is worth.

    Attributes:
        width: The share of the channels, 1 for a network of one width.
        precision: "float32" or "int8".
        program: A key of ``SUFFIXES``.
        milliseconds: For one image, the median over rounds.
        cosine: The mean cosine to the embeddings of the widest network in float32.
        overlap: How many of the ten nearest neighbours of a crop are those of the widest network in float32.
    """

    width: float
    precision: str
    program: str
    milliseconds: float
    cosine: float
    overlap: float

    @property
    def suffix(self) -> str:
        """The suffix of its file."""
        return SUFFIXES[self.program]

    def line(self) -> str:
        """Say what it is in one line."""
        return (
            f"width {self.width:g}, {self.precision}, {self.program}\t{self.milliseconds:.2f} ms\tcosine"
            f" {self.cosine:.4f}\tsame neighbours {self.overlap:.1%}"
        )


def parse_budget(text: str) -> float:
    """Read a budget and return it in milliseconds.

    Raises:
        ConfigError: It is no number above 0 with the unit ms or s.

    Example:
        >>> parse_budget("5 ms"), parse_budget("0.5s")
        (5.0, 500.0)
    """
    match = BUDGET.fullmatch(text)
    value = float(match[1]) * (1000 if match[2] == "s" else 1) if match else 0.0
    if value <= 0:
        raise ConfigError(f'--budget {text}: expected a time for one image such as "5 ms" or "0.1 s"')
    return value


def time_exports(
    networks: Mapping[float, Checkpoint],
    ranges: FloatArray,
    images: FloatArray,
    folder: Path,
    camera: str,
    progress: Callable[[int], object],
) -> list[tuple[TimedExport, bytes]]:
    """Export every combination, run it, and compare it.

    Args:
        networks: The network at each width, the widest first.
        ranges: Prepared crops (N, 3, H, W) float32 on which the ranges of int8 are measured.
        images: Prepared crops (M, 3, H, W) float32 to compare embeddings on, at least 2.
        folder: Where files are written.
        camera: The camera whose statistics the files get; "" for none.
        progress: Is called with 1 after each combination.

    Returns:
        Each combination, with the graph that :func:`~reid.models.export.write_graph` writes.
    """
    loaded: list[tuple[tuple[float, str, str], bytes, Checkpoint]] = []
    for width, checkpoint in networks.items():
        exact = graph_of_camera(checkpoint, folder / "x.onnx", camera)
        graphs = {"float32": exact, "int8": quantize_graph(exact, ranges, checkpoint.source)}
        for precision, graph in graphs.items():
            for program, suffix in SUFFIXES.items():
                path = folder / f"{width:g}-{precision}{suffix}"
                write_graph(checkpoint, graph, path)
                loaded.append(((width, precision, program), graph, load_checkpoint(path)))
    vectors = []
    for *_, network in loaded:
        vectors.append(network.embed(torch.from_numpy(images)).numpy())
        progress(1)
    medians = _medians([network for *_, network in loaded], torch.from_numpy(images[:1]))
    return [
        (TimedExport(*key, milliseconds, float((found * vectors[0]).sum(1).mean()),
                     neighbour_overlap(vectors[0], found)), graph)
        for (key, graph, _), milliseconds, found in zip(loaded, medians, vectors, strict=True)
    ]  # fmt: skip


def choose_export(exports: Sequence[TimedExport], budget: float) -> TimedExport:
    """Choose the combination within a budget whose neighbours are most like those of the widest in float32.

    Of equal ones the faster is taken.

    Args:
        exports: What can be chosen.
        budget: Milliseconds for one image.

    Raises:
        ConfigError: None is as fast.

    Example:
        >>> slow, fast = (TimedExport(1, "float32", "OpenVINO", ms, 1, 1 - 1 / ms) for ms in (8.0, 2.0))
        >>> choose_export([slow, fast], 5).milliseconds, choose_export([slow, fast], 9).milliseconds
        (2.0, 8.0)
    """
    fitting = [one for one in exports if one.milliseconds <= budget]
    if not fitting:
        fastest = min(exports, key=lambda one: one.milliseconds)
        raise ConfigError(
            f"--budget {budget:g} ms: the fastest is width {fastest.width:g} in {fastest.precision} with"
            f' {fastest.milliseconds:.2f} ms; make narrower widths with "reid slim", or allow more time'
        )
    return max(fitting, key=lambda one: (round(one.overlap, 3), -one.milliseconds))


def _medians(networks: Sequence[Checkpoint], image: torch.Tensor) -> list[float]:
    """Milliseconds of each network for one image."""
    found: Any = [[] for _ in networks]
    for number in range(ROUNDS + 1):
        for times, network in zip(found, networks, strict=True):
            start = time.perf_counter()
            network.embed(image)
            if number:  # the first round warms up
                times.append(1000 * (time.perf_counter() - start))
    return [float(np.median(times)) for times in found]
