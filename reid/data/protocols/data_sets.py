"""Open data sets: a manifest, or a published data set by the table that describes it.

This module finds the tables and understands the choices of the user.  It compares the numbers of images with those that
the authors published.  :mod:`reid.data.protocols.protocol_files` reads the names of the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from reid.data.manifest import read_table
from reid.data.protocols.protocol_files import read_files
from reid.data.protocols.protocol_table import Protocol, Rule, fill, parse_protocol, read_protocol
from reid.errors import DataError, unknown_name
from reid.files import require_regular_file
from reid.records import Sample

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
    return read_files(protocol, root, protocol.choose(variant))


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
    return DataSet(protocol.name, read_files(protocol, root, words), scoring, protocol)


def similar_name(name: str, protocols: Iterable[str]) -> str:
    """Find the protocol whose name the name of a folder or an archive contains; "" where there is none.

    Example:
        >>> similar_name("Market-1501-v15.09.15", ["market1501", "regdb"])
        'market1501'
    """
    words = re.sub(r"[^a-z0-9]+", "", name.lower())
    for protocol in sorted(protocols, key=len, reverse=True):
        plain = re.sub(r"[^a-z0-9]+", "", protocol)
        if len(plain) > 3 and plain in words:
            return protocol
    return ""


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
