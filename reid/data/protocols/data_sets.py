"""Data sets by name: a table says how the published files become samples and how they are scored.

This module finds the tables, walks the folders they describe and compares the authors' counts.  It
opens no picture and downloads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from reid.data.manifest import read_manifest
from reid.data.protocols.division import divide
from reid.data.protocols.protocol_table import FileGroup, Protocol, Rule, fill, parse_protocol
from reid.data.protocols.track_lists import with_tracks
from reid.errors import DataError, unknown_name
from reid.records import Sample, Split

TABLE = "protocol.toml"
CARD = "card.md"


@dataclass(frozen=True)
class Scoring:
    """How a data set is to be scored.

    ``variant`` says which choices of the protocol were made; ``locations`` maps a camera to the one that
    it shares a place with; ``permutation`` is the file that fixes the galleries of the trials, if any.
    """

    rule: Rule = field(default_factory=Rule)
    variant: Mapping[str, str] = field(default_factory=dict)
    locations: Mapping[str, str] = field(default_factory=dict)
    permutation: Path | None = None


@dataclass(frozen=True)
class DataSet:
    """Samples, the name of their protocol and how they are scored; ``protocol`` is None for a manifest."""

    name: str
    samples: tuple[Sample, ...]
    scoring: Scoring
    protocol: Protocol | None = None


def known_protocols() -> list[str]:
    """Names of the protocols that come with the program."""
    return sorted(entry.name for entry in _tables().iterdir() if entry.joinpath(TABLE).is_file())


def load_protocol(name: str) -> Protocol:
    """The protocol called ``name``; an unknown name is a :class:`DataError` that lists the known."""
    if name not in known_protocols():
        if _is_card_only(name):
            raise DataError(f"{name}: documented but not offered, see datasets/{name}/{CARD}")
        raise DataError(unknown_name("data set", name, known_protocols()))
    return parse_protocol(_tables().joinpath(name, TABLE).read_text(encoding="utf-8"), f"datasets/{name}/{TABLE}")


def _is_card_only(name: str) -> bool:
    """Whether ``name`` is a data set that is described but not read, as one that was withdrawn."""
    folder = _tables().joinpath(name) if re.fullmatch(r"\w+", name) else None
    return folder is not None and folder.joinpath(CARD).is_file() and not folder.joinpath(TABLE).is_file()


def _tables() -> Traversable:
    """The folder of protocols: inside the package when installed from a wheel, else the checkout's."""
    packaged = resources.files("reid").joinpath("_datasets")
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "datasets"


def protocol_samples(protocol: Protocol, root: Path, **variant: object) -> tuple[Sample, ...]:
    """The samples of the data set that lies in ``root``, parts in the order of the table.

    ``variant`` picks choices of the protocol's variants, e.g. ``trial=3``.  A missing folder or
    list, and a file name that the pattern does not know, are :class:`DataError`.
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
    samples = tuple(sample for part in protocol.parts for sample in _tracked(protocol, part, root, words))
    _check_distinct(protocol, samples)
    return divide(samples, protocol.division, root, words) if protocol.division else samples


def count_differences(protocol: Protocol, samples: Sequence[Sample], **variant: object) -> list[str]:
    """One line for every published count that ``samples`` do not have; [] when all agree."""
    lines = []
    words = protocol.choose(variant)
    distractors = {identity for part in protocol.parts for identity in part.distractors}
    for split, published in protocol.counts.items():
        rows = [sample for sample in samples if sample.split is split]
        identities = {sample.identity for sample in rows} - distractors
        for kind, expected, found in (
            ("images", published.images, len(rows)),
            ("identities", published.identities, len(identities)),
            ("tracks", published.tracks, len({sample.track for sample in rows if sample.track})),
        ):
            if expected is not None and int(fill(str(expected), words)) != found:
                lines.append(f"{protocol.title}, {split}: expected {fill(str(expected), words)} {kind}, found {found}")
    return lines


def read_data(spec: str, root: Path | None = None) -> tuple[Sample, ...]:
    """The samples of :func:`open_data`."""
    return open_data(spec, root).samples


def open_data(spec: str, root: Path | None = None, rule: Mapping[str, str] | None = None) -> DataSet:
    """A manifest, a folder that holds ``manifest.csv``, one's own ``protocol.toml``, or a known data set.

    A data set is named as "market1501", its variants after a colon as in
    "sysu_mm01:search=indoor" or "regdb:trial=3,direction=thermal-to-visible"; ``root`` is the
    folder it was unpacked to.  ``rule`` holds settings of :class:`Rule` that differ from the
    protocol's; they may stand among the variants too, as in "market1501:precision=trapezoid".
    """
    path = Path(spec)
    if path.is_file() and path.name != TABLE:
        return DataSet(path.resolve().parent.name, read_manifest(path), Scoring(Rule().changed(rule or {})))
    name, _, choices = spec.partition(":")
    if path.is_file():
        own = parse_protocol(path.read_text(encoding="utf-8"), str(path))
        return _open(own, root or path.parent, {}, rule or {})
    if name in known_protocols() and (root is not None or not path.is_dir()):
        protocol = load_protocol(name)
        if root is None:
            raise DataError(f"{protocol.title}: which folder is it in? pass its root; {protocol.obtain}")
        return _open(protocol, root, _choices(choices, spec), rule or {})
    if path.is_dir():
        return DataSet(path.resolve().name, read_manifest(path / "manifest.csv"), Scoring(Rule().changed(rule or {})))
    if _is_card_only(name):
        load_protocol(name)
    raise DataError(f"{spec}: no such manifest, and {unknown_name('data set', name, known_protocols())}")


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
    """``spec``, or one for each choice where it says "all" of a variant, as in "regdb:trial=all"."""
    name, _, text = spec.partition(":")
    if Path(spec).exists() or name not in known_protocols():
        return [spec]
    chosen = [_choices(text, spec)]
    for key, variant in load_protocol(name).variants.items():
        if chosen[0].get(key) == "all" and "all" not in variant.choices:
            chosen = [{**one, key: choice} for one in chosen for choice in variant.choices]
    pairs = [",".join(f"{key}={value}" for key, value in one.items()) for one in chosen]
    return [f"{name}:{pair}" if pair else name for pair in pairs]


def _choices(text: str, spec: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in text.split(",")] if text else []
    if not all(key and equals and value for key, equals, value in pairs):
        raise DataError(f'{spec}: expected "name:key=value,key=value"')
    return {key.strip(): value.strip() for key, _, value in pairs}


def _not_found(protocol: Protocol, what: Path | str, root: Path) -> DataError:
    return DataError(f"{protocol.title}: expected {what} in {root}, found none; {protocol.obtain}")


def _tracked(protocol: Protocol, part: FileGroup, root: Path, words: Mapping[str, str]) -> list[Sample]:
    samples = list(_part_samples(protocol, part, root, words))
    if not (name := fill(part.tracks, words)):
        return samples
    return with_tracks(samples, _read(protocol, root / name, root), root / name)


def _part_samples(protocol: Protocol, part: FileGroup, root: Path, words: Mapping[str, str]) -> Iterator[Sample]:
    wanted = _listed_identities(protocol, part, root, words)
    pattern = re.compile(part.pattern)
    skip = {_plain(identity) for identity in part.skip}
    found = False
    for place, text, folder in _entries(protocol, part, root, words):
        match = pattern.fullmatch(text)
        if match is None:
            raise DataError(
                f"{place}: {text!r} is not named as {protocol.title} names its files, such as {part.example()};"
                " mend the name, or move what is no part of it away"
            )
        groups = match.groupdict()
        identity = _plain(groups["identity"])
        if identity in skip or (wanted is not None and identity not in wanted):
            continue
        found = True
        camera = fill(part.camera, {**words, **groups})
        yield Sample(
            path=folder / groups.get("path", text),
            identity=fill(part.identity, {**words, **groups}),
            camera=camera,
            modality=protocol.modality(camera),
            category=protocol.category,
            split=part.split,
        )
    if not found:
        of_listed = f" of the identities in {', '.join(part.identity_files)}" if part.identity_files else ""
        raise _not_found(protocol, f"{part.split} images {fill(part.glob or part.list, words)}{of_listed}", root)


def _entries(
    protocol: Protocol, part: FileGroup, root: Path, words: Mapping[str, str]
) -> Iterator[tuple[str, str, Path]]:
    """(place for errors, text for the pattern, folder its path is relative to) of each file of a part."""
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
    """Identities of the part's identity files, None where it has no such files."""
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
    """A number without leading zeros: lists write 7 where folders are called 0007."""
    return str(int(identity)) if re.fullmatch(r"-?\d+", identity) else identity


def _check_distinct(protocol: Protocol, samples: Sequence[Sample]) -> None:
    seen: set[tuple[Path, Split]] = set()
    for sample in samples:
        if (sample.path, sample.split) in seen:
            raise DataError(f"{protocol.title}: {sample.path} is listed twice in split {sample.split}")
        seen.add((sample.path, sample.split))
