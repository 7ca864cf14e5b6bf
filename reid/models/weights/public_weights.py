"""Public weights by name: a table of where they are and what is known of them, and the way to fetch one.

Nothing is fetched unless :func:`fetch` is called.  A file arrives under another name and gets its own only
when its hash agrees with the publisher's, where one is known, and when it says nothing but tensors.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from reid.errors import ConfigError, WeightsError, unknown_name
from reid.files import write_whole
from reid.models.runtime import RUNTIMES
from reid.models.weights.tensor_tables import read_table

TABLE = "public_weights.toml"
CHUNK = 1 << 20  # bytes
PATIENCE = 30.0  # seconds without an answer
DIGITS = 64  # of a whole SHA-256 in hex

Opener = Callable[..., Any]  # as urllib.request.urlopen
Progress = Callable[[int, int | None], object]  # hears of the bytes so far and, if the site tells, of how many


@dataclass(frozen=True)
class PublicWeights:
    """One line of the table.

    ``backbone`` is what :func:`reid.models.checkpoint.load_checkpoint` wants to hear, ``size`` (height,
    width) too where it is not the family's own.  ``sha256`` is the beginning of the file's hash, "" where
    the publisher states none; ``url`` is "" where only a person can fetch the file, at ``page``.
    """

    name: str
    backbone: str
    url: str
    page: str
    licence: str
    trained_on: str
    sha256: str = ""
    size: tuple[int, int] | None = None

    def path_in(self, folder: Path) -> Path:
        """Where the file lies, once fetched: named as in the table, so that its name says what it is."""
        by_hand = {kind: suffix for suffix, kind in RUNTIMES.items()}.get(self.backbone, ".pth")
        return folder / f"{self.name}{PurePosixPath(urlsplit(self.url).path).suffix or by_hand}"


@dataclass(frozen=True)
class Fetched:
    """A file that is there: its hash, 64 hex digits, and how many of them its publisher vouches for."""

    path: Path
    sha256: str
    digits: int

    @property
    def verdict(self) -> str:
        """What the hash proves, in words."""
        if self.digits == 0:
            return f"sha256 {self.sha256}: could not be verified, the publisher states none"
        stated = "" if self.digits == DIGITS else f" in the first {self.digits} digits, all that the publisher states"
        return f"sha256 {self.sha256}: agrees with the publisher's{stated}"


@cache
def public_weights() -> tuple[PublicWeights, ...]:
    """Every line of the table."""
    text = resources.files("reid.models.weights").joinpath(TABLE).read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = tomllib.loads(text)
    for row in rows.values():
        row["size"] = tuple(row["size"]) if "size" in row else None
    return tuple(PublicWeights(name=name, **row) for name, row in rows.items())


def find_weights(name: str) -> PublicWeights:
    """The line called ``name``; ConfigError that lists the known ones."""
    table = {weights.name: weights for weights in public_weights()}
    if name not in table:
        raise ConfigError(unknown_name("weights", name, table))
    return table[name]


def fetch(
    weights: PublicWeights,
    folder: Path,
    *,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """The file of ``weights`` in ``folder``, downloaded unless it is there.

    ``opener`` stands in for urllib's.  Raises WeightsError when the file cannot be had, was cut off, has
    another hash than its publisher states, or holds more than tensors; nothing is left behind then.
    """
    path = weights.path_in(folder)
    if path.is_file():
        return _checked(weights, path)
    if not weights.url:
        second = f", with {path.with_suffix('.bin').name} beside it" if weights.backbone == "openvino" else ""
        raise WeightsError(
            f"{weights.name}: no program can fetch it; download it from {weights.page} to {path}{second}"
        )
    fetched: list[Fetched] = []

    def get(part: Path) -> None:
        _download(weights, part, path, opener or urlopen, progress)
        fetched.append(_checked(weights, part))

    write_whole(path, get, private=False)
    return replace(fetched[0], path=path)


def _download(weights: PublicWeights, part: Path, path: Path, opener: Opener, progress: Progress | None) -> None:
    by_hand = f"without a connection, download {weights.url} elsewhere and put it at {path}"
    host = urlsplit(weights.url).netloc
    try:
        with opener(Request(weights.url, headers={"User-Agent": "reid"}), timeout=PATIENCE) as answer:
            if urlsplit(answer.url).scheme != "https":
                raise WeightsError(f"{weights.name}: refused, {host} leads to an unprotected address; {by_hand}")
            length = answer.headers.get("Content-Length")
            expected = int(length) if length else None
            with part.open("wb") as file:
                received = _copy(answer, file, lambda done: progress and progress(done, expected))
    except HTTPError as error:
        raise WeightsError(f"{weights.name}: {host} answers {error.code} {error.reason}; see {weights.page}") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise WeightsError(f"{weights.name}: cannot reach {host} ({reason}); {by_hand}") from error
    if expected is not None and received != expected:
        raise WeightsError(f"{weights.name}: cut off after {received} of {expected} bytes; try again")


def _copy(answer: BinaryIO, file: BinaryIO, tell: Callable[[int], object]) -> int:
    received = 0
    while chunk := answer.read(CHUNK):
        file.write(chunk)
        received += len(chunk)
        tell(received)
    return received


def _checked(weights: PublicWeights, path: Path) -> Fetched:
    """The file at ``path`` if it has the stated hash and holds tensors only."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(weights.sha256):
        raise WeightsError(
            f"{path}: its sha256 is {found}, the publisher's begins with {weights.sha256}: damaged or replaced;"
            f" delete it, if it is still there, and fetch it again, or see {weights.page}"
        )
    if weights.backbone not in RUNTIMES.values():  # a graph of known operations: holds no code of its own
        read_table(path)
    return Fetched(path, found, len(weights.sha256))
