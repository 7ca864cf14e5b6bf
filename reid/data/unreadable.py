"""Images that cannot be read, for commands that list them and go on.

Without :func:`handled_by` the first such image is an error, which is the usual policy, "stop".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from reid.errors import DataError
from reid.records import Sample

STOP, LIST = POLICIES = ("stop", "list")
SHOWN = 20  # images that :meth:`Unreadable.lines` names


@dataclass
class Unreadable:
    """The images that could not be read.

    Attributes:
        reasons: The path of each, and why.

    Example:
        >>> unreadable = Unreadable()
        >>> unreadable.add(Sample(Path("1.jpg")), DataError("1.jpg: no such image"))
        >>> unreadable.lines()
        ['left out 1 image that cannot be read:', '  1.jpg: no such image']
    """

    reasons: dict[Path, str] = field(default_factory=dict)

    def add(self, sample: Sample, error: DataError) -> None:
        """Note an image, once."""
        self.reasons[sample.path] = str(error)

    def __len__(self) -> int:
        return len(self.reasons)

    def lines(self) -> list[str]:
        """Describe them for a person; nothing where all images could be read."""
        if not self.reasons:
            return []
        what = "image that cannot be read" if len(self) == 1 else "images that cannot be read"
        shown = [f"  {reason}" for reason in list(self.reasons.values())[:SHOWN]]
        rest = [f"  ... and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return [f"left out {len(self)} {what}:", *shown, *rest]


_CURRENT: ContextVar[Unreadable | None] = ContextVar("unreadable", default=None)


def current_unreadable() -> Unreadable | None:
    """Return where images that cannot be read are to be noted; None where the first one is an error."""
    return _CURRENT.get()


@contextmanager
def handled_by(unreadable: Unreadable | None) -> Iterator[None]:
    """Note images that cannot be read in ``unreadable`` inside the ``with``, and leave them out; None stops at one."""
    token = _CURRENT.set(unreadable)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def count_unreadable(samples: Iterable[Sample]) -> int:
    """Count the samples whose images were noted as unreadable and left out."""
    unreadable = _CURRENT.get()
    return 0 if unreadable is None else sum(sample.path in unreadable.reasons for sample in samples)
