"""Weight files as tables of tensors: reading them without running anything in them, writing them in one
move, and putting them into a network that they must fit exactly.

A table is a dictionary from a key like ``conv1.weight`` to a tensor.  Nothing here knows what a network is
for, nor what the text beside the tensors means.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reid.errors import WeightsError

Table = dict[str, Tensor]

COUNTER = "num_batches_tracked"  # of BatchNorm: has no influence on what a network computes
NESTS = ("state_dict", "model", "model_state_dict")  # where training programs put the table among other things
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every key
SHOWN = 8  # keys, or modules with many of them, named in an error's line; its note lists all
# what torch.load was seen to raise, besides UnpicklingError, on thousands of files with changed bytes
DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
# A number of numpy, which training programs save beside the weights (the rank-1 reached, say).  It holds no
# code; files of numpy 1 and of numpy 2 call its maker by different names.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
]


def read_table(path: Path) -> tuple[Table, dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata ({} for anything but safetensors).

    ``.safetensors`` by its suffix (before ``.part``), everything else (``.pth``, ``.pth.tar``, ``.pt``) as a file of
    ``torch.save``, of which only tensors and plain values are accepted.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; nothing is downloaded, so give the path of one")
    if path.name.removesuffix(".part").endswith(".safetensors"):
        return _read_safetensors(path)
    return _table_in(_unpickle(path), path), {}


def table_of(network: nn.Module) -> Table:
    """A copy of all parameters and buffers of a network, on the CPU."""
    state: dict[str, Any] = network.state_dict()
    # the copy also separates tensors that share memory, which safetensors would refuse
    return {key: t.detach().cpu().contiguous().clone() for key, t in state.items() if isinstance(t, Tensor)}


def packed(tensors: Mapping[str, Tensor]) -> Table:
    """The same values in less room: a float32 matrix or kernel that float16 holds exactly is kept in that."""
    halves = {key: t.half() for key, t in tensors.items() if t.dtype == torch.float32 and t.ndim > 1}
    return {**tensors, **{key: half for key, half in halves.items() if torch.equal(half.float(), tensors[key])}}


def unpacked(tensors: Mapping[str, Tensor]) -> Table:
    """The table that :func:`packed` was given: float16 back as float32."""
    return {key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, shapes, types and values, in the order of the names; counters left out."""
    summary = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        if not key.endswith(COUNTER):
            summary.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            summary.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return summary.hexdigest()


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put ``tensors`` into ``network``; WeightsError unless every key is used, none misses, all sizes agree.

    ``what`` opens the message: which file for which network.  Counters of BatchNorm may miss: old files
    have none.
    """
    own = table_of(network)
    missing = [key for key in own if key not in tensors and not key.endswith(COUNTER)]
    unexpected = [key for key in tensors if key not in own]
    sizes = [
        f"{key} (expected {tuple(own[key].shape)}, got {tuple(tensors[key].shape)})"
        for key in own
        if key in tensors and own[key].shape != tensors[key].shape
    ]
    kinds = {"of another size": sizes, "missing": missing, "unexpected": unexpected}
    faults = {kind: keys for kind, keys in kinds.items() if keys}
    if faults:
        told = [f"{len(keys)} {kind}: {_named(keys)}" for kind, keys in faults.items()]
        error = WeightsError(
            f"{what}: the weights do not fit, of {len(own)} tensors {'; '.join(told)};"
            " name the backbone they were trained with"
        )
        for kind, keys in faults.items():
            error.add_note(f"{kind}: {', '.join(keys)}")
        raise error
    network.load_state_dict({**own, **tensors})


def _named(keys: list[str]) -> str:
    """All keys if they are few, else the modules they are of, as coarse as it takes to name every key's."""
    if len(keys) <= SHOWN:
        return ", ".join(keys)
    if keys[0].endswith(")"):  # sizes are told, which modules do not share
        return f"{', '.join(keys[:2])}, ..."
    for depth in range(max(key.count(".") for key in keys), 0, -1):
        groups = Counter(".".join(key.split(".")[:depth]) for key in keys)
        if len(groups) <= SHOWN:
            return ", ".join(f"{module}.* ({count})" for module, count in groups.items())
    return f"{', '.join(keys[:SHOWN])}, ..."


def _read_safetensors(path: Path) -> tuple[Table, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot read this safetensors file, damaged or cut off ({error})") from error


def _unpickle(path: Path) -> object:
    """What ``torch.save`` wrote, if it is made of tensors and plain values only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubts of torch.load about a damaged file: the error says enough
            with torch.serialization.safe_globals(_NUMBERS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise WeightsError(_unreadable(path)) from error
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors ({code[1]}) and loading it could run code;"
            ' if you trust it, keep only its tensors: torch.save(checkpoint["state_dict"], ...)'
        ) from error
    except DAMAGE as error:
        raise WeightsError(_unreadable(path)) from error


def _unreadable(path: Path) -> str:
    # without the reason of torch.load, which advises to load files without its safeguard
    return f"{path}: cannot read this weights file: damaged, cut off, or not tensors written by torch.save"


def _table_in(content: object, path: Path) -> Table:
    """The table of tensors in what a training program saved, without the prefixes of wrappers."""
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        found = f"{len(strange)} values that are no tensors: {_named(strange)}" if strange else "an empty one"
        raise WeightsError(f"{path}: expected a dictionary of tensors, got {found}")
    return {_unwrapped(str(key)): value for key, value in content.items()}


def _unwrapped(key: str) -> str:
    for prefix in WRAPPERS:
        key = key.removeprefix(prefix)
    return key
