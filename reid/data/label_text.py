"""Bring the text of labels into one form as it enters the program, so that equal labels are equal text.

Tables and folders come from spreadsheets, other systems and other languages: the same name may arrive in two Unicode
forms, with invisible characters, as a number with a decimal point, or as a word that means "missing".
"""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import datetime

# Words that programs write for a missing value, in the spellings that are no names ("Nan" and "Na" are).
NULL_WORDS = frozenset((
    "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "na", "<NA>", "<na>", "N/A", "n/a", "n.a.", "N.A.", "#N/A", "#NA",
    "#N/A N/A", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "#NULL!", "NaT", "nat", "none", "None", "NONE", "<none>",
    "<None>", "null", "Null", "NULL", "<null>", "<NULL>", "(null)", "(NULL)", "nil",
))  # fmt: skip
# Words that people write for an identity, a camera or a track that is not known, in any capitals.
UNKNOWN_WORDS = frozenset((
    "unknown", "unk", "unidentified", "unlabelled", "unlabeled", "undefined", "not available", "?", "??", "???", "-1",
))  # fmt: skip
# Control characters, line separators, and the surrogates that stand for bytes that are not Unicode.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_MARKED_WORDS = frozenset(word.casefold() for word in NULL_WORDS if not word.isalpha())  # no names in any capitals
_DASH = re.compile(r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")  # programs write them in place of the hyphen
_INVISIBLE = re.compile("[\u034f\u180b-\u180d\ufe00-\ufe0f]")  # marks without a form of their own
_SPREADSHEET_TEXT = re.compile(r'="(.*)"', re.DOTALL)
_WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0+")
_FORMULA = re.compile(r"[=+\-@＝＋－＠]")  # what spreadsheets take for the beginning of a formula
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0", "")  # what a column of marks may hold
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_DEFUSED = re.compile(r"'+[=+\-@＝＋－＠]")


def clean_text(text: str) -> str:
    """Remove invisible characters and outer blanks of any kind, and compose accents (Unicode NFC).

    Example:
        >>> clean_text("\\ufeff Zoe\\u0301\\u200e\\u00a0") == "Zo\\u00e9"
        True
    """
    if text.isascii():
        return text.strip()
    visible = "".join(c for c in _INVISIBLE.sub("", text) if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", visible).strip()


def clean_label(text: str) -> str:
    """Bring a label into the form in which labels are compared.

    Beside what :func:`clean_text` does, text that a spreadsheet protects is unwrapped, and a whole number with a
    decimal point, as pandas writes a column with missing cells, loses the point.

    Example:
        >>> clean_label('="0001"'), clean_label("3.0"), clean_label("3.5")
        ('0001', '3', '3.5')
    """
    text = clean_text(text)
    if wrapped := _SPREADSHEET_TEXT.fullmatch(text):
        text = clean_text(wrapped[1].replace('""', '"'))
    if whole := _WHOLE_FLOAT.fullmatch(text):
        text = whole[1]
    return text


def cell_text(value: object) -> str:
    """Return the text that a CSV would hold for a cell of a typed table.

    Pandas turns a column of integers into floats when a cell is missing, so whole floats are written as integers.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape").strip()  # what is not UTF-8 is refused with other bad text
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value).strip()


def means_missing(text: str) -> bool:
    """Say whether a cell is a word that programs write where there is no value, or dashes of any kind.

    Example:
        >>> [text for text in ("", "NaN", "Nan", "#n/a", "---", "-1") if means_missing(text)]
        ['NaN', '#n/a', '---']
    """
    text = _DASH.sub("-", text)
    return text in NULL_WORDS or text.casefold() in _MARKED_WORDS or (text != "" and not text.strip("-"))


def means_unknown(label: str) -> bool:
    """Say whether an identity, a camera or a track is a word that means that it is not known.

    Example:
        >>> [label for label in ("anna", "Unknown", "NaN", "-1") if means_unknown(label)]
        ['Unknown', 'NaN', '-1']
    """
    return means_missing(label) or _DASH.sub("-", label).casefold() in UNKNOWN_WORDS


def means_yes(text: str) -> bool | None:
    """Whether a cell says yes (yes, true, 1) or no (no, false, 0, or nothing); None for other text.

    Example:
        >>> [means_yes(text) for text in ("yes", "False", "", "maybe")]
        [True, False, False, None]
    """
    word = text.lower()
    return word in _YES if word in _YES + _NO else None


def likeness_key(label: str) -> str:
    """Make a key that is equal for labels that differ only in what is easily written in another way.

    That are capitals, blanks, the width of letters, leading zeros, and the kind of a dash or an underscore.

    Example:
        >>> likeness_key("Cam 1") == likeness_key("cam1"), likeness_key("0007") == likeness_key("7")
        (True, True)
        >>> likeness_key("cam\u20131") == likeness_key("cam-1") == likeness_key("cam_1")
        True
    """
    key = re.sub(r"\s+", "", _DASH.sub("-", unicodedata.normalize("NFKC", label)).replace("_", "-").casefold())
    return key.lstrip("0") or "0" if key.isdecimal() else key


def defuse(cell: str) -> str:
    """Write a cell of a CSV so that no spreadsheet takes it for a formula; :func:`restore` reads it back.

    Numbers stay as they are.

    Example:
        >>> defuse("=cmd|' /C calc'!A0"), restore(defuse("=cmd|' /C calc'!A0"))
        ("'=cmd|' /C calc'!A0", "=cmd|' /C calc'!A0")
    """
    harmful = _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if harmful or _DEFUSED.match(cell) else cell


def restore(cell: str) -> str:
    """Remove the apostrophe that :func:`defuse` puts before a cell."""
    return cell[1:] if _DEFUSED.match(cell) else cell
