"""The persons of a gallery as JSON values and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reid.evaluation.grouping import GroupingScores, score_grouping
from reid.retrieval.persons.decisions import person_name
from reid.retrieval.persons.person_state import PersonState


def describe_persons(state: PersonState) -> list[dict[str, Any]]:
    """Describe the persons of a gallery.

    Args:
        state: The persons.

    Returns:
        One table for each person, the lowest number first: its id, its name, its confidence (the mean of its crops),
        its cameras, its first and last time, how many of its crops are confirmed, and its crops.
    """
    order = np.argsort(state.persons, kind="stable")
    order = order[state.persons[order] > 0]
    numbers, starts = np.unique(state.persons[order], return_index=True)
    sureness, confirmed = state.sureness, state.confirmed
    persons = []
    for number, rows in zip(numbers.tolist(), np.split(order, starts)[1:], strict=True):
        crops = []
        for row, sample in zip(rows.tolist(), state.table.samples_at(rows), strict=True):
            crops.append(
                {
                    "path": str(sample.path),
                    "camera": sample.camera,
                    "time": sample.time.isoformat() if sample.time else None,
                    "confidence": round(float(sureness[row]), 4),
                    "confirmed": bool(confirmed[row]),
                }
            )
        times = sorted(str(crop["time"]) for crop in crops if crop["time"])
        persons.append(
            {
                "person": person_name(number),
                "name": state.names_of_persons.get(number, ""),
                "confidence": round(float(sureness[rows].mean()), 4),
                "number_of_crops": len(crops),
                "confirmed": int(confirmed[rows].sum()),
                "cameras": sorted({str(crop["camera"]) for crop in crops} - {""}),
                "first_time": times[0] if times else None,
                "last_time": times[-1] if times else None,
                "crops": crops,
            }
        )
    return persons


def score_persons(state: PersonState) -> GroupingScores | None:
    """Compare the persons of a gallery with the identities of its rows; None where it knows none."""
    texts = {}
    for name in ("identity", "category"):
        codes, words = state.table.codes(name)
        texts[name] = [words[code] for code in codes.tolist()]
    labels = [f"{category}/{name}" if name else "" for name, category in zip(*texts.values(), strict=True)]
    return score_grouping(state.persons, labels)


def persons_json(state: PersonState) -> dict[str, Any]:
    """Return the persons of a gallery, with scores where identities are known."""
    scores = score_persons(state)
    persons = describe_persons(state)
    return {
        "crops": len(state.persons),
        "number_of_persons": len(persons),
        "undecided": int((state.persons == 0).sum()),
        "decisions": len(state.log.decisions),
        "method": state.facts.get("method"),
        "false_match_rate": state.facts.get("false_match_rate"),
        "persons": persons,
        "scores": None if scores is None else scores.to_json(),
    }


def person_lines(state: PersonState) -> list[str]:
    """Return one line for each person: id, confidence, number of crops, confirmed ones, cameras, name."""
    return [
        "\t".join(
            (
                one["person"],
                f"{one['confidence']:.2f}",
                _counted(one["number_of_crops"], "crop"),
                f"{one['confirmed']} confirmed",
                ",".join(one["cameras"]) or "-",
                one["name"],
            )
        ).rstrip()
        for one in describe_persons(state)
    ]


def summary_line(report: dict[str, Any]) -> str:
    """Return what a person wants to know first, from the values of :func:`persons_json`."""
    line = (
        f"{_counted(report['number_of_persons'], 'person')} in {_counted(report['crops'], 'crop')},"
        f" {report['undecided']} undecided, {_counted(report['decisions'], 'decision')}"
    )
    scores = report["scores"]
    if scores:
        line += (
            f"; against {scores['identities']} identities: pairwise F1 {scores['pairwise_f1']:.3f},"
            f" purity {scores['purity']:.3f}, V-measure {scores['v_measure']:.3f}"
        )
    return line


def decision_line(number: int, table: dict[str, Any]) -> str:
    """Return a decision as a line of text, from its JSON values."""
    person = person_name(table["person"]) if table["person"] else "-"
    crops: Sequence[dict[str, str]] = table["crops"]
    words = [str(number), table["time"], table["verb"], person, " ".join(crop["path"] for crop in crops)]
    if table.get("others"):
        words.append("not " + " ".join(crop["path"] for crop in table["others"]))
    if table.get("absorbed"):
        words.append("with " + " ".join(person_name(one) for one in table["absorbed"]))
    return "\t".join([*words, *([table["text"]] if table.get("text") else [])])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
