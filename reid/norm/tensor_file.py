"""Safetensors files that are written completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from reid.errors import WeightsError
from reid.files import write_whole


def write_table(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Args:
        path: Where to write.  An older file there stays as it was when writing fails.
        tensors: The tensors by name.
        metadata: Text for the header of the file.

    Raises:
        WeightsError: If the file cannot be written.
    """
    try:
        write_whole(path, lambda part: save_file(dict(tensors), part, metadata=dict(metadata)))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error}); choose another place or free some space") from error
