"""Labels of queries and gallery rows: which rows are right answers to a query, and which are left out.

The Market-1501 rule (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): a gallery row that
shows the query's identity in the query's own camera is left out, as neither right nor wrong.  A row that shows the
query's identity in any other camera is right.  Every other row is wrong.  Cameras that share a location count as one
camera.  SYSU-MM01 leaves out every row of the query's location, whoever it shows; leave-one-out leaves out only the
query itself.  A row that is the very file of the query is left out too, whatever its name and its camera.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.files import FileKey, file_keys
from reid.records import Embeddings, IntArray, Sample

BoolArray = npt.NDArray[np.bool_]
LabelArray = npt.NDArray[Any]

UNKNOWN_GALLERY_IDENTITY = -1
UNKNOWN_QUERY_IDENTITY = -2  # differs from the gallery's: two unknown people are not known to be the same


def check_labels(name: str, labels: npt.ArrayLike, count: int) -> LabelArray:
    """Return ``labels`` as an array (count,) of strings or of integers; raise DataError for anything else."""
    array = np.asarray(labels)
    if array.shape != (count,):
        raise DataError(f"{name}: expected one label a row, ({count},), got shape {array.shape}")
    if array.dtype == object:
        types = {_type_name(label) for label in array}
        if types in ({"string"}, {"integer"}):
            return array.astype(str if "string" in types else np.int64)
        raise DataError(f"{name}: expected only strings or only integers, got {', '.join(sorted(types))}")
    if array.dtype.kind not in "UiuS":
        raise DataError(f"{name}: expected strings or integers, got {array.dtype}")
    return array


def _type_name(label: object) -> str:
    if isinstance(label, str):
        return "string"
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        return "integer"
    return type(label).__name__


@dataclass(frozen=True)
class GalleryByIdentity:
    """The gallery sorted by identity.

    ``order`` (G,) int64 are the gallery rows, identity after identity.  ``starts`` (I,) int64 are the positions in
    ``order`` at which the I identities begin.  ``own`` (Q,) int64 is the number of each query's identity among them,
    or -1 where the gallery does not have it.
    """

    order: IntArray
    starts: IntArray
    own: IntArray


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of Q queries and G gallery rows, and what follows from them: which rows are right, which left out.

    Equal labels mean the same identity, camera or location.

    Args:
        query_identities: Identities of the queries, (Q,) strings or integers.
        gallery_identities: Identities of the gallery rows, (G,).
        query_cameras: Cameras of the queries, (Q,).
        gallery_cameras: Cameras of the gallery rows, (G,).
        query_locations: Locations of the queries, (Q,).  With locations, every gallery row of the query's location
            is left out, whoever it shows.  None: the identity decides.
        gallery_locations: Locations of the gallery rows, (G,); given exactly if ``query_locations`` is.
        query_files: Numbers of the files of the queries, (Q,).  A row of the query's identity and file is left out.
            None: no query shares a file with a row of another camera.
        gallery_files: Numbers of the files of the gallery rows, (G,); given exactly if ``query_files`` is.

    Raises:
        DataError: The arrays differ in length or type, or are no labels.

    Example:
        >>> labels = Labels(["anna"], ["anna", "anna", "ben"], ["door"], ["door", "hall", "hall"])
        >>> offsets, rows, left_out = labels.same_identity(0, 1)
        >>> rows.tolist(), left_out.tolist()
        ([0, 1], [True, False])
    """

    query_identities: LabelArray
    gallery_identities: LabelArray
    query_cameras: LabelArray
    gallery_cameras: LabelArray
    query_locations: LabelArray | None = None
    gallery_locations: LabelArray | None = None
    query_files: LabelArray | None = None
    gallery_files: LabelArray | None = None

    def __post_init__(self) -> None:
        counts = {"query": np.size(self.query_identities), "gallery": np.size(self.gallery_identities)}
        for field in ("identities", "cameras", "locations", "files"):
            given = [getattr(self, f"{side}_{field}") is not None for side in counts]
            if not all(given):
                if any(given):
                    raise DataError(f"{field}: expected query_{field} and gallery_{field}, got only one of them")
                continue
            for side, count in counts.items():
                checked = check_labels(f"{side}_{field}", getattr(self, f"{side}_{field}"), count)
                object.__setattr__(self, f"{side}_{field}", checked)
            _check_one_type(field, getattr(self, f"query_{field}"), getattr(self, f"gallery_{field}"))

    @property
    def queries(self) -> int:
        """The number of queries."""
        return len(self.query_identities)

    @property
    def gallery(self) -> int:
        """The number of gallery rows."""
        return len(self.gallery_identities)

    def select(self, queries: IntArray | BoolArray | slice, gallery: IntArray | BoolArray | slice) -> Labels:
        """Return the labels of some queries and some gallery rows, at these positions."""
        return Labels(
            self.query_identities[queries],
            self.gallery_identities[gallery],
            self.query_cameras[queries],
            self.gallery_cameras[gallery],
            None if self.query_locations is None else self.query_locations[queries],
            None if self.gallery_locations is None else self.gallery_locations[gallery],
            None if self.query_files is None else self.query_files[queries],
            None if self.gallery_files is None else self.gallery_files[gallery],
        )

    def same_identity(self, start: int, stop: int) -> tuple[IntArray, IntArray, BoolArray]:
        """List the pairs of one identity for queries ``start`` to ``stop``, sorted by query.

        Returns:
            Query minus ``start``, gallery row, and whether the pair is one of the same camera or file and therefore
            left out, each (P,); int64, int64 and bool.
        """
        order, first, last = self._gallery_ranges
        counts = last[start:stop] - first[start:stop]
        offsets = np.repeat(np.arange(stop - start), counts)
        within = np.arange(len(offsets)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[np.repeat(first[start:stop], counts) + within]
        query_cameras, gallery_cameras = self.camera_codes
        left_out = query_cameras[start + offsets] == gallery_cameras[rows]
        if self.query_files is not None and self.gallery_files is not None:
            left_out |= self.query_files[start + offsets] == self.gallery_files[rows]
        return offsets, rows, left_out

    def leave_out(self, scores: npt.NDArray[Any], start: int) -> tuple[IntArray, IntArray]:
        """Give the rows that are left out the score -inf, in place.

        Args:
            scores: Scores (B, G) of the queries from ``start`` on; changed in place.
            start: The first of these queries.

        Returns:
            The pairs of one identity, left out or not: query minus ``start`` and gallery row, both (P,) int64,
            sorted by query.
        """
        offsets, rows, left_out = self.same_identity(start, start + len(scores))
        scores[offsets[left_out], rows[left_out]] = -np.inf
        if self.query_locations is not None and self.gallery_locations is not None:
            locations = self.query_locations[start : start + len(scores)]
            for location in np.unique(locations):
                scores[np.ix_(locations == location, self.gallery_locations == location)] = -np.inf
        return offsets, rows

    def count_left_out(self) -> int:
        """Count the pairs of a query and a gallery row that are left out."""
        identities = _encode(self.query_identities, self.gallery_identities)
        if self.query_locations is not None and self.gallery_locations is not None:
            left_out = [_encode(self.query_locations, self.gallery_locations)]
        else:
            left_out = [identities, self.camera_codes]
        count = _count_equal_pairs(left_out)
        if self.query_files is not None and self.gallery_files is not None:
            same_file = [identities, _encode(self.query_files, self.gallery_files)]
            count += _count_equal_pairs(same_file) - _count_equal_pairs([*same_file, *left_out])
        return count

    @cached_property
    def gallery_by_identity(self) -> GalleryByIdentity:
        """The gallery sorted by identity; for a ranking in which each identity has one rank."""
        order, first, last = self._gallery_ranges
        ordered = self.gallery_identities[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])).astype(np.int64)
        return GalleryByIdentity(order, starts, np.where(last > first, np.searchsorted(starts, first), -1))

    @cached_property
    def _gallery_ranges(self) -> tuple[IntArray, IntArray, IntArray]:
        """(order, first, last): the identity of query i fills ``order[first[i]:last[i]]`` of the gallery."""
        queries, gallery = _encode(self.query_identities, self.gallery_identities)
        order = np.argsort(gallery, kind="stable").astype(np.int64)
        ordered = gallery[order]
        first = np.searchsorted(ordered, queries, side="left").astype(np.int64)
        last = np.searchsorted(ordered, queries, side="right").astype(np.int64)
        return order, first, last

    @cached_property
    def camera_codes(self) -> tuple[IntArray, IntArray]:
        """The cameras of the queries (Q,) and of the gallery rows (G,) as int64 numbers; they compare faster."""
        return _encode(self.query_cameras, self.gallery_cameras)


def _check_one_type(name: str, query: LabelArray, gallery: LabelArray) -> None:
    types = [array.dtype.kind.replace("u", "i") for array in (query, gallery)]
    if types[0] != types[1]:
        raise DataError(f"{name}: queries have {query.dtype} labels and the gallery {gallery.dtype}; use one type")


def _encode(query: LabelArray, gallery: LabelArray) -> tuple[IntArray, IntArray]:
    """Number the labels of both sides with int64 codes: equal labels have equal codes."""
    _, codes = np.unique(np.concatenate([query, gallery]), return_inverse=True)
    codes = codes.reshape(-1).astype(np.int64)
    return codes[: len(query)], codes[len(query) :]


def _count_equal_pairs(columns: Sequence[tuple[IntArray, IntArray]]) -> int:
    """Count the pairs of a query and a gallery row that are equal in every column, given as (Q,) and (G,) codes."""
    query, gallery = (np.stack(side, 1) for side in zip(*columns, strict=True))
    _, codes = np.unique(np.concatenate([query, gallery]), axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    many = int(codes.max()) + 1
    return int(np.bincount(codes[: len(query)], minlength=many) @ np.bincount(codes[len(query) :], minlength=many))


def market_labels(
    queries: Sequence[Sample],
    gallery: Sequence[Sample],
    *,
    ignore: str = "camera",
    locations: Mapping[str, str] | None = None,
) -> Labels:
    """Make the labels of samples, where an empty field means unknown.

    An unknown identity equals no other: in the gallery it can only be wrong, and as a query it has no right answer.
    An unknown camera equals no other camera, so nothing is left out on its account except the very same image, which
    gets a camera of its own wherever it stands.  Images are the same if their files are, under whatever names, see
    :func:`reid.files.file_keys`.

    Args:
        queries: The samples of the queries.
        gallery: The samples of the gallery.
        ignore: Which rows the rule leaves out: "camera", "location" or "itself", as in
            :class:`reid.data.protocols.protocol_table.Rule`.
        locations: Maps a camera to the camera that it shares a location with.

    Returns:
        Labels of int64 numbers.

    Example:
        >>> from pathlib import Path
        >>> anna = [Sample(Path(name), "anna", camera) for name, camera in (("1.jpg", "door"), ("2.jpg", "hall"))]
        >>> market_labels(anna[:1], anna).count_left_out()
        1
    """
    identities, cameras, images = _Codes(), _Codes(), _Codes()
    keys = file_keys(sample.path for sample in (*queries, *gallery))
    known_cameras = {keys[sample.path]: sample.camera for sample in (*queries, *gallery) if sample.camera}

    def codes_of(samples: Sequence[Sample], unknown: int) -> Iterator[tuple[int, int, int]]:
        for sample in samples:
            key = keys[sample.path]
            camera = "" if ignore == "itself" else sample.camera or known_cameras.get(key, "")
            identity = identities[sample.identity] if sample.identity else unknown
            yield identity, cameras[(locations or {}).get(camera, camera) if camera else key], images[key]

    one = _columns(codes_of(queries, UNKNOWN_QUERY_IDENTITY))
    other = _columns(codes_of(gallery, UNKNOWN_GALLERY_IDENTITY))
    located = (one[1], other[1]) if ignore == "location" else (None, None)
    files = (one[2], other[2]) if np.isin(one[2], other[2]).any() else (None, None)
    return Labels(one[0], other[0], one[1], other[1], *located, *files)


def _columns(rows: Iterator[tuple[int, int, int]]) -> tuple[IntArray, IntArray, IntArray]:
    table = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


class _Codes(dict[str | FileKey, int]):
    """Numbers names in the order of their first use; a file and a string never share a number."""

    def __missing__(self, name: str | FileKey) -> int:
        self[name] = len(self)
        return self[name]


def track_order(gallery: Embeddings) -> tuple[IntArray, IntArray]:
    """Order the gallery rows so that those of each track are together, for a ranking of tracks instead of images.

    A track is what one camera recorded of one passer-by (Liu et al., "PROVID: Progressive and Multimodal Vehicle
    Reidentification for Large-Scale Urban Surveillance", IEEE Transactions on Multimedia 2018).  Rows with the same
    track name that differ in identity or camera are different tracks.

    Returns:
        The order (G,) int64 of the rows, and the position in it at which each of the T tracks starts, (T,) int64.

    Raises:
        DataError: A row has no track or no camera.  Without a camera it is not known which tracks the query's own
            camera recorded.
    """
    for field in ("track", "camera"):
        unknown = [sample.path for sample in gallery.samples if not getattr(sample, field)]
        if unknown:
            raise DataError(
                f"rule: ranked=track needs the {field} of every gallery row; {len(unknown)} of {len(gallery)} have"
                f" none, such as {unknown[0]}; fill in the column {field}, or rank images"
            )
    names = [(sample.track, sample.identity, sample.camera) for sample in gallery.samples]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tracks = np.array([numbers[name] for name in names], np.int64)
    order = np.argsort(tracks, kind="stable").astype(np.int64)
    return order, np.searchsorted(tracks[order], np.arange(len(numbers))).astype(np.int64)
