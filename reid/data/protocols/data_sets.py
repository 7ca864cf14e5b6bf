"""Open data sets: a manifest, or a published data set by the table that describes it.

This module finds the tables, reads the file names that they describe and compares the numbers of images with those that
the authors published.  It opens no image and downloads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from reid.data.label_text import clean_text
from reid.data.manifest import read_manifest, read_table
from reid.data.protocols.division import divide
from reid.data.protocols.protocol_table import (
    FileGroup,
    Protocol,
    Rule,
    fill,
    parse_protocol,
    read_protocol,
    similar_name,
)
from reid.data.protocols.track_lists import with_tracks
from reid.errors import DataError, unknown_name
from reid.files import require_regular_file
from reid.records import Sample, Split

TABLE = "protocol.toml"
MANIFEST = "manifest.csv"
CARD = "card.md"


@dataclass(frozen=True)
class Scoring:
    """How a data set is scored.

    Args:
        rule: The rule of the protocol.
        variant: The choices of the protocol that the user made, and the defaults of the others.
        locations: Maps a camera to another camera that stands at the same location.
        permutation: The file that fixes the galleries of the trials; None where there is no such file.
    """

    rule: Rule = field(default_factory=Rule)
    variant: Mapping[str, str] = field(default_factory=dict)
    locations: Mapping[str, str] = field(default_factory=dict)
    permutation: Path | None = None


@dataclass(frozen=True)
class DataSet:
    """Samples and how they are scored.

    Args:
        name: The name of the protocol, or of the folder of a manifest.
        samples: All rows.
        scoring: How they are scored.
        protocol: The table; None for a manifest.
        notes: What a user should know about how a manifest was read, one sentence each.
        more: The texts of further columns of a manifest by their names, in the order of the samples.
    """

    name: str
    samples: tuple[Sample, ...]
    scoring: Scoring
    protocol: Protocol | None = None
    notes: tuple[str, ...] = ()
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)


def known_protocols() -> list[str]:
    """List the names of the protocols that come with the program."""
    return sorted(entry.name for entry in _tables().iterdir() if entry.joinpath(TABLE).is_file())


def load_protocol(name: str) -> Protocol:
    """Read a protocol that comes with the program.

    Raises:
        DataError: The name is unknown, or the data set is documented but not offered.

    Example:
        >>> load_protocol("market1501").title
        'Market-1501'
    """
    if name not in known_protocols():
        if _is_card_only(name):
            raise DataError(f"{name}: documented but not offered, see datasets/{name}/{CARD}")
        raise DataError(unknown_name("data set", name, known_protocols()))
    return parse_protocol(_tables().joinpath(name, TABLE).read_text(encoding="utf-8"), f"datasets/{name}/{TABLE}")


def _is_card_only(name: str) -> bool:
    """Whether a data set has a card but no table, because it was withdrawn."""
    folder = _tables().joinpath(name) if re.fullmatch(r"\w+", name) else None
    return folder is not None and folder.joinpath(CARD).is_file() and not folder.joinpath(TABLE).is_file()


def _tables() -> Traversable:
    """Find the folder of protocols: inside an installed package, or beside the package in a checkout."""
    packaged = resources.files("reid").joinpath("_datasets")
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "datasets"


def protocol_samples(protocol: Protocol, root: Path, **variant: object) -> tuple[Sample, ...]:
    """Read the samples of a published data set.

    Args:
        protocol: The table.
        root: The folder that holds the data set.
        **variant: Choices of the protocol's variants, such as ``trial=3``.

    Returns:
        The samples, in the order of the parts in the table.

    Raises:
        DataError: A folder, list or file is missing, a file name does not match its pattern, or a choice is unknown.
    """
    return _samples(protocol, root, protocol.choose(variant))


def _samples(protocol: Protocol, root: Path, words: Mapping[str, str]) -> tuple[Sample, ...]:
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


def count_differences(protocol: Protocol, samples: Sequence[Sample], **variant: object) -> list[str]:
    """Compare samples with the numbers that the authors published.

    Args:
        protocol: The table with the published numbers.
        samples: The samples of a copy of the data set.
        **variant: The choices by which the samples were read.

    Returns:
        One line for every number that differs.
    """
    lines = []
    words = protocol.choose(variant)
    distractors = {identity for part in protocol.parts for identity in part.distractors}
    for split, published in protocol.counts.items():
        rows = [sample for sample in samples if sample.split is split]
        identities = {sample.identity for sample in rows} - distractors
        for unit, expected, found in (
            ("images", published.images, len(rows)),
            ("identities", published.identities, len(identities)),
            ("tracks", published.tracks, len({sample.track for sample in rows if sample.track})),
        ):
            if expected is not None and int(fill(str(expected), words)) != found:
                lines.append(f"{protocol.title}, {split}: expected {fill(str(expected), words)} {unit}, found {found}")
    return lines


def read_data(spec: str, root: Path | None = None) -> tuple[Sample, ...]:
    """Read only the samples of a data set; the arguments and errors are those of :func:`open_data`."""
    return open_data(spec, root).samples


def open_data(spec: str, root: Path | None = None, rule: Mapping[str, str] | None = None) -> DataSet:
    """Open a data set.

    Args:
        spec: A manifest, a folder that holds ``manifest.csv``, a ``protocol.toml`` of the user's, or the name of a
            known data set.  Choices follow the name after a colon, as in "regdb:trial=3,direction=thermal-to-visible";
            settings of the rule may stand among them, as in "market1501:precision=trapezoid".
        root: The folder that holds the data set; only a manifest or a folder needs none.
        rule: Settings of :class:`Rule` that differ from those of the protocol.

    Returns:
        The data set.

    Raises:
        DataError: The data set is unknown or not complete, or a choice or a setting is unknown.
    """
    path = Path(spec)
    if path.is_file() and path.name != TABLE:
        return _open_manifest(path, path.resolve().parent.name, rule)
    require_regular_file(path, "manifest")
    name, _, choices = spec.partition(":")
    if path.is_file():
        own = read_protocol(path)
        return _open(own, root or path.parent, {}, rule or {})
    if name in known_protocols() and (root is not None or not path.is_dir()):
        protocol = load_protocol(name)
        if root is None:
            raise DataError(f"{protocol.title}: which folder is it in? pass its root; {protocol.obtain}")
        return _open(protocol, root, _choices(choices, spec), rule or {})
    if path.is_dir():
        if not (path / MANIFEST).exists() and (similar := similar_name(path.resolve().name, known_protocols())):
            raise DataError(
                f"{path}: holds no {MANIFEST}; if it is {load_protocol(similar).title}, name it by --data {similar}"
                f" --root {path}"
            )
        return _open_manifest(path / MANIFEST, path.resolve().name, rule)
    if _is_card_only(name):
        load_protocol(name)
    similar = similar_name(path.name, known_protocols())
    hint = f"; for {load_protocol(similar).title} write --data {similar} and its folder as --root" if similar else ""
    raise DataError(f"{spec}: no such manifest, and {unknown_name('data set', name, known_protocols())}{hint}")


def _open_manifest(path: Path, name: str, rule: Mapping[str, str] | None) -> DataSet:
    reading = read_table(path)
    return DataSet(name, reading.samples, Scoring(Rule().changed(rule or {})), notes=reading.notes, more=reading.more)


def _open(protocol: Protocol, root: Path, chosen: Mapping[str, str], rule: Mapping[str, str]) -> DataSet:
    for key in chosen:
        if key not in (known := [*protocol.variants, *Rule.model_fields]):
            raise DataError(f"{protocol.title}: {unknown_name('variant', key, known)}")
    settings = {key: value for key, value in chosen.items() if key in Rule.model_fields}
    words = protocol.choose({key: value for key, value in chosen.items() if key not in settings})
    scoring = Scoring(
        protocol.scoring(words).changed({**settings, **rule}),
        {key: words[key] for key in protocol.variants},
        protocol.locations,
        root / protocol.permutation if protocol.permutation else None,
    )
    return DataSet(protocol.name, _samples(protocol, root, words), scoring, protocol)


def all_choices(spec: str) -> list[str]:
    """Expand the choice "all" of a variant to one specification for each choice.

    Args:
        spec: A specification as :func:`open_data` takes it.

    Returns:
        The specifications; ``spec`` itself where no variant is "all".

    Raises:
        DataError: ``spec`` is not of the form "name:key=value,key=value".

    Example:
        >>> all_choices("street:site=all")
        ['street:site=a', 'street:site=b']
    """
    name, _, text = spec.partition(":")
    if Path(spec).exists() or name not in known_protocols():
        return [spec]
    chosen = [_choices(text, spec)]
    for key, variant in load_protocol(name).variants.items():
        if chosen[0].get(key) == "all" and "all" not in variant.choices:
            chosen = [{**choices, key: choice} for choices in chosen for choice in variant.choices]
    pairs = [",".join(f"{key}={value}" for key, value in choices.items()) for choices in chosen]
    return [f"{name}:{pair}" if pair else name for pair in pairs]


def _choices(text: str, spec: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in text.split(",")] if text else []
    if not all(key and equals and value for key, equals, value in pairs):
        raise DataError(f'{spec}: expected "name:key=value,key=value"')
    return {key.strip(): value.strip() for key, _, value in pairs}


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
