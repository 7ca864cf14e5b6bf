"""The errors a user can meet: each says what was expected, what came, where, and what to do.

Every error of the package derives from :class:`ReidError`; the command line turns one into a
single line on stderr and exit code 1.  Nothing here knows of images, models or indexes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReidError(Exception):
    """Something the user can mend: the message is one line and says how."""


class DataError(ReidError):
    """A data set, manifest or image is not what it should be."""


class ConfigError(ReidError):
    """A configuration value is unknown, missing or out of range."""


class WeightsError(ReidError):
    """A weights file does not fit the network, or is unsafe to load."""


class ConditionError(ReidError):
    """A normalization layer was not told the domain it needs, or was told one it does not know."""


class GalleryError(ReidError):
    """A gallery cannot answer: empty, damaged, or made by another network."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that is not known: the nearest known ones first, then all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f' did you mean "{near[0]}"?' if near else ""
    return f'unknown {kind} "{name}";{hint} known: {", ".join(names) or "none"}'
