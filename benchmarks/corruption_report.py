"""Write docs/results/corruption.md from the figures that benchmarks/corruption.py measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

PAGE = """# What helps against corrupted images at test time

Networks meet rain, dirt, blur and noise that they were not trained with. Each row of these tables does something at
test time, without labels and without training images, and the same crops are scored before and after. The corruptions
and their severities are those of the re-identification benchmark ([guide](../corruption.md)); nobody has published
re-estimated BatchNorm statistics on it before.

All networks are public OSNets x0.25 of torchreid, trained on MSMT17 or Market-1501. Unlabelled crops of split train of
the same cameras, corrupted in the same way, are what the rows measure; scored are other identities. A cell is
mINP / mAP (standard deviation over draws of the corruption) / rank-1 in percent. In the last column, scores are
normalized per pair of cameras (s-norm).

## In short

{summary}

## Every image corrupted at random

Every image gets one of twenty types and one of five severities: queries, gallery, and the crops that are measured.

{random}
## One camera with mud on its lens

All images of one camera have mud on them (`spatter`, severity 4), those of the others are clean. The statistics of the
other cameras are those of clean crops. This is what `reid cameras repair` is for; an example of one
draw on the street is in [its guide](../corruption.md#repair-a-camera).

{dirty}
## The rows

- **nothing**: the network as it is.
- **statistics of the batch** (Nado et al. 2020): each batch of 64 scored crops, in random order, is normalized by its
  own statistics. With a prior of 16 (Schneider et al., NeurIPS 2020) those of the network count as 16 images more.
- **statistics of 32 crops, once** (Benz et al., WACV 2021): one set for all cameras, then fixed.
- **statistics of each camera**: measured on so many crops of each camera, as `reid calibrate` does.
- **Tent about the gallery**: the entropy of the similarities to the nearest crops is lowered by scales and shifts, one
  epoch (`reid adapt --method entropy`).
- **matching of BN statistics** (Ishii and Sugiyama 2021): one epoch of 20 steps (`reid adapt --method matching`).

## Limits

- The sets are small ({sizes}), and a standard deviation over draws of the corruption says nothing about other people or
  vehicles.
- The gallery of the vehicles has no crop of the queries' camera, so the s-norm has only one side there.
- Training with corruptions (AugMix) is not compared, because it needs the training images.
- Tent and the matching of statistics use their default settings and 64 crops of each camera.

Made by `python benchmarks/corruption.py --street STREET-B --vehicles VEHICLES --weights FOLDER`; the figures of every
draw are in `benchmarks/results/corruption/`.
"""


def page(folder: Path, sizes: str) -> str:
    """Return the page; ``sizes`` says how many crops were scored."""
    tables = {
        scenario: "".join(table(file, scenario) for file in sorted(folder.glob(f"*-{scenario}.json"), reverse=True))
        for scenario in ("random", "dirty")
    }
    return PAGE.format(summary=summary(folder), sizes=sizes, **tables)


def summary(folder: Path) -> str:
    """Return a line for each place and scenario: what is lost, and the row that brings the most back."""
    lines = []
    for file in sorted(folder.glob("*-random.json"), reverse=True) + sorted(folder.glob("*-dirty.json"), reverse=True):
        place, _, scenario = file.stem.rpartition("-")
        known = json.loads(file.read_text())
        draws: dict[str, list[float]] = {}
        for key, scores in known.items():
            name, _, seed = key.rpartition("|")
            if seed != "-1":
                draws.setdefault(name, []).append(100 * scores["none"]["mAP"])
        if not draws.get("nothing") or len(draws) < 2:
            continue
        most = max(map(len, draws.values()))
        means = {name: float(np.mean(values)) for name, values in draws.items() if len(values) == most}
        best = max(means, key=lambda name: means[name])
        clean = 100 * known["nothing|-1"]["none"]["mAP"]
        what = "everything corrupted" if scenario == "random" else "one camera with mud"
        lines.append(
            f"- {place.replace('-', ' ')}, {what}: mAP {clean:.1f} with clean images, {means['nothing']:.1f} with"
            f" corrupted ones and nothing done; the best row is *{best}* with {means[best]:.1f}."
        )
    return "\n".join(lines)


def table(file: Path, scenario: str) -> str:
    """Return the table of one place and scenario: mean (sd over the draws) of each score, in percent."""
    known = json.loads(file.read_text())
    names = list(dict.fromkeys(key.rpartition("|")[0] for key in known))
    seeds = {int(key.rpartition("|")[2]) for key in known} - {-1}
    if not seeds:  # no corrupted images were scored
        return ""
    title = file.name.removesuffix(f"-{scenario}.json").replace("-", " ")
    heads = ["| row | clean | corrupted | corrupted, s-norm |", "|---|---|---|---|"]
    lines = [f"### {title}, {len(seeds)} draws", "", *heads]
    for name in names:
        clean = known.get(f"{name}|-1")
        draws = [known[f"{name}|{seed}"] for seed in sorted(seeds) if f"{name}|{seed}" in known]
        note = "" if len(draws) == len(seeds) else f" ({len(draws)} draws)"
        cells = [cell([clean], "none") if clean else "–", cell(draws, "none"), cell(draws, "snorm")]
        lines.append(f"| {name}{note} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def cell(draws: list[dict[str, dict[str, float]]], norm: str) -> str:
    """Return "mINP / mAP / rank-1" in percent, with the sd of the mAP where there are several draws."""
    found = [one[norm] for one in draws if norm in one]
    if not found:
        return "–"
    means = [100 * float(np.mean([one[score] for one in found])) for score in ("mINP", "mAP", "rank1")]
    deviation = f" ({100 * float(np.std([one['mAP'] for one in found], ddof=1)):.1f})" if len(found) > 1 else ""
    return f"{means[0]:.1f} / {means[1]:.1f}{deviation} / {means[2]:.1f}"
