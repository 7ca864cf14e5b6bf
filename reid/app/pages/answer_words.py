"""Answers of a search as words and as rows of an export."""

from __future__ import annotations

from pathlib import Path

from reid.errors import ReidError
from reid.records import Sample
from reid.retrieval.search import Answer


def rate_words(rate: float) -> str:
    """Return a false-match rate in words.

    Example:
        >>> rate_words(0.25), rate_words(0.0001), rate_words(0.0)
        ('1 in 4', '1 in 10,000', 'under 1 in a million')
    """
    return "under 1 in a million" if rate < 1e-6 else f"1 in {round(1 / rate):,}"


def time_words(sample: Sample) -> str:
    """Return when a crop was taken; "" where it is not known."""
    return "" if sample.time is None else f"{sample.time:%d %b %Y %H:%M:%S}"


def export_row(rank: int, answer: Answer, row: int) -> dict[str, object]:
    """Return an answer as a row of an export; ``row`` is the lasting id of its row."""
    sample, match = answer.sample, answer.match
    return {
        "rank": rank,
        "score": round(answer.score, 6),
        "normalized_score": None if answer.normalized is None else round(answer.normalized, 6),
        "verdict": None if match is None else str(match.verdict),
        "false_match_rate": None if match is None else match.false_match_rate,
        "row": row,
        "identity": sample.identity,
        "camera": sample.camera,
        "modality": str(sample.modality),
        "category": sample.category,
        "time": sample.time.isoformat() if sample.time else None,
        "image": Path(sample.path).name,
    }


def sentence(text: str) -> str:
    """Return a note as a sentence.

    Example:
        >>> sentence("its camera is unknown")
        'Its camera is unknown.'
    """
    return f"{text[:1].upper()}{text[1:]}."


def one_line(error: ReidError) -> str:
    """Return the message of an error in one line that starts with a capital letter."""
    text = " ".join(str(error).split())
    return text[:1].upper() + text[1:]
