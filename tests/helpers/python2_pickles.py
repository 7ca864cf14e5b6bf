"""Checkpoints as Python 2 wrote them, and archives that unpack to more than they seem to hold."""

from __future__ import annotations

import pickletools
import struct
import zipfile
from pathlib import Path

import torch

SHORT_BINSTRING, LONG_BINPUT = b"U", b"r"


def write_python2(path: Path, content: object) -> None:
    """Write what ``torch.save`` of Python 2 writes: text, and the bytes of numpy's numbers, as byte strings."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    start = 0
    for _ in range(3):  # magic number, version, machine
        start += _length(whole[start:])
    end = start + _length(whole[start:])
    path.write_bytes(whole[:start] + _as_python2(whole[start:end]) + whole[end:])


def _length(text: bytes) -> int:
    return next(position for code, _, position in pickletools.genops(text) if code.name == "STOP") + 1


def _as_python2(text: bytes) -> bytes:
    """Replace text by byte strings, and ``_codecs.encode(text, "latin1")`` by the bytes."""
    codes = list(pickletools.genops(text))
    ends = [position for _, _, position in codes[1:]] + [len(text)]
    parts: list[bytes] = []
    pending = ""  # the text of a call of _codecs.encode
    encode: set[int] = set()  # places in the memo that hold _codecs.encode
    calls = False
    for (code, argument, position), end in zip(codes, ends, strict=True):
        part = text[position:end]
        if code.name == "GLOBAL" and argument == "_codecs encode":
            calls = True
        elif calls and code.name in ("BINPUT", "LONG_BINPUT") and not pending and not encode:
            encode.add(argument)
        elif code.name in ("BINGET", "LONG_BINGET") and argument in encode:
            calls = True
        elif calls and code.name == "BINUNICODE" and argument != "latin1":
            pending = argument
        elif calls and code.name == "REDUCE":
            data = pending.encode("latin1")
            parts.append(SHORT_BINSTRING + bytes([len(data)]) + data)
            calls, pending = False, ""
        elif not calls:
            if code.name == "BINUNICODE":
                data = argument.encode("latin1")
                part = SHORT_BINSTRING + bytes([len(data)]) + data
            parts.append(part.replace(b"cnumpy._core.", b"cnumpy.core."))
    return b"".join(parts)


def compress_entry(path: Path, name: str, size: int) -> None:
    """Replace an entry of a file of ``torch.save`` by ``size`` bytes of zeros, compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, content in entries.items():
            if not key.endswith(name):
                archive.writestr(key, content, zipfile.ZIP_STORED)
                continue
            with archive.open(key, "w", force_zip64=True) as file:
                block = bytes(2**20)
                for _ in range(size // len(block)):
                    file.write(block)


def huge_storage(path: Path, numbers: int) -> None:
    """Write a file of ``torch.save`` whose first tensor claims ``numbers`` numbers that the file does not hold."""
    torch.save({"a": torch.zeros(1234)}, path, _use_new_zipfile_serialization=False)
    old, new = b"M" + struct.pack("<H", 1234), b"\x8a\x08" + struct.pack("<q", numbers)
    path.write_bytes(path.read_bytes().replace(old, new))
