"""Who counts as right and who is left out: the Market-1501 rule over labels, and what differs from it.

The rule (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): a gallery row
of the query's identity seen by the query's own camera is neither right nor wrong, it is left out; a
row of the query's identity from any other camera is right; every other row is wrong.  Cameras that
share a place count as one.  SYSU-MM01 leaves out every row of the query's place, whoever it shows;
leave-one-out only the query itself.

What the rule needs for incomplete labels is decided in :func:`market_labels`.  Nothing here knows
vectors or scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import IntArray, Sample

BoolArray = npt.NDArray[np.bool_]

UNKNOWN_GALLERY_IDENTITY = -1
UNKNOWN_QUERY_IDENTITY = -2  # differs from the gallery's: two strangers are not known to be the same


def check_labels(name: str, labels: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """``labels`` as an array (count,) of strings or of integers; anything else is a DataError."""
    array = np.asarray(labels)
    if array.shape != (count,):
        raise DataError(f"{name}: expected one label a row, ({count},), got shape {array.shape}")
    if array.dtype == object:
        kinds = {_kind(label) for label in array}
        if kinds in ({"string"}, {"integer"}):
            return array.astype(str if "string" in kinds else np.int64)
        raise DataError(f"{name}: expected only strings or only integers, got {', '.join(sorted(kinds))}")
    if array.dtype.kind not in "UiuS":
        raise DataError(f"{name}: expected strings or integers, got {array.dtype}")
    return array


def _kind(label: object) -> str:
    if isinstance(label, str):
        return "string"
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        return "integer"
    return type(label).__name__


def _encode(name: str, query: npt.NDArray[Any], gallery: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Both sides as int64 codes: equal codes, equal labels."""
    kinds = [array.dtype.kind.replace("u", "i") for array in (query, gallery)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{name}: queries have {query.dtype} labels and the gallery {gallery.dtype}; use one type")
    _, codes = np.unique(np.concatenate([query, gallery]), return_inverse=True)
    codes = codes.reshape(-1).astype(np.int64)
    return codes[: len(query)], codes[len(query) :]


@dataclass(frozen=True)
class Judgement:
    """Which gallery rows share each query's identity, and which of those are left out.

    ``order`` (G,) int64 gallery rows sorted by identity; ``first``, ``last`` (Q,) int64: query i's
    identity fills ``order[first[i]:last[i]]``; cameras are int64 codes, (Q,) and (G,).
    """

    order: IntArray
    first: IntArray
    last: IntArray
    query_cameras: IntArray
    gallery_cameras: IntArray

    def same_identity(self, start: int, stop: int) -> tuple[IntArray, IntArray, BoolArray]:
        """Pairs of one identity for queries ``start`` to ``stop``, sorted by query.

        Returns (query - start, gallery row, left out), each (P,), int64, int64 and bool.
        """
        counts = self.last[start:stop] - self.first[start:stop]
        offsets = np.repeat(np.arange(stop - start), counts)
        within = np.arange(len(offsets)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self.order[np.repeat(self.first[start:stop], counts) + within]
        left_out = self.query_cameras[start + offsets] == self.gallery_cameras[rows]
        return offsets, rows, left_out


def judge(
    query_identities: npt.NDArray[Any],
    gallery_identities: npt.NDArray[Any],
    query_cameras: npt.NDArray[Any],
    gallery_cameras: npt.NDArray[Any],
) -> Judgement:
    """The rule applied to label arrays (Q,) and (G,): strings or integers, equal means the same."""
    queries, gallery = _encode("identities", query_identities, gallery_identities)
    seen_by_query, seen_by_gallery = _encode("cameras", query_cameras, gallery_cameras)
    order = np.argsort(gallery, kind="stable").astype(np.int64)
    ordered = gallery[order]
    first = np.searchsorted(ordered, queries, side="left").astype(np.int64)
    last = np.searchsorted(ordered, queries, side="right").astype(np.int64)
    return Judgement(order, first, last, seen_by_query, seen_by_gallery)


@dataclass(frozen=True)
class MarketLabels:
    """Int64 labels for ``market_metrics``, with unknown identities and cameras resolved.

    Places are given where every row of the query's place is left out, whoever it shows.
    """

    query_identities: IntArray
    gallery_identities: IntArray
    query_cameras: IntArray
    gallery_cameras: IntArray
    query_locations: IntArray | None = None
    gallery_locations: IntArray | None = None

    def left_out(self) -> int:
        """How many pairs of a query and a gallery row are left out."""
        if self.query_locations is not None and self.gallery_locations is not None:
            return _equal_pairs(self.query_locations[:, None], self.gallery_locations[:, None])
        return _equal_pairs(
            np.stack([self.query_identities, self.query_cameras], 1),
            np.stack([self.gallery_identities, self.gallery_cameras], 1),
        )


def market_labels(
    queries: Sequence[Sample],
    gallery: Sequence[Sample],
    *,
    ignore: str = "camera",
    locations: Mapping[str, str] | None = None,
) -> MarketLabels:
    """Labels of samples, where an empty field means unknown.

    An unknown identity equals no other: in the gallery it can only be wrong, as a query it has no
    match.  An unknown camera equals no other camera, so nothing is left out on its account except
    the very same picture, which is given a camera of its own wherever it stands.

    ``ignore`` is that of :class:`reid.data.protocols.protocol_table.Rule`; ``locations`` maps a camera to the one it
    shares a place with.
    """
    identities = _Codes()
    cameras = _Codes()
    seen_by = {sample.path: sample.camera for sample in (*queries, *gallery) if sample.camera}

    def codes_of(samples: Sequence[Sample], unknown: int) -> Iterator[tuple[int, int]]:
        for sample in samples:
            camera = "" if ignore == "itself" else sample.camera or seen_by.get(sample.path, "")
            identity = identities[sample.identity] if sample.identity else unknown
            yield identity, cameras[(locations or {}).get(camera, camera) if camera else sample.path]

    query_codes = _columns(codes_of(queries, UNKNOWN_QUERY_IDENTITY))
    gallery_codes = _columns(codes_of(gallery, UNKNOWN_GALLERY_IDENTITY))
    codes = (query_codes[0], gallery_codes[0], query_codes[1], gallery_codes[1])
    return MarketLabels(*codes, *(codes[2:] if ignore == "location" else (None, None)))


def _equal_pairs(query: IntArray, gallery: IntArray) -> int:
    """Pairs of equal rows of ``query`` (Q, n) and ``gallery`` (G, n)."""
    _, codes = np.unique(np.concatenate([query, gallery]), axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    many = int(codes.max()) + 1
    return int(np.bincount(codes[: len(query)], minlength=many) @ np.bincount(codes[len(query) :], minlength=many))


def _columns(pairs: Iterator[tuple[int, int]]) -> tuple[IntArray, IntArray]:
    table = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


class _Codes(dict[str | Path, int]):
    """Numbers names in the order of their first use; a path and a string never share a number."""

    def __missing__(self, name: str | Path) -> int:
        self[name] = len(self)
        return self[name]
