"""List the files below a folder of crops, and find out what the levels of its folders mean."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from reid.data.label_text import means_unknown
from reid.errors import DataError
from reid.records import Modality, Split

# Folders of crops that show nobody in particular, beside the words for unknown.
NOBODY = frozenset((
    "junk", "nobody", "noone", "no one", "distractor", "distractors", "unassigned", "unsorted", "background", "noise",
))  # fmt: skip
FEW_FOLDERS, MANY_IMAGES = 12, 20  # so few folders with so many images each may well be cameras

_CAMERA = re.compile(
    r"(ip|web)?cam(era)?s?([\W_\d].*)?|kamera([\W_\d].*)?|(c|ch|chan|channel|cctv|view|sensor|device|nvr|dvr)[\W_]*\d+.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Layout:
    """What the levels of the folders mean: the pattern of the paths, and the same in words."""

    pattern: str
    meaning: str


Choose = Callable[[Sequence[Layout]], Layout]
"""Chooses one of several possible layouts, the most likely of which stands first."""

PLAIN = Layout("*", "images without labels")
_LEVELS = {
    "identity": "one person or object",
    "camera": "one camera",
    "split": "one split",
    "modality": "one modality",
}


@dataclass
class FolderListing:
    """The files below a folder in the order of their paths, and what was left out, one sentence each."""

    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def list_files(folder: Path) -> FolderListing:
    """List the files below a folder.  Links are followed, hidden files and folders are left out."""
    listing = FolderListing()
    _list_folder(folder, folder, tuple(_keys_above(folder)), listing)
    listing.files.sort()
    return listing


def _keys_above(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield what tells the folders apart that a folder lies in; a link to one of them would lead back to it."""
    for parent in folder.resolve().parents:
        with suppress(OSError):
            status = parent.stat()
            yield status.st_dev, status.st_ino


def _list_folder(folder: Path, top: Path, above: tuple[tuple[int, int], ...], listing: FolderListing) -> None:
    try:
        status = folder.stat()
        entries = sorted(os.listdir(folder))  # noqa: PTH208 - its errors come here, not while the loop runs
    except OSError as error:
        if folder == top:
            raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
        listing.remarks.append(f"left out: the folder {folder.relative_to(top)} ({error.strerror})")
        return
    key = (status.st_dev, status.st_ino)
    if key in above:
        listing.remarks.append(f"left out: {folder.relative_to(top)}, a link to a folder that it lies in")
        return
    for name in entries:
        path = folder / name
        if name.startswith("."):
            continue
        if path.is_dir():
            _list_folder(path, top, (*above, key), listing)
        elif path.exists():
            listing.files.append(path)
        else:
            listing.remarks.append(f"left out: {path.relative_to(top)}, a link to nothing")


def find_layouts(folder: Path, images: Sequence[Path]) -> list[Layout]:
    """Find what the folders above the images may mean, the most likely first; several where it is not clear.

    Raises:
        DataError: The images lie at several depths, or too deep.
    """
    parts = [path.relative_to(folder).parts[:-1] for path in images]
    depths = {len(part) for part in parts}
    if len(depths) > 1 or max(depths) > 2:
        examples = {len(path.relative_to(folder).parts): path.relative_to(folder).as_posix() for path in images[::-1]}
        raise DataError(
            f"{folder}: expected all images as camera/identity/*.jpg or identity/*.jpg, found"
            f" {', '.join(examples[depth] for depth in sorted(examples))};"
            ' give a pattern such as "{camera}/{identity}_{time}.jpg"'
        )
    levels = [list(dict.fromkeys(level)) for level in zip(*parts, strict=True)]
    if not levels:
        return [PLAIN]
    return [_layout(names) for names in (_one_level if len(levels) == 1 else _two_levels)(levels, len(images))]


def _one_level(levels: Sequence[Sequence[str]], images: int) -> Iterator[tuple[str, ...]]:
    (names,) = levels
    if known := _known_level(names):
        yield (known,)
    elif _look_like_cameras(names):
        yield from (("camera",), ("identity",))
    elif len(names) <= FEW_FOLDERS and images >= MANY_IMAGES * len(names):
        yield from (("identity",), ("camera",))
    else:
        yield ("identity",)


def _two_levels(levels: Sequence[Sequence[str]], images: int) -> Iterator[tuple[str, ...]]:
    first, second = levels
    cameras = [_look_like_cameras(names) for names in levels]
    if known := _known_level(first):
        yield from ((known, level[0]) for level in _one_level([second], images))
    elif cameras == [False, True]:
        yield from (("identity", "camera"), ("camera", "identity"))
    elif cameras == [False, False] and len(first) > len(second):
        yield from (("camera", "identity"), ("identity", "camera"))
    else:
        yield ("camera", "identity")


def _known_level(names: Sequence[str]) -> str:
    """Return "split" or "modality" where all names are of this kind, else ""."""
    if set(names) <= {str(split) for split in Split}:
        return "split"
    return "modality" if set(names) <= {str(modality) for modality in Modality} else ""


def _layout(levels: Sequence[str]) -> Layout:
    pattern = "".join(f"{{{level}}}/" for level in levels) + "*"
    if len(levels) == 1:
        return Layout(pattern, f"each folder is {_LEVELS[levels[0]]}")
    return Layout(pattern, f"each folder is {_LEVELS[levels[0]]}, and each folder in it {_LEVELS[levels[1]]}")


def _look_like_cameras(names: Sequence[str]) -> bool:
    known = [name for name in names if not means_nobody(name)]
    return bool(known) and all(_CAMERA.fullmatch(name) for name in known)


def means_nobody(label: str) -> bool:
    """Say whether a folder is called as if its crops showed nobody in particular.

    Example:
        >>> [name for name in ("anna", "unknown", "Junk") if means_nobody(name)]
        ['unknown', 'Junk']
    """
    return means_unknown(label) or label.casefold() in NOBODY


def explain(layouts: Sequence[Layout], chosen: Layout) -> list[str]:
    """Say what was assumed where several layouts are possible, and how to choose another one."""
    others = [f'if {other.meaning}: --pattern "{other.pattern}"' for other in layouts if other != chosen]
    return [f"assumed that {chosen.meaning}; {', '.join(others)} --force"] if others else []
