"""Write docs/results/label-free.md from what benchmarks/label_free.py measured."""

from __future__ import annotations

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reid.training.score_tables import markdown

WIDTH = 120
PLAIN, JACCARD = "cosine", "rerank camera"
AS_IT_IS, CALIBRATED, ADAPTED, MIXED_BATCHES = "as it is", "calibrated", "adapted", "adapted, mixed batches"
ALL_CROPS = ", all crops"
ALL, MIXED, VISIBLE, ACROSS = "all", "mixed", "visible->visible", "infrared->visible"
SCORINGS = (PLAIN, "csls", "snorm", "learned metric", JACCARD)
TITLES = {"both": "calibrated and centered", "auto": "chosen by auto"}
COMMAND = "python benchmarks/label_free.py --street NAME=FOLDER --vehicles FOLDER --characters FOLDER --weights FOLDER"
ABOUT = """\
What crops of a site are worth when nobody has said who is on them: a network as it is, calibrated, centered, adapted
with `reid adapt`, and each of these with scores that are normalized per pair of cameras (`--score-norm csls` or
`snorm`), with a metric learned from mutual neighbours (`--learn-metric`) and with camera-aware re-ranking
(`--rerank camera`). The people who are scored took no part: statistics, centers and weights come from other people of
the same cameras. Normalized scores, the learned metric and re-ranking use, as always, the other crops of the gallery
(the latter two the queries as well, and CSLS scores). Labels are used for scoring only. Rank-1 / mAP in percent, Market
rule; "mixed" is every query against visible and infrared crops together."""
STREETS = """\
The shipped network was trained on street-a of seed 0. It adapts to 40 people (960 crops, 640 of them visible) in six
cameras, two of them infrared, and other people are scored. Mean ± standard deviation over the seeds of the
adaptation; a row without ± has one seed or no chance in it."""
PUBLISHED = """\
The public OSNet x0.25 checkpoints at 256x128, with plain BatchNorm and trained on real people. "street-b visible" are
the four visible cameras. "vehicles" are two real road cameras: 507 vehicles without labels and 60 others to score, so
one query is 1.7 points. "characters" are handwritten, without cameras: the network stays frozen."""
POOLS = """\
The same network with other crops to adapt to: each person and camera keeps 1 to 4 crops at random, so that numbers are
unequal; or every second person was seen by one camera only. "Adapted to the scored crops" is the transductive case: the
gallery and the queries themselves, without labels. Beside each stands the network that is calibrated on the same
crops."""
PROBES = """\
A linear function of the pooled output of each stage is asked for the camera (of people whom it has not seen) and for
the person (in a camera that it has not seen): `reid cameras probe`. A network that does not see the camera has a camera
probe near chance, and a person probe far above it. Share told rightly, in percent. "small" are the two small networks
that come with the program, trained alike with BN and with camera BN. "scores" takes the scores with the 640 crops of
the pool in place of an embedding. CSLS subtracts from them what depends on the camera of the query alone, so there a
linear function reads the camera at once. That changes no ranking, and a probe is no measure of what normalized scores
do."""

NOT_DONE = """\
- No transformer was trained beside a ResNet; the network with LayerNorm is a ConvNeXt.
- Seeds change the adaptation only, not the training of the network that it starts from."""

SEEDS = 3
PUBLIC = ("msmt17", "market1501")
KINDS = {
    "uneven": "unequal numbers of crops",
    "one camera": "half of the people in one camera",
    "transductive": "the scored crops",
}
Results = Mapping[str, Any]


def page(results: Results, trained: Results) -> str:
    """Write the document."""
    from label_free_trained import sections

    jobs = {name: result for name, result in results.items() if not name.startswith("probe|")}
    parts = ["# What a site without labels can gain", ABOUT, "## In short", "\n".join(in_short(jobs))]
    parts += ["## The street", STREETS, *street_tables(jobs)]
    if any("|shipped|" not in name for name in jobs):
        parts += ["## Public networks", PUBLISHED, *published_tables(jobs)]
    if rows := pool_rows(jobs):
        head = ["crops to adapt to", "network", f"{VISIBLE}, {PLAIN}", f"{VISIBLE}, csls", f"{MIXED}, {PLAIN}"]
        parts += ["## Other crops to adapt to", POOLS, markdown(head, rows)]
    if any("adaptation" in result for result in jobs.values()):
        parts += ["## What the adaptations say of themselves", verdicts(jobs)]
    if probes := {name: result for name, result in results.items() if name.startswith("probe|")}:
        parts += ["## What the stages know", PROBES, *probe_tables(probes)]
    parts += sections(trained)
    parts += ["## What was not done", "\n".join([NOT_DONE, *map(wrapped, unfinished(results))]), stamp(jobs)]
    return "\n\n".join(parts) + "\n"


def by_row(jobs: Results, place: str, network: str) -> dict[str, list[dict[str, Any]]]:
    """The results of a network at a place by level, one for each seed."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, result in jobs.items():
        where, which, level, _ = name.split("|")
        if (where, which) == (place, network):
            found[level].append(result)
    return dict(found)


def figures(results: Sequence[Mapping[str, Any]], scoring: str, direction: str) -> list[tuple[float, float]]:
    """Rank-1 and mAP in percent of each seed; [] where nothing was scored, as after a refusal."""
    found = []
    for result in results:
        by_direction = result["scores"].get(scoring, {})
        names = [n for n in by_direction if n.endswith(f"->{MIXED}")] if direction == MIXED else [direction]
        rows = [by_direction[name] for name in names if name in by_direction]
        if rows:
            queries = sum(row[2] for row in rows)
            found.append(tuple(100 * sum(row[i] * row[2] for row in rows) / queries for i in (0, 1)))
    return found  # type: ignore[return-value]


def cell(results: Sequence[Mapping[str, Any]], scoring: str, direction: str) -> str:
    found = figures(results, scoring, direction)
    if not found:
        return "declined"
    columns = list(zip(*found, strict=True))
    if len(found) == 1:
        return " / ".join(f"{column[0]:.1f}" for column in columns)
    return " / ".join(f"{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}" for column in columns)


def title(level: str, results: Sequence[object]) -> str:
    seeds = f" ({len(results)} seeds)" if len(results) > 1 else " (1 seed)" if level.startswith(ADAPTED) else ""
    return TITLES.get(level, level) + seeds


def mean_of(jobs: Results, place: str, network: str, level: str, scoring: str, direction: str, at: int = 1) -> float:
    found = figures(by_row(jobs, place, network).get(level, []), scoring, direction)
    return statistics.mean(row[at] for row in found) if found else float("nan")


def streets(jobs: Results) -> list[str]:
    """The streets at which the shipped network adapted to all crops."""
    places = dict.fromkeys(name.split("|")[0] for name in jobs if f"|shipped|{AS_IT_IS}|" in name)
    return list(places)


def in_short(jobs: Results) -> Iterator[str]:
    """The steps of every place and network, and what the adaptation adds to calibration."""
    pairs = dict.fromkeys(tuple(name.split("|")[:2]) for name in jobs)
    gains = []
    for place, network in pairs:
        rows = by_row(jobs, place, network)
        adapted = next(
            (level for level in sorted(rows) if level.startswith(ADAPTED) and MIXED_BATCHES not in level), ""
        )
        words = ADAPTED + adapted.removeprefix(ADAPTED).replace(ALL_CROPS, " to all crops").replace(", ", " for ")
        directions = dict.fromkeys(name for found in rows.values() for r in found for name in r["scores"][PLAIN])
        for direction in [
            d for d in (VISIBLE, MIXED, ALL) if d in directions or (d == MIXED and VISIBLE in directions)
        ]:
            steps = [
                (mean_of(jobs, place, network, level, scoring, direction), text)
                for text, level, scoring in (
                    ("as it is", AS_IT_IS, PLAIN),
                    ("calibrated", CALIBRATED, PLAIN),
                    ("calibrated with CSLS", CALIBRATED, "csls"),
                    (words, adapted, PLAIN),
                    (f"{words} with CSLS", adapted, "csls"),
                    (f"{words} and re-ranked", adapted, JACCARD),
                )
            ]
            listed = ", ".join(f"{value:.1f} {text}" for value, text in steps if value == value)
            yield wrapped(f"- {place}, {network} network{'' if direction == ALL else f', {direction}'}: mAP {listed}.")
            if steps[3][0] == steps[3][0] and steps[1][0] == steps[1][0]:
                gains.append(f"{steps[3][0] - steps[1][0]:+.1f} ({place}, {network}, {direction})")
    if gains:
        yield wrapped(
            f"- What adapting adds to calibrating, in points of mAP: {'; '.join(gains)}. The shipped network was"
            " trained on drawn people like these, the public ones on photographs."
        )
    yield from losers(jobs)


def losers(jobs: Results) -> Iterator[str]:
    """What made mAP worse by half a point or more: levels against simpler ones, and scorings against cosine."""
    changes = []
    for place, network, level in dict.fromkeys(tuple(name.split("|")[:3]) for name in jobs):
        rows = by_row(jobs, place, network)
        directions = {d for result in rows[level] for d in result["scores"][PLAIN]}
        for direction in sorted(directions):
            plain = mean_of(jobs, place, network, level, PLAIN, direction)
            simpler = CALIBRATED if level.startswith(ADAPTED) else AS_IT_IS
            before = mean_of(jobs, place, network, simpler, PLAIN, direction)
            where = f"{place}, {network}, {direction}"
            if level != AS_IT_IS:
                changes.append((plain - before, f"{TITLES.get(level, level)} against {simpler} ({where})"))
            for scoring in SCORINGS[1:]:
                value = mean_of(jobs, place, network, level, scoring, direction)
                changes.append((value - plain, f"{scoring} on top of {TITLES.get(level, level)} ({where})"))
    worse = sorted(change for change in changes if change[0] <= -0.5)
    if worse:
        listed = "; ".join(f"{text} {value:+.1f}" for value, text in worse[:8])
        yield wrapped(f"- {len(worse)} of {len(changes)} changes cost mAP half a point or more. The largest: {listed}.")


def wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def street_tables(jobs: Results) -> Iterator[str]:
    for place in streets(jobs):
        rows = by_row(jobs, place, "shipped")
        for direction in (VISIBLE, MIXED, ACROSS):
            table = [
                [title(level, found), *(cell(found, s, direction) for s in SCORINGS)] for level, found in rows.items()
            ]
            yield markdown([f"{place}, {direction}", *SCORINGS], table)
    if any(f"|{MIXED_BATCHES}" in name for name in jobs):
        yield wrapped(
            '"Mixed batches" is the same adaptation with one set of statistics for all cameras, taken over the whole'
            " batch in training, from the mixture of the statistics that the network has. Compare rows of"
            " as many epochs."
        )
    if any(ALL_CROPS in name for name in jobs):
        yield wrapped(
            '"All crops", like rows with a number of epochs, trains on every crop from the first epoch. Plain "adapted"'
            " is what `reid adapt` does: three of ten clusters take no part in the first two epochs and judge them, and"
            " without a clear gain the calibrated network is given back."
        )


def published_tables(jobs: Results) -> Iterator[str]:
    names = dict.fromkeys(name.split("|")[1] for name in jobs)
    places = dict.fromkeys(name.split("|")[0] for name in jobs)
    for network in [name for name in names if name != "shipped"]:
        for place in places:
            rows = by_row(jobs, place, network)
            for direction in dict.fromkeys(d for found in rows.values() for r in found for d in r["scores"][PLAIN]):
                table = [
                    [title(level, found), *(cell(found, s, direction) for s in SCORINGS)]
                    for level, found in rows.items()
                ]
                yield markdown([f"{network}, {place}", *SCORINGS], table)


def pool_rows(jobs: Results) -> list[list[str]]:
    rows = []
    for kind, words in KINDS.items():
        for place in dict.fromkeys(name.split("|")[0] for name in jobs):
            if not place.endswith(kind):
                continue
            for level, found in by_row(jobs, place, "shipped").items():
                cells = [cell(found, s, d) for s, d in ((PLAIN, VISIBLE), ("csls", VISIBLE), (PLAIN, MIXED))]
                rows.append([f"{words} ({found[0]['crops']['pool']})", title(level, found), *cells])
    return rows


def verdicts(jobs: Results) -> str:
    rows = []
    for name, result in jobs.items():
        if "adaptation" in result:
            place, network, level, seed = name.split("|")
            recipe = result["adaptation"]
            kept = f"epoch {recipe['kept_epoch']} of {recipe.get('epochs', 8)}" if recipe["adapted"] else "not adapted"
            notes = "; ".join(recipe["notes"]) or "-"
            rows.append([place, network, level, seed, kept, str(result.get("cpu_seconds", "-")), notes])
    return markdown(["place", "network", "level", "seed", "kept", "seconds of a core", "notes"], rows)


def probe_tables(probes: Results) -> Iterator[str]:
    for what, name in (("camera", "camera"), ("person", "identity")):
        networks: dict[str, dict[str, float]] = {}
        chance = 0.0
        for key, rows in probes.items():
            _, network, level, _ = key.split("|")
            networks[f"{network}, {TITLES.get(level, level)}"] = {row["stage"]: row[name] for row in rows}
            chance = rows[0][f"{name}_chance"]
        names = dict.fromkeys(stage for row in networks.values() for stage in row)
        stages = sorted(names, key="embedding".__eq__)
        table = [
            [network, *(f"{100 * row[stage]:.1f}" if stage in row else "" for stage in stages)]
            for network, row in networks.items()
        ]
        yield markdown([f"{what} told (chance {100 * chance:.1f})", *stages], table)


def unfinished(results: Results) -> Iterator[str]:
    """What the script measures when it is given more time."""
    places = streets({name: result for name, result in results.items() if not name.startswith("probe|")})
    wanted = [(f"{place}|shipped|{ADAPTED}|", SEEDS, f"the adaptation to {place}") for place in places]
    wanted += [(f"{place}|shipped|{MIXED_BATCHES}", SEEDS, "the adaptation in mixed batches") for place in places[:1]]
    for network in PUBLIC:
        wanted += [(f"{place} visible|{network}|{ADAPTED}", 1, f"{network} adapted to {place}") for place in places[:1]]
        wanted += [
            (f"vehicles|{network}|{level}|", 1, f"{network}, {level}, on vehicles") for level in (AS_IT_IS, ADAPTED)
        ]
        wanted.append((f"characters|{network}|", 1, f"{network} on characters"))
    for kind, words in KINDS.items():
        wanted += [(f"{place} {kind}|", 1, f"an adaptation to {words}") for place in places[:1]]
    for beginning, count, what in wanted:
        found = sum(name.startswith(beginning) for name in results)
        if found < count:
            yield f"- Not measured yet: {what}" + (f", with {found} of {count} seeds." if found else ".")


def stamp(jobs: Results) -> str:
    marks = dict.fromkeys(r["fingerprint"] for name, r in jobs.items() if f"|{AS_IT_IS}|" in name)
    return (
        wrapped(f"- command: `{COMMAND}`")
        + "\n"
        + wrapped(f"- fingerprints of the networks as they are: {', '.join(marks)}")
    )
