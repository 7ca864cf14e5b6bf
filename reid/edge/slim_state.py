"""The state of an unfinished ``reid slim`` in a file, so that the same command goes on after a kill."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from reid.errors import ConfigError, WeightsError
from reid.files import write_whole
from reid.torch_files import unpickle

FORMAT = "reid-slim-state-1"


@dataclass(frozen=True)
class SlimState:
    """How far the work is.

    Attributes:
        scores: The score of each candidate that was tried, after its statistics were measured again.
        stale_scores: The same with the statistics of the whole network; [] where these are not wanted.
        counts: How many channels each group keeps; [] until that is decided.
        before: The figures of the smaller network before it was trained.
        stage: What is trained: "scales" or "distillation"; "" before any training.
        epoch: How many of its epochs are done.
        network: The state of the network that is trained.
        optimizer: The state of its optimizer.
    """

    scores: list[float] = field(default_factory=list)
    stale_scores: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    before: tuple[float, float] = (0.0, 0.0)
    stage: str = ""
    epoch: int = 0
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)


class StateFile:
    """Keeps the state of one run.

    Args:
        path: The file; None keeps the state in memory only.
        key: Hash of everything that decides the result.

    Attributes:
        state: The state that was saved last.

    Raises:
        WeightsError: The file is damaged.
        ConfigError: It belongs to a run of other weights, crops or settings.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self.state = _read(path, key) if path is not None and path.exists() else SlimState()

    def save(self, **changes: Any) -> None:
        """Change the state, and write it as a whole.

        Raises:
            OSError: The file cannot be written; the earlier one stays.
        """
        self.state = replace(self.state, **changes)
        if self._path is None:
            return
        content = {"format": FORMAT, "key": self._key, "state": asdict(self.state)}
        try:
            write_whole(self._path, lambda part: torch.save(content, part))
        except RuntimeError as error:  # torch's for a full disk
            reason = f"the state cannot be written, the disk may be full ({error})"
            raise OSError(28, reason, str(self._path)) from error


def slim_state_file(out: Path) -> Path:
    """Return the file that keeps the state of the run that writes ``out``.

    Example:
        >>> slim_state_file(Path("weights/small.safetensors")).name
        '.small.safetensors.slimming'
    """
    return out.with_name(f".{out.name}.slimming")


def _read(path: Path, key: str) -> SlimState:
    damaged = f"{path}: the state of an unfinished reid slim cannot be read; delete it to start over"
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise WeightsError(damaged)
        content: Any = unpickle(path)
        same = content["format"] == FORMAT and content["key"] == key
        state = SlimState(**content["state"])
    except (WeightsError, zipfile.BadZipFile, LookupError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise WeightsError(damaged) from error
    if not same:
        raise ConfigError(
            f"{path}: an unfinished reid slim of other weights, crops or settings; finish it with its own command,"
            " delete this file, or choose another --out"
        )
    return state
