"""Read the file names of a published data set as its table describes them.

This module opens lists and manifests, but no image, and it downloads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reid.data.label_text import clean_text
from reid.data.manifest import read_manifest
from reid.data.protocols.division import divide
from reid.data.protocols.protocol_table import FileGroup, Protocol, fill
from reid.data.protocols.track_lists import with_tracks
from reid.errors import DataError
from reid.records import Sample, Split


def read_files(protocol: Protocol, root: Path, words: Mapping[str, str]) -> tuple[Sample, ...]:
    """Read the samples of a published data set from the names of its files, or from its manifest.

    Args:
        protocol: The table that describes the files.
        root: The folder that holds the data set.
        words: The words for the templates of the table, from :meth:`Protocol.choose`.

    Returns:
        The samples, in the order of the parts in the table.

    Raises:
        DataError: A folder, list or file is missing, a file name does not match its pattern, or a file is listed twice.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected {protocol.title} there; {protocol.obtain}")
    for name in protocol.folders:
        if not (root / fill(name, words)).is_dir():
            raise _not_found(protocol, f"the folder {fill(name, words)}", root)
    if protocol.manifest:
        path = root / fill(protocol.manifest, words)
        if not path.is_file():
            raise _not_found(protocol, path.relative_to(root), root)
        return read_manifest(path)
    samples = tuple(sample for part in protocol.parts for sample in _part_with_tracks(protocol, part, root, words))
    _check_distinct(protocol, samples)
    return divide(samples, protocol.division, root, words) if protocol.division else samples


def _not_found(protocol: Protocol, what: Path | str, root: Path) -> DataError:
    return DataError(f"{protocol.title}: expected {what} in {root}, found none; {protocol.obtain}")


def _part_with_tracks(protocol: Protocol, part: FileGroup, root: Path, words: Mapping[str, str]) -> list[Sample]:
    samples = list(_part_samples(protocol, part, root, words))
    if not (name := fill(part.tracks, words)):
        return samples
    return with_tracks(samples, _read(protocol, root / name, root), root / name)


def _part_samples(protocol: Protocol, part: FileGroup, root: Path, words: Mapping[str, str]) -> Iterator[Sample]:
    wanted = _listed_identities(protocol, part, root, words)
    pattern = re.compile(part.pattern)
    skip = {_plain(identity) for identity in part.skip}
    found = False
    for where, text, folder in _entries(protocol, part, root, words):
        match = pattern.fullmatch(text)
        if match is None:
            raise DataError(
                f"{where}: {text!r} is not named as {protocol.title} names its files, such as {part.example()};"
                " mend the name, or move away what does not belong to the data set"
            )
        groups = match.groupdict()
        identity = _plain(groups["identity"])
        if identity in skip or (wanted is not None and identity not in wanted):
            continue
        found = True
        camera = fill(part.camera, {**words, **groups})
        yield Sample(
            path=folder / groups.get("path", text),
            identity=clean_text(fill(part.identity, {**words, **groups})),
            camera=clean_text(camera),
            modality=protocol.modality(camera),
            category=protocol.category,
            split=part.split,
        )
    if not found:
        listed = f" of the identities in {', '.join(part.identity_files)}" if part.identity_files else ""
        raise _not_found(protocol, f"{part.split} images {fill(part.glob or part.list, words)}{listed}", root)


def _entries(
    protocol: Protocol, part: FileGroup, root: Path, words: Mapping[str, str]
) -> Iterator[tuple[str, str, Path]]:
    """Yield for each file of a part where it is listed (for errors), the text for the pattern, and its folder."""
    if part.glob:
        for path in sorted(root.glob(fill(part.glob, words))):
            yield str(root), path.relative_to(root).as_posix(), root
        return
    path, folder = root / fill(part.list, words), root / fill(part.folder, words)
    if not folder.is_dir():
        raise _not_found(protocol, f"the folder {folder.relative_to(root)}", root)
    for number, line in enumerate(_read(protocol, path, root).splitlines(), start=1):
        if number > part.header and line.strip():
            yield f"{path}, line {number}", line.strip(), folder


def _listed_identities(
    protocol: Protocol, part: FileGroup, root: Path, words: Mapping[str, str]
) -> frozenset[str] | None:
    """Read the identities in the identity files of a part; None where it has no such files."""
    if not part.identity_files:
        return None
    texts = [_read(protocol, root / fill(name, words), root) for name in part.identity_files]
    identities = {_plain(word) for text in texts for word in re.split(r"[,\s]+", text) if word}
    return frozenset(identities)


def _read(protocol: Protocol, path: Path, root: Path) -> str:
    if not path.is_file():
        raise _not_found(protocol, path.relative_to(root), root)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({type(error).__name__})") from error


def _plain(identity: str) -> str:
    """Drop leading zeros of a number, because lists write 7 where folders are called 0007."""
    return str(int(identity)) if re.fullmatch(r"-?\d+", identity) else identity


def _check_distinct(protocol: Protocol, samples: Sequence[Sample]) -> None:
    known: set[tuple[Path, Split]] = set()
    for sample in samples:
        if (sample.path, sample.split) in known:
            raise DataError(f"{protocol.title}: {sample.path} is listed twice in split {sample.split}")
        known.add((sample.path, sample.split))
