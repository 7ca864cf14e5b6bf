"""Weight files as tables of tensors: reading them safely, hashing them, and loading them into a network they must fit.

A table is a dictionary from a key such as ``conv1.weight`` to a tensor.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reid.errors import WeightsError
from reid.models.weights.wrappers import without_wrappers
from reid.structured_text import shorten
from reid.torch_files import unpickle

Table = dict[str, Tensor]

COUNTER = "num_batches_tracked"  # of BatchNorm; it has no influence on what a network computes
# where training programs keep the table beside other values; "teacher" is that of DINO and SOLIDER
NESTS = ("state_dict", "model", "model_state_dict", "teacher")
SHOWN = 8  # keys, or modules with many of them, that the line of an error names; its note lists all


def read_table(path: Path) -> tuple[Table, dict[str, str]]:
    """Read the tensors of a file without running any code in it.

    Args:
        path: A safetensors file, or one that ``torch.save`` wrote (``.pth``, ``.pth.tar``, ``.pt``), of which only
            tensors and plain values are accepted.

    Returns:
        The tensors, on the CPU, and the metadata of the file; {} for anything but safetensors.

    Raises:
        WeightsError: If the file is missing or damaged, or holds more than tensors and plain values.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"module.weight": torch.ones(2)}}, Path(folder) / "w.pth")
        ...     tensors, metadata = read_table(Path(folder) / "w.pth")
        >>> tensors, metadata
        ({'weight': tensor([1., 1.])}, {})
    """
    if not path.is_file():
        link = f", a link to {path.readlink()}" if path.is_symlink() else ""
        raise WeightsError(f"{path}{link}: no such weights file; nothing is downloaded, so give the path of one")
    if _is_safetensors(path):
        return _read_safetensors(path)
    return _table_in(unpickle(path), path), {}


def table_of(network: nn.Module) -> Table:
    """Copy all parameters and buffers of a network to the CPU."""
    state: dict[str, Any] = network.state_dict()
    # the copy also separates tensors that share memory, which safetensors refuses
    return {key: t.detach().cpu().contiguous().clone() for key, t in state.items() if isinstance(t, Tensor)}


def packed(tensors: Mapping[str, Tensor]) -> Table:
    """Return the same values in less space: float32 matrices and kernels become float16 where that is exact."""
    halves = {key: t.half() for key, t in tensors.items() if t.dtype == torch.float32 and t.ndim > 1}
    return {**tensors, **{key: half for key, half in halves.items() if torch.equal(half.float(), tensors[key])}}


def unpacked(tensors: Mapping[str, Tensor]) -> Table:
    """Return the table that :func:`packed` was given: float16 becomes float32 again."""
    return {key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256 in hex over names, shapes, types and values, in the order of the names and without counters."""
    summary = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        if not key.endswith(COUNTER):
            summary.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            summary.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return summary.hexdigest()


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load tensors into a network that they fit exactly.

    Args:
        network: The network; it does not change where the tensors do not fit.
        tensors: Its parameters and buffers by name.  Counters of BatchNorm may be missing, as they are in old files.
        what: Begins the message of an error: which file for which network.

    Raises:
        WeightsError: If a tensor is missing, is not expected, or has another size; the message names them.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_strictly(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "two tensors into a layer")
        >>> layer.weight.tolist()
        [[1.0, 1.0]]
    """
    own = table_of(network)
    missing = [key for key in own if key not in tensors and not key.endswith(COUNTER)]
    unexpected = [key for key in tensors if key not in own]
    sizes = [
        f"{key} (expected {tuple(own[key].shape)}, got {tuple(tensors[key].shape)})"
        for key in own
        if key in tensors and own[key].shape != tensors[key].shape
    ]
    problems = {"of another size": sizes, "missing": missing, "unexpected": unexpected}
    problems = {problem: keys for problem, keys in problems.items() if keys}
    if problems:
        parts = [f"{len(keys)} {problem}: {_summarize(keys)}" for problem, keys in problems.items()]
        error = WeightsError(
            f"{what}: the weights do not fit, of {len(own)} tensors {'; '.join(parts)};"
            " name the backbone they were trained with"
        )
        for problem, keys in problems.items():
            error.add_note(f"{problem}: {', '.join(keys)}")
        raise error
    network.load_state_dict({**own, **tensors})


def _summarize(keys: list[str]) -> str:
    """All keys if they are few; otherwise their modules, so coarse that a few names cover every key."""
    if len(keys) <= SHOWN:
        return ", ".join(keys)
    if keys[0].endswith(")"):  # the keys have sizes, which differ within a module
        return f"{', '.join(keys[:2])}, ..."
    for depth in range(max(key.count(".") for key in keys), 0, -1):
        groups = Counter(".".join(key.split(".")[:depth]) for key in keys)
        if len(groups) <= SHOWN:
            return ", ".join(f"{module}.* ({count})" for module, count in groups.items())
    return f"{', '.join(keys[:SHOWN])}, ..."


def _is_safetensors(path: Path) -> bool:
    """Whether a file is named, or begins, like safetensors: eight bytes for the length of its header, then the header.

    Links, and stores that name files after their content, do not keep the suffix.
    """
    if path.name.lower().removesuffix(".part").endswith(".safetensors"):
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> tuple[Table, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot read this safetensors file, damaged or cut off ({error})") from error


def _table_in(content: object, path: Path) -> Table:
    """The table of tensors in what a training program saved, without the prefixes of wrappers."""
    content = _innermost(content)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    others = [
        shorten(key).strip("'")
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others or not content:
        found = f"{len(others)} values that are no tensors: {_summarize(others)}" if others else "an empty one"
        raise WeightsError(f"{path}: expected a dictionary of tensors, got {found}")
    unusual = [key for key, tensor in content.items() if not _is_plain(tensor)]
    if unusual:
        raise WeightsError(
            f"{path}: expected tensors of plain numbers that are all in the file, got {len(unusual)} others:"
            f" {_summarize(unusual)}; leave them out, or save them as dense tensors on the CPU"
        )
    return without_wrappers(content, path)


def _innermost(content: object) -> object:
    """The table inside the dictionaries around it, at most ten of them: one may hold itself."""
    for _ in range(10):
        inner = (
            next((content[nest] for nest in NESTS if isinstance(content.get(nest), Mapping)), None)
            if isinstance(content, Mapping)
            else None
        )
        if inner is None:
            break
        content = inner
    return content


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, in memory, and no larger than its memory."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
