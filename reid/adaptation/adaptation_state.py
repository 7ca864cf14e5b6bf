"""The state of an unfinished adaptation in a file, so that the same command goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from reid.adaptation.contrast_rounds import EpochFigures, RoundsState
from reid.adaptation.stop_rule import ClusterFigures
from reid.errors import ConfigError, WeightsError
from reid.files import write_whole
from reid.records import Sample

FORMAT = "reid-adaptation-state-1"
_DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError,
           pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)  # fmt: skip


def state_file(out: Path) -> Path:
    """Return the file that keeps the state of the adaptation that writes ``out``.

    Example:
        >>> state_file(Path("weights/site.safetensors")).name
        '.site.safetensors.adapting'
    """
    return out.with_name(f".{out.name}.adapting")


def run_key(fingerprint: str, samples: Sequence[Sample], settings: dict[str, Any]) -> str:
    """Hash everything that decides the result: the weights, the settings, and the crops without their identities."""
    digest = hashlib.sha256(json.dumps([fingerprint, settings], sort_keys=True).encode())
    for sample in samples:
        row = (str(sample.path), sample.camera, str(sample.modality), sample.category)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def save_state(path: Path, key: str, state: RoundsState) -> None:
    """Write a state as a whole, readable by its owner only.

    Raises:
        OSError: The file cannot be written; the earlier one stays.
    """
    values = {**vars(state), "history": [asdict(figures) for figures in state.history]}
    try:
        write_whole(path, lambda part: torch.save({"format": FORMAT, "key": key, "state": values}, part))
    except RuntimeError as error:  # torch's for a full disk
        raise OSError(28, f"the state cannot be written, the disk may be full ({error})", str(path)) from error


def load_state(path: Path, key: str) -> RoundsState | None:
    """Read the state of a run; None where there is none.

    Raises:
        WeightsError: The file is damaged.
        ConfigError: It belongs to an adaptation of other weights, crops or settings.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
        same = content["format"] == FORMAT and content["key"] == key
        state = RoundsState(**content["state"]) if same else None
    except (*_DAMAGE, OSError) as error:
        raise WeightsError(
            f"{path}: the state of an adaptation cannot be read ({type(error).__name__}); delete it to start over"
        ) from error
    if state is None:
        raise ConfigError(
            f"{path}: an unfinished adaptation of other weights, crops or settings; finish it with its own command,"
            " delete this file, or choose another --out"
        )
    return replace(state, history=[_figures(values) for values in content["state"]["history"]])


def _figures(values: dict[str, Any]) -> EpochFigures:
    return EpochFigures(**{**values, "groups": tuple(ClusterFigures(**group) for group in values["groups"])})
