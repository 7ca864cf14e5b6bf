"""Train and score everything a comparison file names, and put it in one table.

Every training is an ordinary run folder and every score a report beside it, so that a comparison that was interrupted
continues with what is missing, and two processes on one folder share the work.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reid.errors import ReidError
from reid.evaluation import write_reports
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm.added_domain import domain_sizes
from reid.records import Sample, Split
from reid.training.domain_training import train_apart
from reid.training.run_folder import RunFolder, samples_digest
from reid.training.score_tables import Entry, Score, entries, markdown, site_table
from reid.training.site_statistics import STATISTICS, meet
from reid.training.sweep_file import EvaluationSite, Sweep, Variation, rows_of, slug
from reid.training.training_run import torch_settings, train


@dataclass(frozen=True)
class Cost:
    """What one network costs: numbers learnt, those of them that each domain has, minutes of training."""

    name: str
    parameters: int
    of_domains: Mapping[str, int]
    minutes: float


@dataclass(frozen=True)
class SweepOutcome:
    """The scores of all finished runs, the cost of the first seed of each, and why a run is missing, a line each."""

    scores: tuple[Score, ...]
    costs: tuple[Cost, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, list[Any]]:
        """``results``: an entry a row, site and direction, with lists over the seeds; ``costs``; ``missing``."""
        results = [_json_entry(entry) for entry in entries(self.scores)]
        return {"results": results, "costs": [asdict(cost) for cost in self.costs], "missing": list(self.missing)}


def _json_entry(entry: Entry) -> dict[str, Any]:
    """One entry of the JSON, which calls the category "domain" as version 0.1.0 did."""
    return {"domain" if key == "category" else key: value for key, value in asdict(entry).items()}


def run_sweep(
    comparison: Sweep, out: Path, *, progress: bool = False, say: Callable[[str], object] = lambda _: None
) -> SweepOutcome:
    """Train and score what is missing in ``out``, seed by seed, then tell what there is.

    A run that fails (one that diverges, say) is told of in ``missing`` and the others go on.  A run that another
    process is at comes last, and counts as missing if it is not done by then.  ``say`` gets a line before each run,
    ``progress`` draws bars on stderr.
    """
    comparison.check()
    runs = [(variation, seed) for seed in range(comparison.seeds) for variation in comparison.variations]
    waiting, taken = runs, list[tuple[Variation, int]]()
    finished: dict[tuple[str, int], tuple[list[Score], Cost]] = {}
    missing: dict[tuple[str, int], str] = {}
    for _ in range(2):
        for variation, seed in waiting:
            key, title = (variation.name, seed), f"{variation.name}, seed {variation.of_seed(seed).train.seed}"
            say(f"{title} ({runs.index((variation, seed)) + 1} of {len(runs)})")
            try:
                with _alone(_folder(out, variation, seed)):
                    finished[key] = _run(comparison, variation, seed, out, progress)
                missing.pop(key, None)
            except ReidError as error:
                missing[key] = f"{title}: {error}"
                say(f"not finished: {missing[key]}")
                taken += [(variation, seed)] if isinstance(error, _TakenError) else []
        waiting, taken = taken, []
    done = [
        (v.name, seed) for v in comparison.variations for seed in range(comparison.seeds) if (v.name, seed) in finished
    ]
    costs = {key[0]: finished[key][1] for key in reversed(done)}  # of the first seed
    scores = tuple(score for key in done for score in finished[key][0])
    return SweepOutcome(scores, tuple(reversed(costs.values())), tuple(missing.values()))


def tables(comparison: Sweep, outcome: SweepOutcome) -> str:
    """Markdown: a table of rank-1 / mAP for each site, then what each network costs."""
    found = entries(outcome.scores)
    sites = dict.fromkeys(score.site for score in outcome.scores)
    parts = [site_table(found, site, comparison.seeds) for site in sites]
    if outcome.costs:
        head = ("cost", "parameters", "of these, of each domain", "minutes of training")
        parts.append(markdown(head, [_cost_row(cost) for cost in outcome.costs]))
    return "\n\n".join(parts)


def page(comparison: Sweep, outcome: SweepOutcome, made: Mapping[str, str]) -> str:
    """A Markdown page of the results; ``made`` says how they came about (command, machine, date, ...)."""
    seeds = f"mean ± standard deviation over {comparison.seeds} seeds" if comparison.seeds > 1 else "one seed"
    parts = [f"# {comparison.title}", comparison.about.strip(), f"Rank-1 / mAP in percent, {seeds}."]
    parts += [tables(comparison, outcome), *(f"Missing: {line}" for line in outcome.missing)]
    parts.append("\n".join(f"- {key}: {value}" for key, value in made.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _cost_row(cost: Cost) -> tuple[str, ...]:
    sizes = set(cost.of_domains.values()) or {0}
    own = (
        ", ".join(f"{name} {size:,}" for name, size in cost.of_domains.items()) if len(sizes) > 1 else f"{min(sizes):,}"
    )
    return cost.name, f"{cost.parameters:,}", own, f"{cost.minutes:.1f}"


class _TakenError(ReidError):
    """Another process is at a run."""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run folder; an error when another process does.  The system lets go of it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _TakenError(f"another process is at {folder}; the same command shows it once it is done") from error
        yield


def _folder(out: Path, variation: Variation, seed: int) -> Path:
    return out / f"{slug(variation.name)}-{variation.of_seed(seed).train.seed}"


def _run(comparison: Sweep, variation: Variation, seed: int, out: Path, progress: bool) -> tuple[list[Score], Cost]:
    folder, recipe = _folder(out, variation, seed), variation.of_seed(seed).train
    checkpoint = _network(variation, seed, out, progress)
    scores = []
    for site in comparison.sites:
        rows = rows_of(site, variation.domains)
        for name in variation.statistics:
            path = _evaluated(folder, checkpoint, site, rows, name, recipe.threads, progress)
            is_usual = name == "kept" and comparison.statistics == ("kept",)
            row = variation.name if is_usual else f"{variation.name}, {name}"
            alone = {f"{sample.modality.value}->{sample.modality.value}" for sample in rows}
            scores += _shown(_scores(path, row, site, recipe.seed), comparison.directions, alone)
    return scores, _cost(variation.name, checkpoint, RunFolder(folder))


def _network(variation: Variation, seed: int, out: Path, progress: bool) -> Checkpoint:
    """The trained network, trained now as far as it is not."""
    experiment, folder = variation.of_seed(seed), _folder(out, variation, seed)
    base = variation.base
    if base is None or variation.apart is None:
        return load_checkpoint(train(experiment, folder, progress=progress))
    with _alone(_folder(out, base, seed)):
        start = _network(base, seed, out, progress)
    return train_apart(start, base.domains[0], variation.apart, experiment, folder, progress)


def _evaluated(
    folder: Path,
    checkpoint: Checkpoint,
    site: EvaluationSite,
    rows: Sequence[Sample],
    name: str,
    threads: int,
    progress: bool,
) -> Path:
    """The report of a run at a site; made unless it is there, of these weights and these rows."""
    path = folder / f"{slug(site.name)}.{name}.json"
    digests = {split.value: samples_digest([s for s in rows if s.split is split]) for split in Split}
    made = {"weights": checkpoint.weights, "statistics": name, "rows": digests}
    if _made(path) != made:
        asked = sum(sample.split is not Split.TRAIN for sample in rows)
        bar = tqdm(desc=f"{site.name}, {name}", total=asked, unit="img", disable=not progress)
        with torch_settings(threads), bar:
            write_reports([meet(checkpoint, STATISTICS[name], rows, made, bar.update)], path)
    return path


def _made(path: Path) -> object:
    """What the report was made of; None when there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["results"][0]["made"]
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _scores(path: Path, row: str, site: EvaluationSite, seed: int) -> list[Score]:
    shown = ("direction", "rank1", "mAP", "queries", "gallery")
    return [
        Score(row=row, site=site.name, category=entry["domain"], seed=seed, **{key: entry[key] for key in shown})
        for entry in json.loads(path.read_text(encoding="utf-8"))["results"]
    ]


def _shown(scores: Sequence[Score], directions: Sequence[str], alone: Set[str]) -> list[Score]:
    """The scores of ``directions``; "all" too, called by the direction it is where data have one modality alone."""
    names = {"all": next(iter(alone))} if len(alone) == 1 and alone <= set(directions) else {}
    named = [replace(score, direction=names.get(score.direction, score.direction)) for score in scores]
    return [score for score in named if score.direction in (*directions, "all")]


def _cost(name: str, checkpoint: Checkpoint, folder: RunFolder) -> Cost:
    lines = folder.metrics.read_text(encoding="utf-8").splitlines()
    minutes = sum(json.loads(line)["seconds"] for line in lines) / 60
    parameters = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    own = {domain: size.parameters for domain, size in domain_sizes(checkpoint.network).items()}
    return Cost(name, parameters, own, minutes)
