"""Protocols: tables that say how the files of a published data set become samples.

``datasets/<name>/protocol.toml`` is data, reviewed like data: where the files lie, how a name is
read, which camera sees infrared, what the authors counted.  This module reads such tables and
walks the folders they describe.  It opens no picture and downloads nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from reid.data.manifest import read_manifest
from reid.errors import DataError, unknown_name
from reid.records import Modality, Sample, Split

TABLE = "protocol.toml"


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Count(_Table):
    """What the authors published about one split; ``identities`` does not count distractors."""

    images: int | None = None
    identities: int | None = None


class Variant(_Table):
    """A choice the user makes, e.g. which of ten trials.

    ``choices`` maps each choice to the words it puts in place of ``{word}`` in the parts; the
    choice itself stands for the variant's own name.
    """

    default: str
    choices: dict[str, dict[str, str]]

    @model_validator(mode="after")
    def _default_is_a_choice(self) -> Variant:
        if self.default not in self.choices:
            raise ValueError(unknown_name("default", self.default, self.choices))
        return self


class Part(_Table):
    """Files that share a split.

    Either ``glob`` (below the root; ``pattern`` must match the file's path relative to the root)
    or ``list`` (a text file; ``pattern`` must match each line and name the group ``path``,
    relative to ``folder``).  The pattern's groups ``identity`` and ``camera``, and the words of
    the variants, fill the templates ``identity`` and ``camera``.

    ``identity_files`` keeps only the identities that these comma separated files list.
    ``skip`` lists identities that are not read at all (the authors' junk); ``distractors`` are
    read but are nobody's identity.
    """

    split: Split
    pattern: Annotated[str, AfterValidator(_compiles)]
    glob: str = ""
    list: str = ""
    folder: str = "."
    identity: str = "{identity}"
    camera: str = "{camera}"
    identity_files: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _glob_or_list(self) -> Part:
        if bool(self.glob) == bool(self.list):
            raise ValueError("expected either glob or list")
        for group in ("identity", "path") if self.list else ("identity",):
            if group not in re.compile(self.pattern).groupindex:
                raise ValueError(f"the pattern needs a group named {group}")
        return self


class Protocol(_Table):
    """A published data set: what it is and how its files are read.

    ``obtain`` is the advice in errors; ``folders`` must all exist, so that half a copy is not
    taken for a whole one.  Rows come from one ``manifest`` or from ``parts``.
    """

    name: str
    title: str
    domain: str = "person"
    source: str
    licence: str
    obtain: str
    rule: Literal["market"] = "market"
    infrared_cameras: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    counts: dict[Split, Count] = {}
    variants: dict[str, Variant] = {}
    manifest: str = ""
    parts: tuple[Part, ...] = ()

    @model_validator(mode="after")
    def _manifest_or_parts(self) -> Protocol:
        if bool(self.manifest) == bool(self.parts):
            raise ValueError("expected either a manifest or parts")
        return self


def known_protocols() -> list[str]:
    """Names of the protocols that come with the program."""
    return sorted(entry.name for entry in _tables().iterdir() if entry.joinpath(TABLE).is_file())


def load_protocol(name: str) -> Protocol:
    """The protocol called ``name``; an unknown name is a :class:`DataError` that lists the known."""
    if name not in known_protocols():
        raise DataError(unknown_name("data set", name, known_protocols()))
    return parse_protocol(_tables().joinpath(name, TABLE).read_text(encoding="utf-8"), f"datasets/{name}/{TABLE}")


def parse_protocol(text: str, where: str) -> Protocol:
    """A protocol from TOML text; ``where`` names the file in errors."""
    try:
        return Protocol(**tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where}: not TOML ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "table"
        raise DataError(f"{where}: {place}: {first['msg']}") from error


def _tables() -> Traversable:
    """The folder of protocols: inside the package when installed from a wheel, else the checkout's."""
    packaged = resources.files("reid").joinpath("_datasets")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "datasets"


def protocol_samples(protocol: Protocol, root: Path, **variant: object) -> tuple[Sample, ...]:
    """The samples of the data set that lies in ``root``, parts in the order of the table.

    ``variant`` picks choices of the protocol's variants, e.g. ``trial=3``.  A missing folder or
    list, and a file name that the pattern does not know, are :class:`DataError`.
    """
    words = _words(protocol, {key: str(value) for key, value in variant.items()})
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected {protocol.title} there; {protocol.obtain}")
    for name in protocol.folders:
        if not (root / _fill(name, words)).is_dir():
            raise _not_found(protocol, f"the folder {_fill(name, words)}", root)
    if protocol.manifest:
        path = root / _fill(protocol.manifest, words)
        if not path.is_file():
            raise _not_found(protocol, path.relative_to(root), root)
        return read_manifest(path)
    samples = tuple(sample for part in protocol.parts for sample in _part_samples(protocol, part, root, words))
    _check_distinct(protocol, samples)
    return samples


def count_differences(protocol: Protocol, samples: Sequence[Sample]) -> list[str]:
    """One line for every published count that ``samples`` do not have; [] when all agree."""
    lines = []
    distractors = {identity for part in protocol.parts for identity in part.distractors}
    for split, published in protocol.counts.items():
        rows = [sample for sample in samples if sample.split is split]
        identities = {sample.identity for sample in rows} - distractors
        for kind, expected, found in (
            ("images", published.images, len(rows)),
            ("identities", published.identities, len(identities)),
        ):
            if expected is not None and expected != found:
                lines.append(f"{protocol.title}, {split}: expected {expected} {kind}, found {found}")
    return lines


def read_data(spec: str, root: Path | None = None) -> tuple[Sample, ...]:
    """Samples of a manifest, of a folder that holds ``manifest.csv``, or of a known data set.

    A data set is named as "market1501", its variants after a colon as in
    "sysu_mm01:search=indoor" or "regdb:trial=3,direction=thermal-to-visible"; ``root`` is the
    folder it was unpacked to.
    """
    path = Path(spec)
    if path.is_file():
        return read_manifest(path)
    name, _, choices = spec.partition(":")
    if name in known_protocols() and (root is not None or not path.is_dir()):
        protocol = load_protocol(name)
        if root is None:
            raise DataError(f"{protocol.title}: which folder is it in? pass its root; {protocol.obtain}")
        return protocol_samples(protocol, root, **_choices(choices, spec))
    if path.is_dir():
        return read_manifest(path / "manifest.csv")
    raise DataError(f"{spec}: no such manifest, and {unknown_name('data set', name, known_protocols())}")


def _choices(text: str, spec: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in text.split(",")] if text else []
    if not all(key and equals and value for key, equals, value in pairs):
        raise DataError(f'{spec}: expected "name:key=value,key=value"')
    return {key.strip(): value.strip() for key, _, value in pairs}


def _words(protocol: Protocol, chosen: Mapping[str, str]) -> dict[str, str]:
    for key in chosen:
        if key not in protocol.variants:
            raise DataError(f"{protocol.title}: {unknown_name('variant', key, protocol.variants)}")
    words: dict[str, str] = {}
    for key, variant in protocol.variants.items():
        choice = chosen.get(key, variant.default)
        if choice not in variant.choices:
            raise DataError(f"{protocol.title}: {unknown_name(key, choice, variant.choices)}")
        words |= {key: choice} | variant.choices[choice]
    return words


def _fill(template: str, words: Mapping[str, str]) -> str:
    try:
        return template.format_map(words)
    except KeyError as error:
        raise DataError(f"template {template!r}: {unknown_name('word', str(error.args[0]), words)}") from None


def _not_found(protocol: Protocol, what: Path | str, root: Path) -> DataError:
    return DataError(f"{protocol.title}: expected {what} in {root}, found none; {protocol.obtain}")


def _part_samples(protocol: Protocol, part: Part, root: Path, words: Mapping[str, str]) -> Iterator[Sample]:
    wanted = _listed_identities(protocol, part, root, words)
    pattern = re.compile(part.pattern)
    skip = {_plain(identity) for identity in part.skip}
    found = False
    for place, text, folder in _entries(protocol, part, root, words):
        match = pattern.fullmatch(text)
        if match is None:
            raise DataError(f"{place}: {text!r} is not named as {protocol.title} names its files ({part.pattern})")
        groups = match.groupdict()
        identity = _plain(groups["identity"])
        if identity in skip or (wanted is not None and identity not in wanted):
            continue
        found = True
        camera = _fill(part.camera, {**words, **groups})
        yield Sample(
            path=folder / groups.get("path", text),
            identity=_fill(part.identity, {**words, **groups}),
            camera=camera,
            modality=Modality.INFRARED if camera in protocol.infrared_cameras else Modality.VISIBLE,
            domain=protocol.domain,
            split=part.split,
        )
    if not found:
        of_listed = f" of the identities in {', '.join(part.identity_files)}" if part.identity_files else ""
        raise _not_found(protocol, f"{part.split} images {_fill(part.glob or part.list, words)}{of_listed}", root)


def _entries(protocol: Protocol, part: Part, root: Path, words: Mapping[str, str]) -> Iterator[tuple[str, str, Path]]:
    """(place for errors, text for the pattern, folder its path is relative to) of each file of a part."""
    if part.glob:
        for path in sorted(root.glob(_fill(part.glob, words))):
            yield str(root), path.relative_to(root).as_posix(), root
        return
    path, folder = root / _fill(part.list, words), root / _fill(part.folder, words)
    if not folder.is_dir():
        raise _not_found(protocol, f"the folder {folder.relative_to(root)}", root)
    for number, line in enumerate(_read(protocol, path, root).splitlines(), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip(), folder


def _listed_identities(protocol: Protocol, part: Part, root: Path, words: Mapping[str, str]) -> frozenset[str] | None:
    """Identities of the part's identity files, None where it has no such files."""
    if not part.identity_files:
        return None
    texts = [_read(protocol, root / _fill(name, words), root) for name in part.identity_files]
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
