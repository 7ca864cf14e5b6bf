"""Find the columns of a manifest in the header of a table, whatever the table calls them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reid.data.label_text import clean_text
from reid.errors import DataError
from reid.old_names import current_fields

COLUMNS = ("path", "identity", "camera", "modality", "category", "split")
OPTIONAL_COLUMNS = ("time", "track", "generated")
REQUIRED_COLUMNS = ("path", "identity", "split")
KNOWN_COLUMNS = COLUMNS + OPTIONAL_COLUMNS
MOST_COLUMNS = 1000  # a table with more is no manifest, and naming its columns would take long
SHOWN_COLUMNS = 12

# Other names of the columns, in lower case and without blanks and other signs: "Camera ID" is "cameraid".
SYNONYMS = {
    "path": (
        "image", "img", "imagepath", "imgpath", "imagefile", "imgfile", "imagename", "imgname", "file", "filename",
        "filepath", "crop", "croppath", "relativepath", "relpath",
    ),
    "identity": (
        "pid", "id", "personid", "person", "personname", "label", "labelid", "identityid", "identityname", "identities",
        "subject", "subjectid", "individual", "individualid", "individualname", "vehicleid", "vehicle", "vid",
        "objectid", "targetid", "animalid",
    ),
    "camera": (
        "cam", "camid", "cameraid", "cid", "cameraname", "camname", "camerano", "camno", "cameranumber", "camnumber",
        "cameranum", "camnum", "cameraindex", "camindex", "cameraidx", "camidx", "cameralabel", "camlabel", "sensor",
        "sensorid", "deviceid",
    ),
    "modality": ("modal", "modalityid", "modalityname", "imagemodality", "spectrum"),
    "category": ("categoryname", "objecttype", "objectcategory", "objectclass"),
    "split": ("set", "subset", "partition", "splitname", "datasplit", "dataset"),
    "time": (
        "timestamp", "datetime", "date", "capturetime", "capturedat", "capturedate", "datetaken", "timetaken",
        "recordedat", "timestamputc",
    ),
    "track": ("tracklet", "trackid", "trackletid", "trackname", "trackletname", "trackno", "tracknumber"),
}  # fmt: skip
# Words in the name of a column that should not be passed over while its column is missing.
_TELLING = {"camera": {"cam", "cams", "camera", "cameras"}, "track": {"tracklet", "tracklets"}}
_NAME_OF = {synonym: name for name, synonyms in SYNONYMS.items() for synonym in synonyms}


@dataclass(frozen=True)
class ManifestColumns:
    """The columns of a table as a manifest names them.

    Args:
        names: For each column its name in a manifest, or its own name in small letters where it is not read.
        read_as: For each column of a manifest that stands under a synonym, the name in the table.
        unread: The names of the columns that are not read.
    """

    names: tuple[str, ...]
    read_as: dict[str, str]
    unread: tuple[str, ...]

    def notes(self) -> list[str]:
        """Describe what was read under another name, and what was not read."""
        lines = [f'column "{own}" was read as {name}' for name, own in self.read_as.items()]
        if self.unread:
            lines.append(f"columns that were not read: {shorten(self.unread)}")
        return lines


def shorten(names: Sequence[str]) -> str:
    """List names, of many only the first.

    Example:
        >>> shorten(["a", "b"])
        'a, b'
    """
    more = f", ... ({len(names):,} in all)" if len(names) > SHOWN_COLUMNS else ""
    return ", ".join(name[:80] for name in names[:SHOWN_COLUMNS]) + more


def name_columns(source: str, header: Sequence[str]) -> ManifestColumns:
    """Find the columns of a manifest in a header.

    A column that has the name of a manifest, in any capitals, is read as this one.  Where there is none, a column
    with a known synonym is read.

    Args:
        source: The name of the table, which begins every error message.
        header: The names of all columns.

    Returns:
        The names that a manifest has for them.

    Raises:
        DataError: There are too many columns, a required one is missing, one stands twice, or several may be meant.

    Example:
        >>> name_columns("table", ["Image", "PID", "CamID", "split"]).names
        ('path', 'identity', 'camera', 'split')
    """
    if len(header) > MOST_COLUMNS:
        raise DataError(f"{source}: the header has {len(header):,} columns; expected at most {MOST_COLUMNS:,}")
    own = [clean_text(name) for name in header]
    names = list(current_fields(unicodedata.normalize("NFKC", name).lower() for name in own))
    read_as: dict[str, str] = {}
    counts = Counter(names)
    for name in KNOWN_COLUMNS:
        if counts[name] > 1:
            raise DataError(f"{source}: column {name} stands twice in the header; keep one")
        if counts[name]:
            continue
        meant = [column for column, known in enumerate(names) if _NAME_OF.get(_plain(known)) == name]
        if len(meant) > 1:
            shown = ", ".join(f'"{own[column]}"' for column in meant)
            raise DataError(f"{source}: columns {shown} may each be the column {name}; rename the right one to {name}")
        for column in meant:
            names[column], read_as[name] = name, own[column]
    _check_names(source, names)
    unread = tuple(own[column] for column, name in enumerate(names) if name not in KNOWN_COLUMNS and own[column])
    return ManifestColumns(tuple(names), read_as, unread)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name)


def _check_names(source: str, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"{source}: column {', '.join(missing)} is missing; found {shorten(names) or 'nothing'};"
            f" expected {', '.join(COLUMNS)}"
        )
    absent = [column for column in KNOWN_COLUMNS if column not in names]
    for name in names:
        if name in KNOWN_COLUMNS:
            continue
        near = difflib.get_close_matches(name[:80], absent, n=1, cutoff=0.8)
        if near:
            raise DataError(f'{source}: unknown column "{name}"; did you mean "{near[0]}"?')
        for column, words in _TELLING.items():
            if column in absent and words & set(re.split(r"[\W_\d]+", name)):
                raise DataError(
                    f'{source}: unknown column "{name}"; if it is the {column}, call it {column}, else give it a'
                    f" name without this word"
                )
