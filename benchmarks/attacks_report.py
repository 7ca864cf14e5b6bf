"""Write docs/results/attacks.md from the figures that benchmarks/attacks.py measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Table = dict[str, Any]
PAGE = """# Attacks on queries, and trainings against them

An attack changes the pixels of a query a little, so that the search does not find its person any more. What the methods
and the sizes mean is in [the guide](../attacks.md). Every size is in grey levels of 0 to 255. White box means that the
attacker has the network.

A cell is rank-1 / mAP in percent, and in brackets the mean cosine between the embeddings of the clean and of the
attacked query.

## In short

{summary}

## White box

{white}
`random` is no attack: it draws ten random changes of the same size for each query and keeps the one that moves the
embedding most. A gradient attack that gains less than it would be a sign of masked gradients.

## Transfer

Queries are attacked in one network and searched in another. The last column is the white box.

{transfer}
## Trainings against attacks

{defences}
{alarm}
## Limits

- {sizes} These are few queries, and no interval is given: differences of a few points mean nothing.
- The networks are small (OSNet x0.25 and a ResNet-18 with 3/8 of its channels). The street is synthetic; the vehicles
  are real.
- The attacks know the network and the image preparation. Re-ranking and normalized scores were not used, and the
  attacks do not aim at them.
- Only queries are attacked. Attacked galleries were not measured.
- The trainings against attacks are fine-tunings of the shipped `small-plain.safetensors` with 60 updates of 32 images
  each, with one seed. A published adversarial training has thousands of updates. So the table shows what little effort
  brings, not what the methods can do.
- The seconds were measured while many other programs used the two cores.
{missing}
Made by `python benchmarks/attacks.py --street FOLDER --vehicles VEHICLES --weights FOLDER --people 20 --identities 16`
with `--minutes`, which left out the rows that the tables of the vehicles lack; the figures are in
`benchmarks/results/attacks/`.
"""
COSTS = """An update without attacks, and one of free adversarial training, is a forward and a backward pass of 32
crops. Attacked copies cost four such passes more for the attack of three steps, two forward passes, and a batch of
twice the crops: about seven times as much. The seconds show it only roughly, because they were measured beside other
work. Gated BN costs nothing more at test time but a small gate in each of the first layers."""
ALARM_TEXT = """An alarm that attacked crops raise no more often than clean crops is no alarm: then the gates have not
learned to tell attacks. The gates here see the mean and the deviation of each channel, not the map as the published
ones do, and a change of few grey levels hardly moves these; 60 updates are few as well."""
DEFENCE_NAMES = {
    "plain": "no attacks in the training",
    "free": "free adversarial training",
    "shared": "attacked copies, shared BN",
    "gated": "gated BN, the gates choose",
    "branch known": "gated BN, the branch is known",
    "anti_collapse": "attacked copies, anti-collapse triplet",
}


def page(folder: Path) -> str:
    """Return the page from the files of figures in a folder."""
    places = {name: _read(folder / f"{name}.json") for name in ("street-a-people", "vehicles")}
    defences = _read(folder / "defences.json")
    return PAGE.format(
        summary=_summary(places, defences),
        white="\n".join(_white_box(name, table) for name, table in places.items() if table),
        transfer="\n".join(_transfer(name, table) for name, table in places.items() if table),
        defences=_defences(defences),
        alarm=_alarm(defences),
        sizes=_sizes(places, defences),
        missing=_missing(defences),
    )


def _read(file: Path) -> Table:
    return json.loads(file.read_text()) if file.exists() else {}


def _cell(scores: dict[str, float], clean: bool = False) -> str:
    before = "clean_" if clean else ""
    cell = f"{100 * scores[f'{before}rank1']:.1f} / {100 * scores[f'{before}mAP']:.1f}"
    return cell if clean else f"{cell} ({scores['cosine']:.2f})"


def _white_box(place: str, table: Table) -> str:
    found = [key.split("|") for key in table if key.count("|") == 2]
    networks = list(dict.fromkeys(source for _, source, _ in found))
    plans = sorted({plan for plan, source, target in found if source == target}, key=_order)
    lines = [f"**{place.replace('-people', ', people')}**", "", f"| attack | {' | '.join(networks)} |"]
    lines.append("|---" * (len(networks) + 1) + "|")
    first = {name: next(value for key, value in table.items() if key.endswith(f"|{name}|{name}")) for name in networks}
    lines.append(f"| none | {' | '.join(_cell(first[name], clean=True) for name in networks)} |")
    for plan in plans:
        cells = [table.get(f"{plan}|{name}|{name}") for name in networks]
        lines.append(f"| {plan} | {' | '.join('not run' if one is None else _cell(one) for one in cells)} |")
    return "\n".join([*lines, ""])


def _order(plan: str) -> tuple[int, str, float]:
    words = plan.split()
    return (0 if words[0] == "random" else 2 if words[0] == "universal" else 1, " ".join(words[:-1]), float(words[-1]))


def _transfer(place: str, table: Table) -> str:
    lines = [f"**{place.replace('-people', ', people')}**", "", "| attack | made in | searched in | clean | attacked |"]
    lines[-1] += " white box |"
    lines.append("|---" * 6 + "|")
    for key, scores in table.items():
        if key.count("|") != 2:
            continue
        plan, source, target = key.split("|")
        own = table.get(f"{plan}|{target}|{target}")
        if source != target and own:
            lines.append(f"| {plan} | {source} | {target} | {_cell(scores, True)} | {_cell(scores)} | {_cell(own)} |")
    return "\n".join([*lines, ""])


def _means(table: Table, start: str) -> dict[str, float] | None:
    found = [value for key, value in table.items() if key.startswith(f"{start}|")]
    if not found:
        return None
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _defences(table: Table) -> str:
    if not table:
        return "Not run.\n"
    tests = sorted({key.split("|")[0] for key in table if key.startswith(("odfa", "self"))})
    head = f"| training | clean | {' | '.join(tests)} | seconds of training |"
    lines = [head, "|---" * (len(tests) + 3) + "|"]
    for name, title in DEFENCE_NAMES.items():
        clean = _means(table, f"clean|{name}")
        if clean is None:
            continue
        cells = [_means(table, f"{test}|{name}") for test in tests]
        shown = ["not run" if one is None else _cell(one) for one in cells]
        lines.append(f"| {title} | {_cell(clean, True)} | {' | '.join([*shown, _seconds(table, name)])} |")
    return "\n".join([*lines, "", COSTS, ""])


def _seconds(table: Table, name: str) -> str:
    found = [value for key, value in table.items() if key.startswith(f"seconds|{name}|")]
    return f"{np.mean(found):.0f}" if found else "-"


def _alarm(table: Table) -> str:
    found = [value for key, value in table.items() if key.startswith("alarm|")]
    if not found:
        return ""
    names = [name for name in found[0] if name not in ("threshold", "stated rate")]
    lines = [
        "## The gates as an alarm",
        "",
        f"The threshold was measured on the clean crops of the training, for a false-alarm rate of"
        f" {100 * found[0]['stated rate']:g} %. All crops here are of other people.",
        "",
        "| crops | share that raises the alarm |",
        "|---|---|",
    ]
    lines += [f"| {name} | {100 * np.mean([one[name] for one in found]):.1f} % |" for name in names]
    return "\n".join([*lines, "", ALARM_TEXT, ""])


def _sizes(places: dict[str, Table], defences: Table) -> str:
    tables = {**places, "trainings against attacks (street-a-people)": defences}
    parts = [f"{name}: {one['queries']} queries, {one['gallery']} gallery crops" for name, one in tables.items() if one]
    return "; ".join(parts) + "."


def _missing(defences: Table) -> str:
    missing = [title for name, title in DEFENCE_NAMES.items() if _means(defences, f"clean|{name}") is None]
    return f"- Not run: {', '.join(missing)}.\n" if missing else ""


def _pair(scores: dict[str, float]) -> str:
    return f"{100 * scores['clean_rank1']:.0f} to {100 * scores['rank1']:.0f} %"


def _summary(places: dict[str, Table], defences: Table) -> str:
    lines = []
    for place, table in places.items():
        white = {key: one for key, one in table.items() if key.startswith("odfa ifgsm linf 8|")}
        own = [f"{key.split('|')[1]} from {_pair(one)}" for key, one in white.items() if len(set(key.split("|"))) == 2]
        noise = [one for key, one in table.items() if key.startswith("random linf 8|")]
        if own:
            lines.append(f"- {place}: ODFA of 8 grey levels takes rank-1 down, in {', in '.join(own)}.")
        if noise:
            smallest = min(one["cosine"] for one in noise)
            lines.append(f"- {place}: random changes of the same size leave a cosine of {smallest:.2f} or more.")
    lines += _transfer_summary(places)
    alarms = [value for key, value in defences.items() if key.startswith("alarm|")]
    if alarms:
        caught = max(value for one in alarms for name, value in one.items() if name.startswith("attacked"))
        lines.append(
            f"- The gates of gated BN, as an alarm at {100 * alarms[0]['stated rate']:g} % of false alarms, find"
            f" at most {100 * caught:.0f} % of the attacked queries after this short training."
        )
    plain = _means(defences, "self linf 4|plain")
    others = [(name, _means(defences, f"self linf 4|{name}")) for name in ("free", "shared", "gated", "anti_collapse")]
    told: Sequence[str] = [f"{DEFENCE_NAMES[name]} {100 * one['mAP']:.1f}" for name, one in others if one]
    if plain and told:
        lines.append(
            f"- Under a self metric attack of 4 grey levels, mAP is {100 * plain['mAP']:.1f} without attacks in the"
            f" training; {'; '.join(told)}."
        )
    return "\n".join(lines)


def _transfer_summary(places: dict[str, Table]) -> list[str]:
    pairs = []
    for table in places.values():
        for key, one in table.items():
            if key.count("|") == 2 and "linf 8" in key and len(set(key.split("|"))) == 3:
                plan, _, target = key.split("|")
                own = table.get(f"{plan}|{target}|{target}")
                pairs += [] if own is None else [one["cosine"] >= own["cosine"]]
    if not pairs:
        return []
    return [
        f"- A transferred attack moves embeddings less than the white box in {sum(pairs)} of {len(pairs)} pairs of"
        " networks."
    ]
