"""Tensors in a file: whole or not at all.

Knows safetensors and the file system; what the tensors are is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from reid.errors import WeightsError
from reid.files import write_whole


def write_table(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; WeightsError where that is not possible, and an older file stays as it was."""
    try:
        write_whole(path, lambda part: save_file(dict(tensors), part, metadata=dict(metadata)))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error}); choose another place or free some space") from error
