"""Somebody's folder of crops becomes a manifest: labels are read from where the pictures lie and what they are called.

Known without help are ``camera/identity/*``, ``identity/*`` and a folder of pictures nobody labelled; anything
else is told by a pattern.  This module reads names only: it opens no picture, and it cannot know whether two
folders called 7 in two cameras show the same person, so it says what it took for granted.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from reid.data.manifest import write_manifest
from reid.data.protocols.data_sets import read_data
from reid.errors import DataError, unknown_name
from reid.old_names import current_fields
from reid.records import Modality, Sample, Split

MANIFEST = "manifest.csv"
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
FIELDS = ("camera", "identity", "time", "modality", "category", "split")
LAYOUTS = ("*", "{identity}/*", "{camera}/{identity}/*")  # by how many folders a picture lies in


@dataclass(frozen=True)
class Found:
    """What a folder turned out to hold: the manifest's rows, the pattern they were read by, files left out."""

    manifest: Path
    samples: tuple[Sample, ...]
    pattern: str
    others: int

    def lines(self) -> list[str]:
        """The findings for the user, one a line."""
        pictures = list({sample.path: sample for sample in self.samples}.values())
        identities = {(s.category, s.identity) for s in pictures if s.identity}
        queries = sum(sample.split is Split.QUERY for sample in self.samples)
        lines = [
            f"{self.manifest}: {len(pictures)} pictures, read as {self.pattern}",
            f"identities: {len(identities) or 'unknown'}",
            f"cameras: {_counts(s.camera for s in pictures) or 'unknown'}",
            f"queries: {queries}",
        ]
        if self.others:
            lines.append(f"left out: {self.others} files that are not pictures")
        return lines + _doubts(pictures)


def init_manifest(
    folder: Path, pattern: str | None = None, *, category: str = "person", overwrite: bool = False
) -> Found:
    """Write ``folder``/manifest.csv from the names of the pictures below it, and say what was found.

    ``pattern`` is matched with each path relative to ``folder``: {camera}, {identity}, {time}, {modality},
    {category} and {split} are read, * is anything, neither goes beyond a "/", as in
    "{camera}/{identity}_{time}.jpg".  Without {split} every picture is of the gallery, and the first of each
    identity in each camera is a query too, if another camera (where cameras are unknown: another picture)
    shows the identity.  Raises DataError for a picture that the pattern does not fit; nothing is written then.
    """
    manifest = _free(folder / MANIFEST, overwrite)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with pictures of people or vehicles")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if not pictures:
        raise DataError(f"{folder}: no pictures in it; expected files that end in {', '.join(sorted(PICTURES))}")
    pattern = pattern or _layout(folder, pictures)
    samples = list(_samples(folder, pictures, pattern, category))
    if "{split}" not in pattern:
        samples += _queries(samples)
    write_manifest(samples, manifest)
    others = len(files) - len(pictures) - (manifest in files)
    return Found(manifest, tuple(samples), pattern, others)


def init_protocol(folder: Path, protocol: str, *, overwrite: bool = False) -> Found:
    """Write the manifest of a published data set that lies in ``folder``, to train on it; say what was found.

    ``protocol`` is its name, with choices as in "regdb:trial=3": then the file is called manifest-trial-3.csv.
    """
    choices = re.sub(r"[^a-z0-9]+", "-", protocol.partition(":")[2].lower()).strip("-")
    manifest = _free(folder / (f"manifest-{choices}.csv" if choices else MANIFEST), overwrite)
    samples = read_data(protocol, folder)
    write_manifest(samples, manifest)
    return Found(manifest, samples, protocol, 0)


def _free(manifest: Path, overwrite: bool) -> Path:
    if manifest.exists() and not overwrite:
        raise DataError(f"{manifest} is there already; use it, or allow it to be written anew (--force)")
    return manifest


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern as :func:`init_manifest` describes it."""
    parts: list[str] = []
    for part in re.split(r"(\{[^{}]*\}|\*)", pattern):
        (name,) = current_fields([part[1:-1]])
        if part == "*":
            parts.append("[^/]*")
        elif not part.startswith("{"):
            parts.append(re.escape(part))
        elif name not in FIELDS:
            raise DataError(f"pattern {pattern}: {unknown_name('field', name, FIELDS)}")
        else:
            again = f"(?P<{name}>" in "".join(parts)  # a field that stands twice must say the same twice
            parts.append(f"(?P={name})" if again else f"(?P<{name}>[^/]+?)")
    return re.compile("".join(parts))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _layout(folder: Path, pictures: Sequence[Path]) -> str:
    """The layout that all pictures share, by how deep they lie."""
    examples: dict[int, Path] = {}
    for path in pictures:
        examples.setdefault(len(path.relative_to(folder).parts) - 1, path)
    if len(examples) == 1 and (depth := next(iter(examples))) < len(LAYOUTS):
        return LAYOUTS[depth]
    shown = ", ".join(path.relative_to(folder).as_posix() for _, path in sorted(examples.items()))
    raise DataError(
        f"{folder}: expected all pictures as camera/identity/*.jpg or identity/*.jpg, found {shown};"
        ' give a pattern such as "{camera}/{identity}_{time}.jpg"'
    )


def _samples(folder: Path, pictures: Sequence[Path], pattern: str, category: str) -> Iterator[Sample]:
    expression = compile_pattern(pattern)
    names = [path.relative_to(folder).as_posix() for path in pictures]
    matches = [expression.fullmatch(name) for name in names]
    strangers = [name for name, match in zip(names, matches, strict=True) if match is None]
    if strangers:
        raise DataError(
            f"{folder}: {strangers[0]} is not named like {pattern} ({len(strangers)} of {len(names)} pictures are"
            ' not); "*" in a pattern stands for anything'
        )
    for path, match in zip(pictures, matches, strict=True):
        if match is not None:
            yield _sample(path, {"category": category, **match.groupdict()})


def _sample(path: Path, fields: Mapping[str, str]) -> Sample:
    return Sample(
        path=path,
        identity=fields.get("identity", ""),
        camera=fields.get("camera", ""),
        modality=Modality(_known(path, "modality", fields.get("modality", Modality.VISIBLE), Modality)),
        category=fields["category"],
        split=Split(_known(path, "split", fields.get("split", Split.GALLERY), Split)),
        time=_time(path, fields["time"]) if "time" in fields else None,
    )


def _known(path: Path, kind: str, name: str, names: type[Modality] | type[Split]) -> str:
    if name not in list(names):
        raise DataError(f"{path}: {unknown_name(kind, name, [str(one) for one in names])}")
    return name


def _time(path: Path, text: str) -> datetime:
    """ISO 8601, or year to second in fourteen digits with anything between them."""
    digits = re.sub(r"\D", "", text)
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S") if len(digits) == 14 else datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f'{path}: "{text}" is no time such as 2024-05-31T16:20:00 or 20240531-162000; if it is something'
            " else, write * in its place"
        ) from None


def _queries(samples: Sequence[Sample]) -> list[Sample]:
    """The first picture of each identity in each camera, as a query, where it has a right answer."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.identity:
            groups[sample.category, sample.identity].append(sample)
    found = []
    for group in groups.values():
        firsts = {sample.camera: sample for sample in reversed(group)}
        answered = len(group) > 1 if set(firsts) == {""} else len(firsts) > 1
        found += [replace(sample, split=Split.QUERY) for sample in reversed(firsts.values()) if answered]
    return found


def _counts(labels: Iterator[str]) -> str:
    """ "a (12), b (7)": each label with how many pictures it has; "" where there are none."""
    counts = Counter(labels)
    unknown = counts.pop("", 0)
    told = [f"{name} ({number})" for name, number in sorted(counts.items())]
    return ", ".join([*told, *([f"unknown ({unknown})"] if told and unknown else [])])


def _doubts(pictures: Sequence[Sample]) -> list[str]:
    """What a user should know before trusting the manifest."""
    cameras: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in pictures:
        if sample.identity:
            cameras[sample.category, sample.identity].add(sample.camera)
    doubts = []
    if all(not sample.camera for sample in pictures):
        doubts.append("cameras are unknown: nothing can be calibrated by camera; name them by a pattern")
    elif cameras and all(len(seen) == 1 for seen in cameras.values()):
        doubts.append("no identity is seen by two cameras: nothing can be scored across cameras")
    if not cameras:
        doubts.append("identities are unknown: search and calibration work, nothing can be scored")
    return doubts
