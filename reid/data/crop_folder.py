"""Turn a folder of crops into a manifest: labels are read from the paths of the images.

Layouts such as ``camera/identity/*``, ``identity/*``, and images without labels are known without help.  A pattern
describes any other layout.  Labels come from names only; a few images are opened to notice infrared cameras.
"""

from __future__ import annotations

import errno
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from reid.data.file_times import read_time
from reid.data.folder_layouts import Choose, explain, find_layouts, list_files, means_nobody
from reid.data.grey_images import grey_cameras
from reid.data.images import IMAGE_SUFFIXES
from reid.data.label_text import clean_label, means_unknown
from reid.data.manifest import write_manifest
from reid.data.protocols.data_sets import read_data
from reid.errors import DataError, unknown_name
from reid.old_names import current_fields
from reid.records import Modality, Sample, Split

MANIFEST = "manifest.csv"
FIELDS = ("camera", "identity", "time", "modality", "category", "split")
SHOWN = 5  # names that a line lists


@dataclass(frozen=True)
class InitResult:
    """What :func:`init_manifest` or :func:`init_protocol` found and wrote.

    Args:
        manifest: The file that was written.
        samples: Its rows.
        pattern: The pattern or protocol by which the names were read.
        other_files: How many files below the folder are not images.
        remarks: What was assumed, left out or noticed, one sentence each.
    """

    manifest: Path
    samples: tuple[Sample, ...]
    pattern: str
    other_files: int
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Describe the result for the user, one finding a line."""
        images = list({sample.path: sample for sample in self.samples}.values())
        identities = {(s.category, s.identity) for s in images if s.identity}
        queries = sum(sample.split is Split.QUERY for sample in self.samples)
        lines = [
            f"{self.manifest}: {len(images)} images, read as {self.pattern}",
            f"identities: {len(identities) or 'unknown'}",
            f"cameras: {_counts(s.camera for s in images) or 'unknown'}",
            f"queries: {queries}",
            *_rows_of_categories(self.samples),
        ]
        if self.other_files:
            lines.append(f"left out: {self.other_files} files that are not images")
        return [*lines, *self.remarks, *_limitations(images)]


def init_manifest(
    folder: Path,
    pattern: str | None = None,
    *,
    category: str = "person",
    overwrite: bool = False,
    choose: Choose | None = None,
    infrared: Collection[str] = (),
) -> InitResult:
    """Write ``folder``/manifest.csv from the names of the images below a folder.

    Without {split} in the pattern every image belongs to the gallery.  The first image of each identity in each camera
    is a query too, if another camera shows the identity; where cameras are unknown, another image is enough.

    Args:
        folder: The folder with the images.
        pattern: Matched with each path relative to ``folder``, such as "{camera}/{identity}_{time}.jpg".  The fields
            {camera}, {identity}, {time}, {modality}, {category} and {split} are read; * matches anything; neither
            goes beyond a "/".  None chooses one of the known layouts.
        category: What the crops show, where the pattern does not say it.
        overwrite: Replace an existing manifest.
        choose: Chooses between layouts where it is not clear what the folders mean; None takes the most likely one.
        infrared: The cameras that record infrared light.

    Returns:
        What was found.

    Raises:
        DataError: There are no images, the pattern does not match one of them, an infrared camera has no image, or the
            manifest exists.  Nothing is written then.
    """
    manifest = _new_manifest(folder / MANIFEST, overwrite)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with images of people or vehicles")
    listing = list_files(folder)
    files, remarks = listing.files, listing.remarks
    images = [path for path in files if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{folder}: no images in it; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if pattern is None:
        layouts = find_layouts(folder, images)
        layout = choose(layouts) if choose and len(layouts) > 1 else layouts[0]
        pattern = layout.pattern
        remarks += explain(layouts, layout)
    samples = _with_infrared(list(_read_samples(folder, images, pattern, category)), infrared)
    remarks += [*_nobody(folder, samples, pattern), *_endings(set(files) - set(images) - {manifest}), *_grey(samples)]
    if "{split}" not in pattern:
        samples += _choose_queries(samples)
    _write(samples, manifest)
    other_files = len(files) - len(images) - (manifest in files)
    return InitResult(manifest, tuple(samples), pattern, other_files, tuple(remarks))


def _with_infrared(samples: list[Sample], infrared: Collection[str]) -> list[Sample]:
    """List the images of some cameras as infrared."""
    cameras = {sample.camera for sample in samples}
    for camera in infrared:
        if camera not in cameras:
            raise DataError(f"--infrared: {unknown_name('camera', camera, sorted(cameras - {''}))}")
    return [replace(one, modality=Modality.INFRARED) if one.camera in infrared else one for one in samples]


def samples_in_folder(folder: Path, pattern: str, category: str = "person") -> tuple[Sample, ...]:
    """Read the labels of the images below a folder from their paths, and write nothing.

    Args:
        folder: The folder.
        pattern: As for :func:`init_manifest`.
        category: What the crops show, where the pattern does not say it.

    Returns:
        One sample for each image.

    Raises:
        DataError: The pattern does not match an image.
    """
    images = [path for path in list_files(folder).files if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    return tuple(_read_samples(folder, images, pattern, category))


def init_protocol(folder: Path, protocol: str, *, overwrite: bool = False) -> InitResult:
    """Write the manifest of a published data set that lies in a folder.

    Args:
        folder: The folder of the data set.
        protocol: Its name, with choices as in "regdb:trial=3"; then the file is called manifest-trial-3.csv.
        overwrite: Replace an existing manifest.

    Returns:
        What was found.

    Raises:
        DataError: The data set is unknown or not complete, or the manifest exists.
    """
    choices = re.sub(r"[^a-z0-9]+", "-", protocol.partition(":")[2].lower()).strip("-")
    manifest = _new_manifest(folder / (f"manifest-{choices}.csv" if choices else MANIFEST), overwrite)
    samples = read_data(protocol, folder)
    _write(samples, manifest)
    return InitResult(manifest, samples, protocol, 0)


def _rows_of_categories(samples: Iterable[Sample]) -> list[str]:
    """Return for each category how many rows of each split the manifest has, one line each."""
    rows = Counter((sample.category, sample.split) for sample in samples)
    return [
        f"rows of category {category}: " + ", ".join(f"{rows[category, split]} {split}" for split in Split)
        for category in sorted({category for category, _ in rows})
    ]


def _new_manifest(manifest: Path, overwrite: bool) -> Path:
    if manifest.exists() and not overwrite:
        raise DataError(f"{manifest} is there already; use it, or allow it to be written anew (--force)")
    return manifest


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of :func:`init_manifest` to a regular expression.

    Raises:
        DataError: A field is unknown.

    Example:
        >>> compile_pattern("{camera}/{identity}_*.jpg").fullmatch("door/anna_1.jpg").groupdict()
        {'camera': 'door', 'identity': 'anna'}
    """
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
            repeated = f"(?P<{name}>" in "".join(parts)  # a repeated field must have the same value each time
            parts.append(f"(?P={name})" if repeated else f"(?P<{name}>[^/]+?)")
    return re.compile("".join(parts))


def _read_samples(folder: Path, images: Sequence[Path], pattern: str, category: str) -> Iterator[Sample]:
    expression = compile_pattern(pattern)
    names = [path.relative_to(folder).as_posix() for path in images]
    matches = [expression.fullmatch(name) for name in names]
    misnamed = [name for name, match in zip(names, matches, strict=True) if match is None]
    if misnamed:
        raise DataError(
            f"{folder}: {misnamed[0]} is not named like {pattern} ({len(misnamed)} of {len(names)} images are"
            ' not); "*" in a pattern stands for anything'
        )
    for path, match in zip(images, matches, strict=True):
        if match is not None:
            yield _read_sample(path, {"category": category, **match.groupdict()})


def _read_sample(path: Path, fields: Mapping[str, str]) -> Sample:
    return Sample(
        path=path,
        identity="" if means_nobody(identity := clean_label(fields.get("identity", ""))) else identity,
        camera="" if means_unknown(camera := clean_label(fields.get("camera", ""))) else camera,
        modality=Modality(_known_name(path, "modality", fields.get("modality", Modality.VISIBLE), Modality)),
        category=clean_label(fields["category"]),
        split=Split(_known_name(path, "split", fields.get("split", Split.GALLERY), Split)),
        time=_parse_time(path, fields["time"]) if "time" in fields else None,
    )


def _known_name(path: Path, field: str, name: str, names: type[Modality] | type[Split]) -> str:
    if name not in list(names):
        raise DataError(f"{path}: {unknown_name(field, name, [str(known) for known in names])}")
    return name


def _parse_time(path: Path, text: str) -> datetime:
    try:
        return read_time(text)
    except ValueError:
        raise DataError(
            f'{path}: "{text}" is no time such as 2024-05-31T16:20:00 or 20240531-162000; if it is something'
            " else, write * in its place"
        ) from None


def _choose_queries(samples: Sequence[Sample]) -> list[Sample]:
    """Make the first image of each identity in each camera a query, where it has a right answer."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.identity:
            groups[sample.category, sample.identity].append(sample)
    queries = []
    for group in groups.values():
        firsts = {sample.camera: sample for sample in reversed(group)}
        has_answer = len(group) > 1 if set(firsts) == {""} else len(firsts) > 1
        queries += [replace(sample, split=Split.QUERY) for sample in reversed(firsts.values()) if has_answer]
    return queries


def _nobody(folder: Path, samples: Sequence[Sample], pattern: str) -> list[str]:
    """Say which images have a name for nobody or for an unknown camera in their path."""
    expression = compile_pattern(pattern)
    words: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        match = expression.fullmatch(sample.path.relative_to(folder).as_posix())
        for name in ("identity", "camera"):
            if match is not None and not getattr(sample, name) and (word := match.groupdict().get(name)):
                words[name, word] += 1
    return [
        f'{count} images have the {name} "{word}", which was taken for unknown' for (name, word), count in words.items()
    ]


def _endings(others: Iterable[Path]) -> list[str]:
    """Say how the files that are not images end."""
    endings = Counter(path.suffix.lower() or "no ending" for path in others)
    shown = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(SHOWN))
    return [f"endings of the files that are left out: {shown}"] if endings else []


def _grey(samples: Sequence[Sample]) -> list[str]:
    """Say which cameras look like infrared cameras."""
    cameras = [camera or "unknown" for camera in grey_cameras(samples)]
    more = f" and {len(cameras) - SHOWN} more" if len(cameras) > SHOWN else ""
    return [
        f"grey images, as of an infrared camera: {', '.join(cameras[:SHOWN])}{more}; they are listed as visible, so"
        " if a camera is infrared, name it by --infrared, or write infrared in the column modality"
    ] if cameras else []  # fmt: skip


def _counts(names: Iterator[str]) -> str:
    """List each name with its number of images, as in "a (12), b (7)"; "" where no name is known."""
    counts = Counter(names)
    unknown = counts.pop("", 0)
    known = [f"{name} ({number})" for name, number in sorted(counts.items())]
    return ", ".join([*known, *([f"unknown ({unknown})"] if known and unknown else [])])


def _limitations(images: Sequence[Sample]) -> list[str]:
    """Say what cannot be done with the manifest because labels are missing."""
    cameras: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in images:
        if sample.identity:
            cameras[sample.category, sample.identity].add(sample.camera)
    lines = []
    if all(not sample.camera for sample in images):
        lines.append("cameras are unknown: nothing can be calibrated by camera; name them by a pattern")
    elif cameras and all(len(names) == 1 for names in cameras.values()):
        lines.append("no identity is seen by two cameras: nothing can be scored across cameras")
    if not cameras:
        lines.append("identities are unknown: search and calibration work, nothing can be scored")
    return lines


def _write(samples: Sequence[Sample], manifest: Path) -> None:
    try:
        write_manifest(samples, manifest)
    except OSError as error:
        cure = (
            "free some space"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else "make its folder writable"
        )
        raise DataError(f"{manifest}: cannot be written ({error.strerror or error}); {cure}") from error
