"""The kinds of indexes that a gallery may have, by name, and what ``auto`` chooses."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, sqrt

from reid.errors import ConfigError, unknown_name

FLAT, AUTO = "flat", "auto"
LARGEST_FLAT, LARGEST_HNSW = 200_000, 5_000_000  # rows, for which "auto" chooses these kinds; see docs/scaling.md
POINTS_PER_LIST = 39  # with fewer, k-means finds poor centres


@dataclass(frozen=True)
class IndexKind:
    """How an approximate index is made and searched.

    Args:
        factory: The factory string of FAISS, with ``{lists}`` and ``{parts}`` for what depends on the size.
        efforts: Settings from fast to thorough: ``nprobe`` of inverted lists, ``efSearch`` of a graph; (0,) where there
            is nothing to choose.
        refine: Candidates for each answer, which are scored again exactly.
        fewest: The smallest number of rows that it can be trained on.
        summary: What it costs, in a few words.
    """

    factory: str
    efforts: tuple[int, ...]
    refine: int
    fewest: int
    summary: str

    def factory_string(self, rows: int, dimension: int) -> str:
        """Return the factory string for so many rows of a dimension."""
        return self.factory.format(lists=count_lists(rows), parts=count_parts(dimension))


def count_lists(rows: int) -> int:
    """Return the number of inverted lists for a number of rows.

    Example:
        >>> count_lists(100_000)
        1024
    """
    wanted = 2 ** round(log2(4 * sqrt(max(1, rows))))
    return max(1, min(int(wanted), rows // POINTS_PER_LIST))


def count_parts(dimension: int) -> int:
    """Return into how many parts a vector is cut for product quantization: about one for four numbers.

    Example:
        >>> count_parts(512)
        128
    """
    return max(parts for parts in range(1, max(1, dimension // 4) + 1) if dimension % parts == 0)


INDEX_KINDS: dict[str, IndexKind] = {
    "fp16": IndexKind("SQfp16", (0,), 1, 1, "half the memory, every row is compared"),
    "sq8": IndexKind("SQ8", (0,), 3, 1, "a quarter of the memory, every row is compared"),
    "ivf-flat": IndexKind(
        "IVF{lists},Flat",
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
        1,
        POINTS_PER_LIST,
        "compares the rows of some lists",
    ),
    "ivf-pq": IndexKind(
        "IVF{lists},PQ{parts}x4fs",
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
        32,
        16 * POINTS_PER_LIST,
        "a thirtieth of the memory, compares short codes of the rows of some lists",
    ),
    "hnsw": IndexKind(
        "HNSW32_SQfp16",
        (16, 32, 64, 128, 256, 512, 1024),
        1,
        1,
        "fastest for single queries, slow to build",
    ),
}
NAMES = (FLAT, *INDEX_KINDS, AUTO)


def check_index_kind(index_kind: str) -> str:
    """Return the name of a kind of index if it is known.

    Raises:
        ConfigError: It is unknown; the message lists the known ones.

    Example:
        >>> check_index_kind("hnsw")
        'hnsw'
    """
    if index_kind not in NAMES:
        raise ConfigError(unknown_name("index kind", index_kind, NAMES))
    return index_kind


def choose_index_kind(index_kind: str, rows: int) -> str:
    """Return the kind of index for so many rows: ``auto`` by size, all others as they are.

    Example:
        >>> choose_index_kind("auto", 1_000), choose_index_kind("auto", 1_000_000)
        ('flat', 'hnsw')
    """
    if check_index_kind(index_kind) != AUTO:
        return index_kind
    return FLAT if rows <= LARGEST_FLAT else "hnsw" if rows <= LARGEST_HNSW else "ivf-pq"
