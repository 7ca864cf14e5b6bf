"""The errors that a user can meet.

Each message tells in one line what was expected, what came instead, where, and what to do.  Every error of the package
derives from :class:`ReidError`; the command line turns one into a line on stderr and exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReidError(Exception):
    """The base of all errors of this package; the message is one line and names a remedy."""


class DataError(ReidError):
    """A data set, a manifest or an image is missing or wrong."""


class ConfigError(ReidError):
    """A value of a configuration or of an option is unknown, missing or out of range."""


class WeightsError(ReidError):
    """A weights file is missing or damaged, does not fit the network, or is unsafe to load."""


class ConditionError(ReidError):
    """A normalization layer has no domain for its images, or one that it does not know."""


class GalleryError(ReidError):
    """A gallery cannot answer, because it is missing, empty, damaged, or built by another network."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return one line about a name that is unknown.

    Args:
        what: What the name stands for.
        name: The name.
        known: The known names.

    Returns:
        A message with the most similar known name, if one is similar, and with all known names.

    Example:
        >>> unknown_name("camera", "dor", ["door", "yard"])
        'unknown camera "dor"; did you mean "door"? known: door, yard'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f' did you mean "{near[0]}"?' if near else ""
    return f'unknown {what} "{name}";{hint} known: {", ".join(names) or "none"}'
