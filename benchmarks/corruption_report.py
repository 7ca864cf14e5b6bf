"""Write docs/results/corruption.md from the figures that benchmarks/corruption.py measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def page(folder: Path) -> str:
    """Return the page."""
    return "(page)\n" + "".join(table(file) for file in sorted(folder.glob("*.json")))


def table(file: Path) -> str:
    """Return the table of one place and scenario: mean (sd over the draws) of each score, in percent."""
    known = json.loads(file.read_text())
    names = list(dict.fromkeys(key.rpartition("|")[0] for key in known))
    lines = ["| row | clean | corrupted | corrupted, s-norm |", "|---|---|---|---|"]
    for name in names:
        clean = known.get(f"{name}|-1")
        draws = [known[key] for key in known if key.rpartition("|")[0] == name and not key.endswith("|-1")]
        cells = [cell([clean], "none") if clean else "", cell(draws, "none"), cell(draws, "snorm")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def cell(draws: list[dict[str, dict[str, float]]], norm: str) -> str:
    """Return "mINP / mAP / rank-1" in percent, with the sd of the mAP where there are several draws."""
    found = [one[norm] for one in draws if norm in one]
    if not found:
        return "–"
    means = [100 * float(np.mean([one[score] for one in found])) for score in ("mINP", "mAP", "rank1")]
    deviation = f" ({100 * float(np.std([one['mAP'] for one in found], ddof=1)):.1f})" if len(found) > 1 else ""
    return f"{means[0]:.1f} / {means[1]:.1f}{deviation} / {means[2]:.1f}"
