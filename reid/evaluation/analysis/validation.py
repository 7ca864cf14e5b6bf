"""Check a data set before anything is computed, and explain what will go wrong and why.

Errors make scores wrong or stop the run; warnings make them doubtful; notes explain them.  Images are opened and
compared byte by byte; nothing is embedded.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reid.data.images import read_image
from reid.data.label_text import likeness_key
from reid.data.protocols.data_sets import DataSet, Scoring, count_differences
from reid.data.protocols.gallery_draws import draw_galleries
from reid.errors import DataError
from reid.files import FileKey, file_keys
from reid.records import Sample, Split
from reid.structured_text import one_line

EXAMPLES = 3  # named in a finding; the count says how many there are


@dataclass(frozen=True)
class Finding:
    """One thing that was found: ``count`` cases, a few of them named in ``examples``."""

    severity: Literal["error", "warning", "note"]
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) > 0 else ""
        named = f": {', '.join(self.examples)}{more}" if self.examples else ""
        return one_line(f"{self.severity}: {self.message}{named}")


def validate(
    data: DataSet, *, images: bool = True, workers: int = 1, progress: Callable[[int], object] | None = None
) -> tuple[Finding, ...]:
    """Check a data set.

    Args:
        data: The data set.
        images: Whether to read the image files; otherwise only their existence is checked.
        workers: Threads that read them.
        progress: Called with the number of files done.

    Returns:
        The findings, errors first.

    Example:
        >>> samples = (Sample(Path("1.jpg"), "anna", "door", split=Split.QUERY), Sample(Path("2.jpg"), "anna", "hall"))
        >>> for finding in validate(DataSet("two", samples, Scoring()), images=False):
        ...     print(finding)
        error: 2 images are missing: 1.jpg, 2.jpg
        note: 2 rows: 1 query, 1 gallery
    """
    findings = [
        *_counts(data),
        *(Finding("note", note) for note in data.notes),
        *_labels(data.samples),
        *_times(data.samples),
        *_same_files(data.samples),
        *(_files(data.samples, workers, progress) if images else _missing(data.samples)),
        *_splits(data.samples),
        *_cameras(data.samples, data.scoring),
        *_unmatched_queries(data.samples, data.scoring),
        *_galleries(data.samples, data.scoring),
    ]
    if all(finding.severity == "note" for finding in findings):
        findings.append(Finding("note", "nothing wrong was found"))
    order = ("error", "warning", "note")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def findings_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Turn findings into plain values for JSON."""
    return [asdict(finding) for finding in findings]


def _finding(severity: Literal["error", "warning", "note"], message: str, cases: Iterable[str]) -> Iterator[Finding]:
    """Yield one finding about all ``cases``, none if there are no cases; ``message`` contains {n}."""
    listed = list(cases)
    if listed:
        yield Finding(severity, message.format(n=f"{len(listed):,}"), len(listed), tuple(listed[:EXAMPLES]))


def _counts(data: DataSet) -> Iterator[Finding]:
    if data.protocol is None or not data.protocol.counts:
        return
    lines = count_differences(data.protocol, data.samples, **data.scoring.variant)
    yield from _finding("warning", "{n} counts differ from the published ones, so scores are not comparable", lines)
    if not lines:
        yield Finding("note", f"all counts are those published for {data.protocol.title}")


def _labels(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Find labels that differ so little that they may mean the same."""
    for field, plural in (("identity", "identities"), ("camera", "cameras")):
        likes: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for sample in samples:
            label = getattr(sample, field)
            category = sample.category if field == "identity" else ""
            likes[category, likeness_key(label)][label] = None
        cases = (" = ".join(labels) for labels in likes.values() if len(labels) > 1)
        yield from _finding(
            "warning", f"{{n}} {plural} have several spellings, which count as different {plural}", cases
        )


def _times(samples: Sequence[Sample]) -> Iterator[Finding]:
    zoned: dict[str, set[bool]] = defaultdict(set)
    for sample in samples:
        if sample.time is not None:
            zoned[sample.camera].add(sample.time.tzinfo is not None)
    mixed = (camera or "unknown" for camera, kinds in sorted(zoned.items()) if len(kinds) > 1)
    yield from _finding("warning", "{n} cameras have times with and without a zone, which cannot be compared", mixed)


def _same_files(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Find files that stand in several rows with contradicting labels, or under several names."""
    keys = file_keys(sample.path for sample in samples)
    rows: dict[FileKey, list[Sample]] = defaultdict(list)
    for sample in samples:
        rows[keys[sample.path]].append(sample)
    cases: dict[str, list[str]] = defaultdict(list)
    for same in rows.values():
        names = dict.fromkeys(str(sample.path) for sample in same)
        for field in ("identity", "camera"):
            labels = dict.fromkeys(label for sample in same if (label := getattr(sample, field)))
            if len(labels) > 1:
                cases[field].append(f"{next(iter(names))} ({', '.join(labels)})")
        if len({bool(sample.identity) for sample in same}) > 1:
            cases["nobody"].append(str(same[0].path))
        if len(names) > 1:
            cases["name"].append(" = ".join(names))
    yield from _finding("error", "{n} files stand under several identities", cases["identity"])
    yield from _finding(
        "warning",
        "{n} files stand with and without an identity; a query never counts its own file as an answer",
        cases["nobody"],
    )
    yield from _finding(
        "warning",
        "{n} files stand under several cameras; a query never counts its own file as an answer",
        cases["camera"],
    )
    yield from _finding("warning", "{n} files have several names in the table", cases["name"])


def _missing(samples: Sequence[Sample]) -> Iterator[Finding]:
    paths = dict.fromkeys(sample.path for sample in samples)
    yield from _finding("error", "{n} images are missing", (str(path) for path in paths if not path.is_file()))


def _files(samples: Sequence[Sample], workers: int, progress: Callable[[int], object] | None) -> Iterator[Finding]:
    yield from _missing(samples)
    keys = file_keys(sample.path for sample in samples)
    files = {keys[sample.path]: sample.path for sample in reversed(samples)}  # the first name of each file
    present = [path for path in dict.fromkeys(list(files.values())[::-1]) if path.is_file()]
    broken: list[str] = []
    same: dict[str, list[Path]] = defaultdict(list)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for path, (digest, fault) in zip(present, pool.map(_read_file, present), strict=True):
            if fault:
                broken.append(fault)
            else:
                same[digest].append(path)
            if progress is not None:
                progress(1)
    yield from _finding("error", "{n} images cannot be read", broken)
    yield from _duplicates(samples, [paths for paths in same.values() if len(paths) > 1])


def _read_file(path: Path) -> tuple[str, str]:
    """Return a digest of the file, and why the image cannot be read or ""."""
    try:
        read_image(path)
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(), ""
    except (DataError, OSError) as error:
        return "", " ".join(str(error).split())


def _duplicates(samples: Sequence[Sample], groups: Sequence[Sequence[Path]]) -> Iterator[Finding]:
    """Find files of the same bytes; they are worst where they contradict each other, or connect training and test."""
    rows: dict[Path, list[Sample]] = defaultdict(list)
    for sample in samples:
        rows[sample.path].append(sample)
    cases: dict[str, list[str]] = defaultdict(list)
    for paths in groups:
        shown = " = ".join(path.name for path in paths)
        members = [sample for path in paths for sample in rows[path]]
        trained = {sample.split is Split.TRAIN for sample in members}
        if len({sample.identity for sample in members if sample.identity}) > 1:
            cases["identities"].append(shown)
        elif len(trained) > 1:
            cases["splits"].append(shown)
        else:
            cases["same"].append(shown)
    yield from _finding("error", "{n} images are copies of each other under several identities", cases["identities"])
    yield from _finding("warning", "{n} images are copies of each other in training and test", cases["splits"])
    yield from _finding("warning", "{n} images are copies of each other under other names", cases["same"])


def _splits(samples: Sequence[Sample]) -> Iterator[Finding]:
    people: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for sample in samples:
        if sample.identity:
            people[sample.split is Split.TRAIN].add((sample.category, sample.identity))
    both = (f"{category} {name}" for category, name in sorted(people[True] & people[False]))
    yield from _finding(
        "warning", "{n} identities are in training and test: right only if the protocol wants it so", both
    )
    counts = Counter(str(sample.split) for sample in samples)
    shown = ", ".join(f"{counts[split]:,} {split}" for split in map(str, Split) if counts[split])
    yield Finding("note", f"{len(samples):,} rows: {shown}")


def _cameras(samples: Sequence[Sample], scoring: Scoring) -> Iterator[Finding]:
    tested = [sample for sample in samples if sample.split is not Split.TRAIN]
    if scoring.rule.ignore == "itself":
        return
    unknown = [str(sample.path) for sample in tested if not sample.camera]
    yield from _finding(
        "note",
        "{n} rows have no camera: only the very same image is left out for them, so scores are higher",
        unknown,
    )
    cameras: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in tested:
        if sample.identity and sample.camera:
            cameras[sample.category, sample.identity].add(scoring.locations.get(sample.camera, sample.camera))
    queries = {(sample.category, sample.identity) for sample in tested if sample.split is Split.QUERY}
    one_camera = (f"{key[1]} ({next(iter(cameras[key]))})" for key in sorted(cameras) if
                  key in queries and len(cameras[key]) == 1)  # fmt: skip
    yield from _finding("warning", "{n} identities of queries are in one camera only", one_camera)


def _unmatched_queries(samples: Sequence[Sample], scoring: Scoring) -> Iterator[Finding]:
    """Find the queries without a right answer, by the reason."""
    leave_one_out = scoring.rule.ignore == "itself"
    tested = [sample for sample in samples if sample.split is not Split.TRAIN]
    queries = [sample for sample in tested if leave_one_out or sample.split is Split.QUERY]
    gallery = [sample for sample in tested if leave_one_out or sample.split is Split.GALLERY]
    if not any(sample.identity for sample in samples):
        yield Finding("note", "identities are unknown: search and calibration work, nothing can be scored")
        return
    for split, rows in (("query", queries), ("gallery", gallery)):
        if not rows:
            yield Finding("error", f'no row of split "{split}": nothing can be evaluated')
    by_identity: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in gallery:
        by_identity[sample.category, sample.identity].append(sample)
    keys = file_keys(sample.path for sample in tested)
    reasons: dict[str, list[str]] = defaultdict(list)
    for query in queries:
        reason = _why_unmatched(query, by_identity.get((query.category, query.identity), []), scoring, keys)
        if reason:
            reasons[reason].append(str(query.path))
    if queries and sum(map(len, reasons.values())) == len(queries):
        yield Finding("error", "no query has a right answer: nothing can be evaluated")
    for reason, paths in reasons.items():
        yield from _finding("warning", f"{{n}} of {len(queries):,} queries have no right answer: {reason}", paths)


def _why_unmatched(query: Sample, same: Sequence[Sample], scoring: Scoring, keys: Mapping[Path, FileKey]) -> str:
    """Say why none of ``same``, the gallery rows of the query's identity, is a right answer; "" if one is."""
    if not query.identity:
        return "their identity is empty"
    if not same:
        return "their identity is not in the gallery"
    others = [sample for sample in same if keys[sample.path] != keys[query.path]]
    if not others:
        return "the gallery has only the very same image of them"
    if scoring.rule.ignore == "itself" or not query.camera:
        return ""
    location = scoring.locations.get(query.camera, query.camera)
    if all(scoring.locations.get(sample.camera, sample.camera) == location for sample in others):
        return "the gallery has their identity from their own camera (or location) only, which is left out"
    return ""


def _galleries(samples: Sequence[Sample], scoring: Scoring) -> Iterator[Finding]:
    """Check that the galleries of the trials can be drawn."""
    rows = [row for row, sample in enumerate(samples) if sample.split is Split.GALLERY]
    try:
        draw_galleries(samples, rows, scoring.rule, scoring.permutation)
    except DataError as error:
        yield Finding("error", str(error))
