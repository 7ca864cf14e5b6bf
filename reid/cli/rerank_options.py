"""The options of ``reid evaluate`` that order answers again: ``--rerank``, ``--expand-queries`` and ``--learn-metric``.

``--rerank`` takes one word, "camera", or three numbers. The parser of the command line takes the same number of words
for an option every time, so the numbers are joined to one word before it reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reid.evaluation import Reranking

CAMERA = "camera"
RERANK, EXPAND, METRIC = "--rerank", "--expand-queries", "--learn-metric"
NUMBERS = 3  # K1, K2 and LAMBDA

Rerank = Annotated[
    str | None,
    typer.Option(
        RERANK,
        metavar="camera | K1 K2 LAMBDA",
        show_default=False,
        help='Also score re-ranking. "camera" takes camera-aware Jaccard similarities of CSLS scores, with lists of'
        " neighbours that fit the data; it declines where an identity has too few crops in a camera. Three numbers,"
        " such as 20 6 0.3, take k-reciprocal re-ranking.",
    ),
]
ExpandQueries = Annotated[
    str,
    typer.Option(
        EXPAND,
        metavar="camera | N",
        help='Also score query expansion by the N nearest gallery crops. "camera" expands queries and gallery by the'
        " nearest crops of each camera by CSLS scores, as many as fit the data.",
    ),
]

LearnMetric = Annotated[
    bool,
    typer.Option(
        METRIC,
        help="Also score with a metric that is learned without labels, from crops of two cameras that are each other's"
        " nearest. It helps as well where an identity has one crop in a camera.",
    ),
]


def join_numbers(words: Sequence[str]) -> list[str]:
    """Join the numbers that follow ``--rerank`` to one word.

    Example:
        >>> join_numbers(["--rerank", "20", "6", "0.3", "--flip"])
        ['--rerank', '20 6 0.3', '--flip']
        >>> join_numbers(["--rerank", "camera", "--json", "a.json"])
        ['--rerank', 'camera', '--json', 'a.json']
    """
    joined: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        joined.append(word)
        values = [word.partition("=")[2]] if word.startswith(f"{RERANK}=") else []
        if word != RERANK and not (values and _is_number(values[0])):
            continue
        while rest and len(values) < NUMBERS and _is_number(rest[0]):
            values.append(rest.pop(0))
        if values and word == RERANK:
            joined.append(" ".join(values))
        elif values:
            joined[-1] = f"{RERANK}={' '.join(values)}"
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def reranking_of(rerank: str | None, expand_queries: str, learn_metric: bool) -> Reranking | None:
    """Return how to order answers again; None for not at all.

    Raises:
        typer.BadParameter: An option has another value than its help says, or the two do not go together.
    """
    expands_by_camera = expand_queries == CAMERA
    neighbours = 0 if expands_by_camera else _neighbours(expand_queries)
    by_camera = rerank == CAMERA
    if neighbours and (by_camera or learn_metric):
        option = f"{RERANK} {CAMERA}" if by_camera else METRIC
        raise typer.BadParameter(f"{option} goes with expansion by camera only; use {EXPAND} {CAMERA}")
    k_reciprocal = None if rerank is None or by_camera else _k_reciprocal(rerank)
    if not (by_camera or k_reciprocal or neighbours or expands_by_camera or learn_metric):
        return None
    from reid.evaluation import Reranking

    return Reranking(k_reciprocal, neighbours, by_camera, expands_by_camera, learn_metric)


def _neighbours(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise typer.BadParameter(f'{EXPAND}: expected "{CAMERA}" or a number of at least 0, got "{value}"')
    return int(value)


def _k_reciprocal(value: str) -> tuple[int, int, float]:
    words = value.split()
    try:
        k1, k2, weight = int(words[0]), int(words[1]), float(words[2])
        if len(words) != NUMBERS or k1 < 1 or k2 < 1 or not 0 <= weight <= 1 or not math.isfinite(weight):
            raise ValueError
    except (ValueError, IndexError):
        raise typer.BadParameter(
            f'{RERANK}: expected "{CAMERA}", or K1 K2 LAMBDA such as 20 6 0.3 with LAMBDA in 0..1, got "{value}"'
        ) from None
    return k1, k2, weight
