"""Write docs/results/calibration.md from the scores of benchmarks/calibration.py; this file measures nothing.

Its sentences are computed from the same numbers as its tables, so that they stay true when these change.
"""

from __future__ import annotations

import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reid.training.score_tables import Entry, markdown, spread

ABOUT = """\
Rank-1 / mAP in percent. "Test vehicles" are the 60 test vehicles of two real road cameras
(Khoa-Nguyen-Truong/Vehicle-Re-ID-Dataset, Apache-2.0; one query is 1.7 points), "all vehicles" the 567 of training and
test together (1014 of these 1134 crops are also those that were measured, without labels), both with public OSNet x0.25
weights trained on people. Street-b is a synthetic site that no network was trained on; 40 people are scored. `±` is the
standard deviation over 3 random choices of crops; rows without it use all crops, or the first ones, without a choice.
Differences of a point or two are within what so few queries can tell."""

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
        " order means the earliest first, four crops of each track (vehicles: those of the manifest, by type).",
    ),
    "prior": (
        "A prior",
        "With 16 random crops a camera: its statistics are drawn towards the network's own, as if N crops had those"
        " (Schneider et al. 2020). N = 0 is no prior.",
    ),
}
WIDTH = 120
COMMAND = "python benchmarks/calibration.py --vehicles VEHICLES --weights FOLDER"
PLAIN, EXACT, SITE = "plain", "per camera, batches of 128 merged exactly", "one set for the site (AdaBN)"
CENTERED = "plain, centered per camera"
NO_NECK, NECK = "per camera, all but the neck", "per camera, the neck alone"


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the document of the results of every network for every data set."""
    found = {
        part: [stored_entry(entry) for result in results.values() for entry in result["scores"][part]] for part in PARTS
    }
    provenance = {
        "command": f"`{COMMAND}`",
        "cost": f"{sum(result['seconds'] for result in results.values()) / 60:.0f} minutes of one core, shared",
        "fingerprints of the weights": ", ".join(dict.fromkeys(result["weights"] for result in results.values())),
    }
    parts = ["# What calibration brings, and what it takes", ABOUT, "## In short", *reading(found)]
    for part, (title, about) in PARTS.items():
        parts += [f"## {title}", textwrap.fill(about, WIDTH), *tables(found[part])]
    parts.append("\n".join(f"- {key}: {value}" for key, value in provenance.items()))
    return "\n\n".join(parts) + "\n"


def stored_entry(entry: Mapping[str, Any]) -> Entry:
    """Read one entry of the results; version 0.1.0 called the category "domain"."""
    return Entry(**{"category" if key == "domain" else key: value for key, value in entry.items()})


def tables(found: Sequence[Entry]) -> Iterator[str]:
    """One table a site; its columns are the directions."""
    for site in dict.fromkeys(entry.site for entry in found):
        here = [entry for entry in found if entry.site == site]
        ways = list(dict.fromkeys(entry.direction for entry in here))
        cells = {(e.row, e.direction): f"{spread(e.rank1)} / {spread(e.mAP)}" for e in here}
        rows = dict.fromkeys(entry.row for entry in here)
        yield markdown([site, *ways], [[row, *(cells[row, way] for way in ways)] for row in rows])


def reading(found: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    """Summarize the tables, gains and losses alike, by mAP; a case is a table and a direction."""
    methods, crops, prior = (cases(found[part]) for part in PARTS)
    lines = [
        _against_plain(methods, EXACT, "Statistics per camera"),
        _against_plain(methods, SITE, "One set for the site"),
    ]
    lines += [_against_plain(methods, CENTERED, "Centering"), _neck(methods), *_averaging(methods)]
    lines += [*_crops(crops), *_prior(prior)]
    yield "\n".join(textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines)
    names = {EXACT: "per camera", SITE: "one set", CENTERED: "centering", NO_NECK: "all but the neck", NECK: "the neck"}
    rows = [
        [case, f"{at[PLAIN]:.1f}", *(f"{at[row] - at[PLAIN]:+.1f}" if row in at else "-" for row in names)]
        for case, at in methods.items()
    ]
    yield "mAP of the network as it is, and what each method changes, in points:"
    yield markdown(["", PLAIN, *names.values()], rows)


def cases(found: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Return the mAP of every row in percent, by case."""
    at: dict[str, dict[str, float]] = {}
    for entry in found:
        site = re.sub(r" \(.*?\)", "", entry.site)  # without the network, which the tables below name
        at.setdefault(f"{site}, {entry.direction}", {})[entry.row] = 100 * statistics.mean(entry.mAP)
    return at


def _verdict(changes: Mapping[str, float]) -> str:
    """How often a change is for the better and for the worse by more than a point, and its ends."""
    better, worse = sum(c > 1 for c in changes.values()), sum(c < -1 for c in changes.values())
    least, most = min(changes, key=lambda p: changes[p]), max(changes, key=lambda p: changes[p])
    return (
        f"better by more than a point in {better} of {len(changes)} cases, worse in {worse}; from"
        f" {changes[least]:+.1f} ({least}) to {changes[most]:+.1f} ({most})"
    )


def _against_plain(methods: Mapping[str, Mapping[str, float]], row: str, name: str) -> str:
    return f"{name}, against none: {_verdict({case: at[row] - at[PLAIN] for case, at in methods.items()})}."


def _neck(methods: Mapping[str, Mapping[str, float]]) -> str:
    changes = {case: at[EXACT] - at[NO_NECK] for case, at in methods.items() if NO_NECK in at}
    return f"Calibrating the neck too, against all but the neck: {_verdict(changes)}."


def _averaging(methods: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for size in (128, 16):
        merged, averaged = (f"per camera, batches of {size} {how}" for how in ("merged exactly", "averaged"))
        differences = [at[merged] - at[averaged] for at in methods.values() if averaged in at]
        yield (
            f"Batches of {size}, merged exactly against averaged: {min(differences):+.1f} to {max(differences):+.1f},"
            f" mean {statistics.mean(differences):+.1f}."
        )


def _crops(crops: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What few crops cost, from how many on there are enough, and what order costs."""
    drawn = {p: {int(r.split(",")[0]): v for r, v in at.items() if r.endswith("at random")} for p, at in crops.items()}
    least = min(min(counts) for counts in drawn.values())
    changes = {case: drawn[case][least] - at["none"] for case, at in crops.items()}
    yield f"{least} random crops, against none: {_verdict(changes)}."
    enough: Counter[str] = Counter()
    for case, at in crops.items():
        (full,) = (value for row, value in at.items() if row.startswith("all"))
        near = [n for n in drawn[case] if all(abs(full - v) <= 1 for m, v in drawn[case].items() if m >= n)]
        enough[f"from {min(near)}" if near else f"beyond {max(drawn[case])}"] += 1
    counts = ", ".join(f"{word} in {number}" for word, number in enough.most_common())
    yield f"mAP stays within a point of that of all crops {counts} of {len(crops)} cases, at random."
    for count in (32, 128):
        changes = {case: at[f"{count}, in order"] - drawn[case][count] for case, at in crops.items()}
        yield f"The first {count} crops, against {count} random ones: {_verdict(changes)}."


def _prior(prior: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for row, other in (("N = 8", "N = 0"), ("N = 8", "none"), ("N = 32", "none")):
        changes = {case: at[row] - at[other] for case, at in prior.items()}
        yield f"16 crops with {row}, against {other}: {_verdict(changes)}."
