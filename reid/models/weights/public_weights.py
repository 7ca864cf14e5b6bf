"""Public weights by name: a table of where they are and what is known of them, and a download that checks them.

Nothing is fetched unless :func:`fetch` is called.  A download has another name until its hash agrees with the
publisher's, where there is one, and it is known to hold nothing but tensors.
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
from reid.files import remove_partial_files, write_whole
from reid.models.runtime import RUNTIMES
from reid.models.weights.hub_download import HOST, download_from_hub, hub_client
from reid.models.weights.tensor_tables import read_table

TABLE = "public_weights.toml"
CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without an answer
DIGITS = 64  # of a complete SHA-256 in hex

Opener = Callable[..., Any]  # as urllib.request.urlopen
Progress = Callable[[int, int | None], object]  # is called with the bytes so far and, where it is known, their total


@dataclass(frozen=True)
class PublicWeights:
    """One row of the table.

    Args:
        name: The name by which a user asks for the weights.
        backbone: The argument for :func:`reid.models.checkpoint.load_checkpoint`.
        url: Where the file is; "" where only a person can download it.
        page: The publisher's page.
        licence: The licence of the weights.
        trained_on: The data that the network was trained on.
        sha256: The beginning of the file's hash; "" where the publisher states none.
        size: Height and width of images, where they are not those of the family.
        hub: The repository "owner/name" on the Hugging Face hub that holds the file; "" where it is elsewhere.
        file: The file in that repository.
    """

    name: str
    backbone: str
    url: str
    page: str
    licence: str
    trained_on: str
    sha256: str = ""
    size: tuple[int, int] | None = None
    hub: str = ""
    file: str = ""

    def path_in(self, folder: Path) -> Path:
        """Return where the file is in a folder once it is fetched: it has the name of the table."""
        default_suffix = {program: suffix for suffix, program in RUNTIMES.items()}.get(self.backbone, ".pth")
        return folder / f"{self.name}{PurePosixPath(urlsplit(self.url).path).suffix or default_suffix}"


@dataclass(frozen=True)
class Fetched:
    """A file on this machine.

    Args:
        path: The file.
        sha256: Its hash, 64 hex digits.
        digits: How many of them its publisher states.
        is_on_hub: Whether the publisher's hash is that of the Hugging Face hub, which tells it to its own client.
    """

    path: Path
    sha256: str
    digits: int
    is_on_hub: bool = False

    @property
    def verdict(self) -> str:
        """What the hash proves, as a sentence."""
        if self.digits == 0 and self.is_on_hub:
            return f'sha256 {self.sha256}: not verified now; the extra "hub" compares it with that of the hub'
        if self.digits == 0:
            return f"sha256 {self.sha256}: could not be verified, the publisher states none"
        stated = "" if self.digits == DIGITS else f" in the first {self.digits} digits, all that the publisher states"
        return f"sha256 {self.sha256}: agrees with the publisher's{stated}"


@cache
def public_weights() -> tuple[PublicWeights, ...]:
    """Read the table of public weights.

    Example:
        >>> "osnet_x1_0_msmt17" in {weights.name for weights in public_weights()}
        True
    """
    text = resources.files("reid.models.weights").joinpath(TABLE).read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = tomllib.loads(text)
    for row in rows.values():
        row["size"] = tuple(row["size"]) if "size" in row else None
        if "hub" in row:
            row["page"] = f"https://{HOST}/{row['hub']}"
            row["url"] = f"{row['page']}/resolve/main/{row['file']}"
    return tuple(PublicWeights(name=name, **row) for name, row in rows.items())


def find_weights(name: str) -> PublicWeights:
    """Return the row of the table with a name.

    Raises:
        ConfigError: If there is none; the message lists the known names.
    """
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
    hub: Any = None,
) -> Fetched:
    """Download weights into a folder, unless they are there, and check them.

    Files on the Hugging Face hub are fetched by the package huggingface_hub where it is installed (extra "hub"), and
    compared with the hash that the hub states; otherwise, and everywhere else, from their address.

    Args:
        weights: The row of the table.
        folder: The folder.
        opener: Opens an address in place of :func:`urllib.request.urlopen`.
        progress: Is called with the bytes so far and, where it is known, their total.
        hub: Stands in for the package huggingface_hub.

    Returns:
        The file and its hash.

    Raises:
        WeightsError: If the file cannot be downloaded, is incomplete, has another hash than its publisher states, or
            holds more than tensors; nothing is left behind then.
    """
    path = weights.path_in(folder)
    if path.is_file():
        remove_partial_files(folder)
        return _check(weights, path)
    if not weights.url:
        second = f", with {path.with_suffix('.bin').name} beside it" if weights.backbone == "openvino" else ""
        raise WeightsError(
            f"{weights.name}: no program can fetch it; download it from {weights.page} to {path}{second}"
        )
    fetched: list[Fetched] = []
    client = (hub or (hub_client() if opener is None else None)) if weights.hub else None

    def get(part: Path) -> None:
        known = weights
        if client is None:
            _download(weights, part, path, opener or urlopen, progress)
        else:
            known = replace(weights, sha256=_get_from_hub(client, weights, part, path, progress) or weights.sha256)
        fetched.append(_check(known, part))

    write_whole(path, get, private=False)
    return replace(fetched[0], path=path)


def _get_from_hub(client: Any, weights: PublicWeights, part: Path, path: Path, progress: Progress | None) -> str:
    """Download a file from the hub, and return the hash that the hub states."""
    try:
        return download_from_hub(client, weights.hub, weights.file, part, progress)
    except WeightsError as error:
        raise WeightsError(
            f"{weights.name}: {error}; without a connection, download {weights.url} elsewhere and put it at {path}"
        ) from error


def _download(weights: PublicWeights, part: Path, path: Path, opener: Opener, progress: Progress | None) -> None:
    manual = f"without a connection, download {weights.url} elsewhere and put it at {path}"
    host = urlsplit(weights.url).netloc
    try:
        with opener(Request(weights.url, headers={"User-Agent": "reid"}), timeout=TIMEOUT) as response:
            if urlsplit(response.url).scheme != "https":
                raise WeightsError(f"{weights.name}: refused, {host} leads to an unprotected address; {manual}")
            length = response.headers.get("Content-Length")
            expected = int(length) if length else None
            with part.open("wb") as file:
                received = _copy(response, file, lambda done: progress and progress(done, expected))
    except HTTPError as error:
        raise WeightsError(f"{weights.name}: {host} answers {error.code} {error.reason}; see {weights.page}") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise WeightsError(f"{weights.name}: cannot reach {host} ({reason}); {manual}") from error
    if expected is not None and received != expected:
        raise WeightsError(f"{weights.name}: cut off after {received} of {expected} bytes; try again")


def _copy(source: BinaryIO, file: BinaryIO, report: Callable[[int], object]) -> int:
    received = 0
    while chunk := source.read(CHUNK):
        file.write(chunk)
        received += len(chunk)
        report(received)
    return received


def _check(weights: PublicWeights, path: Path) -> Fetched:
    """Return the file at ``path`` if it has the stated hash and holds tensors only."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(weights.sha256):
        raise WeightsError(
            f"{path}: its sha256 is {found}, the publisher's begins with {weights.sha256}: damaged or replaced;"
            f" delete it, if it is still there, and fetch it again, or see {weights.page}"
        )
    if weights.backbone not in RUNTIMES.values():  # a model is a graph of known operations and holds no code
        read_table(path)
    return Fetched(path, found, len(weights.sha256), bool(weights.hub))
