"""What people have decided about the crops of a gallery: who is the same person, who is not, and who has which name.

A decision says that some crops show one person, and may say that other crops do not show this person.  They are
must-link and cannot-link constraints for every grouping.  Crops are named by their path and by a hash of their content,
so that decisions survive when a gallery is built again or an image is moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from reid.errors import DataError, unknown_name

VERBS = ("confirm", "same", "different", "name")
NO_PERSON = 0
PREFIX = "person-"
FORMAT = "reid-decisions-1"


def person_name(person: int) -> str:
    """Return the id of a person as users see it.

    Example:
        >>> person_name(12)
        'person-12'
    """
    return f"{PREFIX}{person}"


def person_number(text: str) -> int:
    """Return the number in an id such as "person-12"; 0 where the text is no such id.

    Example:
        >>> person_number("person-12"), person_number("anna"), person_number("person-012")
        (12, 0, 0)
    """
    digits = text.removeprefix(PREFIX)
    if not text.startswith(PREFIX) or not (digits.isascii() and digits.isdigit()) or digits.startswith("0"):
        return NO_PERSON
    return int(digits) if len(digits) < 16 else NO_PERSON


@dataclass(frozen=True, order=True)
class CropKey:
    """What names a crop in a decision.

    Attributes:
        path: Its path, as the gallery has it.
        content: A hash of its file; "" where the file was not there.
    """

    path: str
    content: str = ""

    @property
    def name(self) -> str:
        """What tells the crop from others: its content where it is known, else its path."""
        return self.content or self.path


@dataclass(frozen=True)
class Decision:
    """One decision of a human.

    Attributes:
        verb: What was decided: "confirm", "same", "different" or "name".
        person: The number of the person that the crops show; 0 where it is only said that they differ from others.
        crops: The crops that show this person.
        others: Crops that do not show the person of the crops.
        other_person: The number of the person that the others show; 0 where nothing is said about it.
        absorbed: The numbers of persons that are this person, so that their crops belong to it.
        text: The name that the person gets, for the verb "name".
        time: When it was decided, ISO 8601.
        replaced: Older decisions that said the opposite and were given up for this one.
        positions: Where in the log they stood, ascending.

    Raises:
        DataError: The verb is unknown, or the decision names no crop or no person.
    """

    verb: str
    person: int
    crops: tuple[CropKey, ...]
    others: tuple[CropKey, ...] = ()
    other_person: int = NO_PERSON
    absorbed: tuple[int, ...] = ()
    text: str = ""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    replaced: tuple[Decision, ...] = ()
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.verb not in VERBS:
            raise DataError(unknown_name("decision", self.verb, VERBS))
        least = 0 if self.verb == "different" else 1
        if self.person < least or self.other_person < 0 or not self.crops or any(one < 1 for one in self.absorbed):
            raise DataError(f'decision "{self.verb}": expected a person and at least one crop of it')
        if self.person == self.other_person != NO_PERSON:
            raise DataError(f'decision "{self.verb}": expected two persons, got {person_name(self.person)} twice')
        if len(self.replaced) != len(self.positions):
            raise DataError(f'decision "{self.verb}": expected one position for each replaced decision')

    def to_json(self) -> dict[str, Any]:
        """Return the decision as JSON values; what is empty is left out."""
        table: dict[str, Any] = {"verb": self.verb, "person": self.person, "crops": _keys_to_json(self.crops)}
        table |= {"others": _keys_to_json(self.others)} if self.others else {}
        table |= {"other_person": self.other_person} if self.other_person else {}
        table |= {"absorbed": list(self.absorbed)} if self.absorbed else {}
        table |= {"text": self.text} if self.text else {}
        table |= {"time": self.time}
        if self.replaced:
            table |= {"replaced": [one.to_json() for one in self.replaced], "positions": list(self.positions)}
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Decision:
        """Return the decision that :meth:`to_json` wrote.

        Raises:
            DataError: The table is something else.
        """
        try:
            return cls(
                str(table["verb"]),
                _whole_number(table["person"]),
                _keys_of_json(table["crops"]),
                _keys_of_json(table.get("others", ())),
                _whole_number(table.get("other_person", NO_PERSON)),
                tuple(_whole_number(one) for one in table.get("absorbed", ())),
                str(table.get("text", "")),
                str(table["time"]),
                tuple(cls.from_json(one) for one in table.get("replaced", ())),
                tuple(_whole_number(one) for one in table.get("positions", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"expected a decision, got something else ({type(error).__name__}: {error})") from None

    def without(self, erased: set[CropKey]) -> Decision | None:
        """Return the decision without erased crops; None where nothing is left of it."""
        crops, others = (tuple(key for key in keys if key not in erased) for keys in (self.crops, self.others))
        if not crops or (self.verb == "different" and not others):
            return None
        kept = [one.without(erased) for one in self.replaced]
        positions = tuple(where for where, one in zip(self.positions, kept, strict=True) if one is not None)
        replaced = tuple(one for one in kept if one is not None)
        return replace(self, crops=crops, others=others, replaced=replaced, positions=positions)

    def named_crops(self) -> Iterable[CropKey]:
        """Yield every crop that the decision names, those of replaced decisions included."""
        yield from self.crops
        yield from self.others
        for one in self.replaced:
            yield from one.named_crops()

    def numbers(self) -> Iterable[int]:
        """Yield the number of every person that the decision names."""
        yield from (one for one in (self.person, self.other_person) if one)
        yield from self.absorbed
        for one in self.replaced:
            yield from one.numbers()


def _keys_to_json(keys: Iterable[CropKey]) -> list[dict[str, str]]:
    return [{"path": key.path} | ({"content": key.content} if key.content else {}) for key in keys]


def _keys_of_json(keys: Iterable[Mapping[str, Any]]) -> tuple[CropKey, ...]:
    return tuple(CropKey(str(key["path"]), str(key.get("content", ""))) for key in keys)


def _whole_number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"expected a number, got {value!r}")
    return value
