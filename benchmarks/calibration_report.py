"""Writes docs/results/calibration.md from the scores of benchmarks/calibration.py; measures nothing.

Its sentences are computed from the same numbers as its tables, so that they stay true when these change.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reid.training.tables import Entry, markdown, spread

ABOUT = """\
Rank-1 / mAP in percent. "Test vehicles" are the 60 test vehicles of two real road cameras (one query is 1.7 points),
"all vehicles" the 567 of training and test together (1014 of these crops are also those that were measured, without
labels), both with public OSNet x0.25 weights trained on people. Street-b is a synthetic site that no network was
trained on: 40 people are scored. `±` is the standard deviation over 3 random choices of crops; rows without it use all
crops, or the first ones, and have no choice. Differences of a point or two are within what the few queries can tell."""

PARTS = {
    "methods": (
        "Methods",
        "On all unlabelled crops of split train. Centering subtracts a camera's mean embedding; AdaBN measures one set"
        " of statistics for all cameras of the site together. Averaged batches lose the variance between batches. All"
        " but the neck, and the neck alone: the other layers keep the network's own statistics.",
    ),
    "crops": (
        "How many crops",
        "Crops of each camera, merged exactly: on the street up to 1000, of 250 people who are not scored. In"
        " order means the earliest first, four crops of each passing (vehicles: those of the manifest, by kind).",
    ),
    "prior": (
        "A prior",
        "With 16 random crops a camera: its statistics drawn towards the network's own as if N crops had shown those"
        " (Schneider et al. 2020). N = 0 is no prior.",
    ),
}
COMMAND = "python benchmarks/calibration.py --vehicles VEHICLES --weights FOLDER"
PLAIN, EXACT, SITE = "plain", "per camera, batches of 128 merged exactly", "one set for the site (AdaBN)"
CENTERED = "plain, centered per camera"


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The document of the results of every network at every place."""
    found = {
        part: [Entry(**entry) for result in results.values() for entry in result["scores"][part]] for part in PARTS
    }
    made = {
        "command": f"`{COMMAND}`",
        "cost": f"{sum(result['seconds'] for result in results.values()) / 60:.0f} minutes of one core, shared",
        "weights": "; ".join(f"{site}: {result['weights']}" for site, result in results.items()),
    }
    parts = ["# What calibration brings, and what it takes", ABOUT, *reading(found)]
    for part, (title, about) in PARTS.items():
        parts += [f"## {title}", about, *tables(found[part])]
    parts.append("\n".join(f"- {key}: {value}" for key, value in made.items()))
    return "\n\n".join(parts) + "\n"


def tables(found: Sequence[Entry]) -> Iterator[str]:
    """One table a site; its columns are the directions."""
    for site in dict.fromkeys(entry.site for entry in found):
        here = [entry for entry in found if entry.site == site]
        ways = list(dict.fromkeys(entry.direction for entry in here))
        cells = {(e.row, e.direction): f"{spread(e.rank1)} / {spread(e.mAP)}" for e in here}
        rows = dict.fromkeys(entry.row for entry in here)
        yield markdown([site, *ways], [[row, *(cells[row, way] for way in ways)] for row in rows])


def reading(found: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    """A list of what the tables say, place by place, gains and losses alike."""
    lines = [
        f"- {entry.site}, {entry.direction}: {_changes(found['methods'], entry)}"
        for entry in found["methods"]
        if entry.row == PLAIN
    ]
    yield "mAP by place, in points against the network as it is (largest first):"
    yield "\n".join(lines)
    yield "\n".join(_crops(found["crops"]))
    yield "\n".join([*_averaging(found["methods"]), *_prior(found["prior"])])


def _mean(entry: Entry) -> float:
    return 100 * statistics.mean(entry.mAP)


def _at(found: Sequence[Entry], place: Entry) -> dict[str, float]:
    """mAP of every row, in percent, where ``place`` is."""
    return {e.row: _mean(e) for e in found if (e.site, e.direction) == (place.site, place.direction)}


def _changes(found: Sequence[Entry], place: Entry) -> str:
    at = _at(found, place)
    names = {EXACT: "per camera", SITE: "one set for the site", CENTERED: "centering"}
    changes = sorted(((at[row] - at[PLAIN], name) for row, name in names.items()), reverse=True)
    return ", ".join(f"{name} {change:+.1f}" for change, name in changes) + "."


def _crops(found: Sequence[Entry]) -> Iterator[str]:
    """From how many random crops on a mean lies within a point of all crops, and what order costs."""
    for place in (entry for entry in found if entry.row == "none"):
        at = _at(found, place)
        (full,) = (value for row, value in at.items() if row.startswith("all"))
        drawn = {int(row.split(",")[0]): value for row, value in at.items() if row.endswith("at random")}
        near = [count for count in drawn if all(abs(full - drawn[c]) <= 1 for c in drawn if c >= count)]
        enough = (
            f"within a point of all crops from {min(near)} on" if near else "not within a point of all crops before all"
        )
        ordered = {count: at[f"{count}, in order"] - value for count, value in drawn.items()}
        worst = min(ordered, key=lambda count: ordered[count])
        least, none = min(drawn), at["none"]
        yield (
            f"- {place.site}, {place.direction}: random crops are {enough}; {least} give {drawn[least] - none:+.1f}"
            f" against none, all {full - none:+.1f}; order costs most at {worst} crops ({ordered[worst]:+.1f})."
        )


def _averaging(found: Sequence[Entry]) -> Iterator[str]:
    for size in (128, 16):
        differences = []
        for place in (entry for entry in found if entry.row == PLAIN):
            at = _at(found, place)
            merged = f"per camera, batches of {size} merged exactly"
            if merged in at and f"per camera, batches of {size} averaged" in at:
                differences.append(at[merged] - at[f"per camera, batches of {size} averaged"])
        least, most = min(differences), max(differences)
        yield (
            f"- Batches of {size}, merged exactly against averaged: mAP {least:+.1f} to {most:+.1f},"
            f" mean {statistics.mean(differences):+.1f}."
        )


def _prior(found: Sequence[Entry]) -> Iterator[str]:
    for place in (entry for entry in found if entry.row == "none"):
        at = _at(found, place)
        best = max((row for row in at if row.startswith("N")), key=lambda row: at[row])
        gain = at[best] - at["N = 0"]
        yield f"- Prior with 16 crops, {place.site}, {place.direction}: best {best} ({gain:+.1f} against N = 0)."
