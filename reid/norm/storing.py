"""Tensors in a file: whole or not at all.

Knows safetensors and the file system; what the tensors are is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from reid.errors import WeightsError


def write_table(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: under another name first, so that a half-written file never has this one."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), part, metadata=dict(metadata))
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise WeightsError(f"{path}: cannot be written ({error}); choose another place or free some space") from error
