"""Read the times that names of files hold."""

from __future__ import annotations

import re
from datetime import datetime

# Year, month, day, hour, minute and second with anything between them, then AM or PM, then a zone.
_MOMENT = re.compile(
    r"\D*(?P<date>\d{4}\D?\d\d\D?\d\d)\D*?(?P<hour>\d\d|(?<=\D)\d(?=\D))\D?(?P<rest>\d\d\D?\d\d)"
    r"(?P<fraction>[.,]\d+)?[\s_.]*(?P<half>[AaPp][\s._]?[Mm]\.?)?[\s_.]*(?P<zone>[Zz]|UTC|GMT|[+-]\d\d([:._]?\d\d)?)?"
)


def read_time(text: str) -> datetime:
    """Read ISO 8601, or year to second in this order with other separators, AM or PM, and a zone.

    Args:
        text: The part of a name that holds the time.

    Returns:
        The time; with a zone exactly if the text has one.

    Raises:
        ValueError: It is no such time.

    Example:
        >>> read_time("2024-05-31_04-20-00 PM"), read_time("20240531-162000Z").tzname()
        (datetime.datetime(2024, 5, 31, 16, 20), 'UTC')
    """
    match = _MOMENT.fullmatch(text)
    if match is None:
        return datetime.fromisoformat(text)
    date, rest = (re.sub(r"\D", "", match[name]) for name in ("date", "rest"))
    hour, fraction = int(match["hour"]), (match["fraction"] or "").replace(",", ".")
    if match["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(f"{hour} is no hour of a clock of twelve hours")
        hour = hour % 12 + (12 if match["half"][0] in "Pp" else 0)
    return datetime.fromisoformat(f"{date}T{hour:02}{rest}{fraction}{_zone(match['zone'] or '')}")


def _zone(text: str) -> str:
    if text.upper() in ("Z", "UTC", "GMT"):
        return "+0000"
    return re.sub(r"[:._]", "", text).ljust(5, "0") if text else ""
