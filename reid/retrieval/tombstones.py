"""Tombstones: which identities and images were erased from a gallery, without their names.

They keep erased rows from answering, and from coming back when the gallery is built again or rows are added. A
tombstone is a salted hash of an identity and its category, or of the path of an image. Whoever can read the file can
find out whether a name that he knows already was erased, but the file lists no name.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reid.errors import GalleryError
from reid.files import write_whole
from reid.records import Sample
from reid.retrieval.row_table import RowTable, SampleRows
from reid.structured_text import parse_json

TOMBSTONES_FILE = "erasures.json"  # in the folder of a gallery
FORMAT = "reid-erasures-1"
MAX_BYTES = 2**28  # more than a million tombstones
PATH_HASH = 32  # hex digits of the hash of a path
HASHES_KEPT = 2**17  # in memory, because one erasure asks for those of all identities several times

BoolArray = npt.NDArray[np.bool_]


def is_identity(sample: Sample, identity: str, category: str | None = None) -> bool:
    """Return whether a sample shows an identity; names that differ only in their Unicode form (NFC, NFD) are one.

    Args:
        sample: The sample.
        identity: The identity.
        category: The category of the identity; None stands for every category.

    Example:
        >>> is_identity(Sample(Path("1.jpg"), "Zoe\\u0308"), "Zo\\u00eb")
        True
    """
    return _nfc(sample.identity) == _nfc(identity) and (category is None or _nfc(sample.category) == _nfc(category))


def rows_of_identity(table: RowTable, identity: str, category: str | None = None) -> BoolArray:
    """Return (N,) bool: the rows of a table that show an identity, as :func:`is_identity` says."""
    mask = np.ones(len(table), np.bool_)
    for name, wanted in (("identity", identity), ("category", category)):
        if wanted is not None and len(table):
            codes, words = table.codes(name)
            mask &= np.array([_nfc(word) == _nfc(wanted) for word in words], np.bool_)[codes]
    return mask


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Tombstones:
    """The erased identities of one gallery folder.

    Args:
        salt: Random bytes that all hashes of this folder begin with.
        erased: A pair of hashes for each erasure: of the identity, and of the identity with its category; the second
            is "" where the identity was erased in every category.
        lifted: Whether an erasure was lifted since the gallery was last built, so that rows may be missing from it.
        paths: A hash of the path of each image that was erased by something else than its identity.
        pending: The generation of the gallery that still has rows of these paths; "" where none has.

    Example:
        >>> erased = Tombstones().with_identity("anna", "person")
        >>> erased.hidden([Sample(Path("1.jpg"), "anna"), Sample(Path("2.jpg"), "ben")]).tolist()
        [True, False]
    """

    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    erased: frozenset[tuple[str, str]] = frozenset()
    lifted: bool = False
    paths: frozenset[str] = frozenset()
    pending: str = ""

    @property
    def bars_anything(self) -> bool:
        """Whether an identity or an image was erased and may not come back."""
        return bool(self.erased or self.paths)

    def hidden(self, samples: Sequence[Sample]) -> BoolArray:
        """Return (N,) bool: the samples whose identities were erased."""
        if not self.erased:
            return np.zeros(len(samples), np.bool_)
        if isinstance(samples, SampleRows):
            return self.hidden_rows(samples.table)
        gone = self._gone({(sample.identity, sample.category) for sample in samples})
        return np.array([(sample.identity, sample.category) in gone for sample in samples], np.bool_)

    def hidden_rows(self, table: RowTable) -> BoolArray:
        """Return (N,) bool: the rows of a table whose identities were erased."""
        if not self.erased or not len(table):
            return np.zeros(len(table), np.bool_)
        (names, name_words), (categories, category_words) = table.codes("identity"), table.codes("category")
        pairs = names.astype(np.int64) * len(category_words) + categories
        distinct, of_pair = np.unique(pairs, return_inverse=True)
        words = [divmod(int(pair), len(category_words)) for pair in distinct]
        gone = self._gone({(name_words[name], category_words[category]) for name, category in words})
        flags = [(name_words[name], category_words[category]) in gone for name, category in words]
        return np.array(flags, np.bool_)[of_pair]

    def barred(self, samples: Sequence[Sample]) -> BoolArray:
        """Return (N,) bool: the samples that may not come back, because their identity or their image was erased."""
        barred = self.hidden(samples)
        if not self.paths:
            return barred
        return barred | np.array([self.holds_path(sample.path) for sample in samples], np.bool_)

    def holds_path(self, path: Path | str) -> bool:
        """Return whether the image of a path was erased, by the path as it is written or as an absolute path."""
        return not self.paths.isdisjoint(self._path_hashes(path))

    def _path_hashes(self, path: Path | str) -> set[str]:
        spelled = {str(path), os.path.abspath(path)}  # noqa: PTH100 (resolving asks the disk for every file)
        return {self._hash(text)[:PATH_HASH] for text in spelled}

    def _gone(self, pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return the pairs of an identity and a category that were erased."""
        identities = {identity for identity, _ in self.erased}
        known = {name: self._hash(name) for name in {name for name, _ in pairs if name}}
        return {
            (name, category)
            for name, category in pairs
            if name
            and known[name] in identities
            and not self.erased.isdisjoint({(known[name], ""), (known[name], self._hash(name, category))})
        }

    def holds(self, identity: str, category: str | None = None) -> bool:
        """Return whether an identity was erased in a category; None asks for an erasure in every category."""
        pairs = {self._pair(identity, None), self._pair(identity, category)}
        return not self.erased.isdisjoint(pairs)

    def with_identity(self, identity: str, category: str | None = None) -> Tombstones:
        """Return these tombstones and one more, in one category or (None) in every category."""
        return replace(self, erased=self.erased | {self._pair(identity, category)})

    def without_identity(self, identity: str, category: str | None = None) -> Tombstones:
        """Return these tombstones without those of an identity; None removes those of every category."""
        name = self._hash(identity)
        pair = self._pair(identity, category)
        left = {one for one in self.erased if (one[0] != name if category is None else one != pair)}
        return replace(self, erased=frozenset(left), lifted=self.lifted or len(left) < len(self.erased))

    def with_paths(self, paths: Iterable[str], pending: str) -> Tombstones:
        """Return these tombstones and those of some images, which the gallery of generation ``pending`` still has."""
        hashes = set().union(*(self._path_hashes(path) for path in paths))
        return replace(self, paths=self.paths | hashes, pending=pending)

    def without_paths(self, paths: Iterable[Path | str] | None) -> Tombstones:
        """Return these tombstones without those of some images; None removes those of all images."""
        left = frozenset() if paths is None else self.paths.difference(*(self._path_hashes(path) for path in paths))
        return replace(self, paths=left, lifted=self.lifted or len(left) < len(self.paths))

    def _pair(self, identity: str, category: str | None) -> tuple[str, str]:
        return self._hash(identity), "" if category is None else self._hash(identity, category)

    def _hash(self, *words: str) -> str:
        return _salted_hash(self.salt, "\0".join(map(_nfc, words)))


@lru_cache(maxsize=HASHES_KEPT)
def _salted_hash(salt: bytes, text: str) -> str:
    return hmac.digest(salt, text.encode("utf-8", "surrogatepass"), "sha256").hex()


def read_tombstones(folder: Path) -> Tombstones:
    """Read the tombstones of a gallery folder; none where there is no file.

    Raises:
        GalleryError: The file is damaged. It is not taken for empty, because then erased rows would come back.
    """
    path = folder / TOMBSTONES_FILE
    if not path.exists():
        return Tombstones()
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ValueError("it is no file of this program")
        table = parse_json(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT or table.pop("check") != _checksum(table):
            raise ValueError("its checksum differs")
        pairs = frozenset((str(identity), str(category)) for identity, category in table["erased"])
        paths = frozenset(str(path) for path in table.get("paths", ()))
        return Tombstones(
            bytes.fromhex(table["salt"]), pairs, bool(table["lifted"]), paths, str(table.get("pending", ""))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GalleryError(
            f"{path}: the list of erased identities is damaged ({type(error).__name__}); put a copy back, or delete it,"
            " build the gallery again and erase again whom it named"
        ) from error


def write_tombstones(folder: Path, tombstones: Tombstones) -> None:
    """Write the tombstones of a gallery folder; the caller holds its lock.

    Raises:
        OSError: The file cannot be written.
    """
    path = folder / TOMBSTONES_FILE
    if not tombstones.erased and not tombstones.paths and not tombstones.lifted:
        path.unlink(missing_ok=True)
        return
    table = {
        "format": FORMAT,
        "salt": tombstones.salt.hex(),
        "erased": sorted(tombstones.erased),
        "lifted": tombstones.lifted,
        **({"paths": sorted(tombstones.paths), "pending": tombstones.pending} if tombstones.paths else {}),
    }
    text = json.dumps({**table, "check": _checksum(table)}, indent=2) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _checksum(table: object) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def without_erased(samples: Sequence[Sample], tombstones: Iterable[Tombstones]) -> tuple[Sample, ...]:
    """Return the samples that none of some tombstones keeps out, in their order."""
    hidden = np.zeros(len(samples), np.bool_)
    for one in tombstones:
        hidden |= one.barred(samples)
    return tuple(sample for sample, gone in zip(samples, hidden.tolist(), strict=True) if not gone)
