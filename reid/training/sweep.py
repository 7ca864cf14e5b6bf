"""Train and score everything that a sweep file names, and put it in one table.

Every training has an ordinary run folder, and every score is a report in it. So a sweep that was interrupted continues
with what is missing, and two processes on one folder share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reid.config import Experiment
from reid.errors import ReidError
from reid.evaluation import write_reports
from reid.evaluation.reports.report_json import read_results
from reid.files import locked
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm.added_domain import domain_sizes
from reid.records import Sample, Split
from reid.training.domain_training import train_added_domain
from reid.training.run_folder import RunFolder, samples_digest
from reid.training.score_tables import Entry, Score, entries, markdown, site_table
from reid.training.site_statistics import STATISTICS, evaluate_site
from reid.training.sweep_file import EvaluationSite, Sweep, Variation, make_slug, samples_of_site
from reid.training.training_run import torch_settings, train


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Attributes:
        name: The name of the variation.
        parameters: The number of learnt parameters.
        of_domains: How many of them belong to each domain.
        minutes: The time of the training.
    """

    name: str
    parameters: int
    of_domains: Mapping[str, int]
    minutes: float


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep has found so far.

    Attributes:
        scores: The scores of all finished runs.
        costs: The cost of the first finished seed of each variation.
        missing: Why a run is missing, in one line each.
    """

    scores: tuple[Score, ...]
    costs: tuple[Cost, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, list[Any]]:
        """Return ``results`` (an entry for each row, site, category and direction), ``costs`` and ``missing``."""
        results = [_json_entry(entry) for entry in entries(self.scores)]
        return {"results": results, "costs": [asdict(cost) for cost in self.costs], "missing": list(self.missing)}


def _json_entry(entry: Entry) -> dict[str, Any]:
    """Write an entry for JSON, which calls the category "domain" as version 0.1.0 did."""
    return {"domain" if key == "category" else key: value for key, value in asdict(entry).items()}


def run_sweep(
    sweep: Sweep, out: Path, *, progress: bool = False, say: Callable[[str], object] = lambda _: None
) -> SweepOutcome:
    """Train and score what is missing in a folder, seed by seed.

    A run that fails, for example because it diverges, is listed as missing, and the others go on. A run that another
    process holds is tried again at the end.

    Args:
        sweep: The sweep.
        out: The folder of the runs.
        progress: Whether to draw bars on stderr.
        say: Is called with a line before each run and after each failure.

    Returns:
        Everything that is finished, whether by this call or an earlier one.

    Raises:
        ReidError: The sweep does not fit its data; no run has begun.
    """
    sweep.check()
    runs = [_Run(variation, seed) for seed in range(sweep.seeds) for variation in sweep.variations]
    finished: dict[_Run, tuple[list[Score], Cost]] = {}
    missing: dict[_Run, str] = {}
    waiting = runs
    for _ in range(2):
        busy = list[_Run]()
        for run in waiting:
            say(f"{run.title} ({runs.index(run) + 1} of {len(runs)})")
            try:
                with _held(run.folder(out)):
                    finished[run] = _score_run(sweep, run, out, progress)
                missing.pop(run, None)
            except ReidError as error:
                missing[run] = f"{run.title}: {error}"
                say(f"not finished: {missing[run]}")
                if isinstance(error, _RunBusyError):
                    busy.append(run)
        waiting = busy
    return _collect(sweep, finished, tuple(missing.values()))


def tables(sweep: Sweep, outcome: SweepOutcome) -> str:
    """Make Markdown: a table of rank-1 / mAP for each site, and a table of what each network costs."""
    found = entries(outcome.scores)
    sites = dict.fromkeys(score.site for score in outcome.scores)
    parts = [site_table(found, site, sweep.seeds) for site in sites]
    if outcome.costs:
        head = ("cost", "parameters", "of these, of each domain", "minutes of training")
        parts.append(markdown(head, [_cost_row(cost) for cost in outcome.costs]))
    return "\n\n".join(parts)


def page(sweep: Sweep, outcome: SweepOutcome, provenance: Mapping[str, str]) -> str:
    """Make a Markdown page of the results.

    Args:
        sweep: The sweep.
        outcome: Its results.
        provenance: How the results came about: command, machine, date and so on.
    """
    seeds = f"mean ± standard deviation over {sweep.seeds} seeds" if sweep.seeds > 1 else "one seed"
    parts = [f"# {sweep.title}", sweep.about.strip(), f"Rank-1 / mAP in percent, {seeds}."]
    parts += [tables(sweep, outcome), *(f"Missing: {line}" for line in outcome.missing)]
    parts.append("\n".join(f"- {key}: {value}" for key, value in provenance.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _cost_row(cost: Cost) -> tuple[str, ...]:
    sizes = set(cost.of_domains.values()) or {0}
    own = (
        ", ".join(f"{name} {size:,}" for name, size in cost.of_domains.items()) if len(sizes) > 1 else f"{min(sizes):,}"
    )
    return cost.name, f"{cost.parameters:,}", own, f"{cost.minutes:.1f}"


@dataclass(frozen=True, eq=False)
class _Run:
    """One training: a variation with one seed, counted from the seed of the file."""

    variation: Variation
    seed: int

    @property
    def experiment(self) -> Experiment:
        return self.variation.of_seed(self.seed)

    @property
    def title(self) -> str:
        return f"{self.variation.name}, seed {self.experiment.train.seed}"

    def folder(self, out: Path) -> Path:
        return out / f"{make_slug(self.variation.name)}-{self.experiment.train.seed}"


class _RunBusyError(ReidError):
    """Another process holds the folder of a run."""


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a run folder during the ``with`` block; _RunBusyError if another process does.

    The system releases the lock when a process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError as error:
            raise _RunBusyError(f"another process is at {folder}; the same command shows it once it is done") from error
        yield


def _collect(sweep: Sweep, finished: Mapping[_Run, tuple[list[Score], Cost]], missing: tuple[str, ...]) -> SweepOutcome:
    """Order the finished runs by variation and seed."""
    names = [variation.name for variation in sweep.variations]
    done = sorted(finished, key=lambda run: (names.index(run.variation.name), run.seed))
    costs: dict[str, Cost] = {}
    for run in done:
        costs.setdefault(run.variation.name, finished[run][1])  # of the first seed
    return SweepOutcome(tuple(score for run in done for score in finished[run][0]), tuple(costs.values()), missing)


def _score_run(sweep: Sweep, run: _Run, out: Path, progress: bool) -> tuple[list[Score], Cost]:
    """Train a run as far as it is not trained, and score it at every site with each of its statistics."""
    checkpoint = _trained_network(run, out, progress)
    scores = []
    for site in sweep.sites:
        samples = samples_of_site(site, run.variation.categories)
        directions = {f"{sample.modality.value}->{sample.modality.value}" for sample in samples}
        for statistics in run.variation.statistics:
            path = _write_report(run, checkpoint, site, samples, statistics, out, progress)
            is_default = statistics == "kept" and sweep.statistics == ("kept",)
            row = run.variation.name if is_default else f"{run.variation.name}, {statistics}"
            found = _read_scores(path, row, site, run.experiment.train.seed)
            scores += _choose_directions(found, sweep.directions, directions)
    return scores, _cost(run.variation.name, checkpoint, RunFolder(run.folder(out)))


def _trained_network(run: _Run, out: Path, progress: bool) -> Checkpoint:
    """Train the network of a run as far as it is not trained, and load it."""
    base, addition, folder = run.variation.base, run.variation.addition, run.folder(out)
    if base is None or addition is None:
        return load_checkpoint(train(run.experiment, folder, progress=progress))
    base_run = _Run(base, run.seed)
    with _held(base_run.folder(out)):
        start = _trained_network(base_run, out, progress)
    return train_added_domain(start, base.categories[0], addition, run.experiment, folder, progress)


def _write_report(
    run: _Run,
    checkpoint: Checkpoint,
    site: EvaluationSite,
    samples: Sequence[Sample],
    statistics: str,
    out: Path,
    progress: bool,
) -> Path:
    """Evaluate a run at a site, unless a report of these weights and these rows exists."""
    path = run.folder(out) / f"{make_slug(site.name)}.{statistics}.json"
    digests = {split.value: samples_digest([s for s in samples if s.split is split]) for split in Split}
    provenance = {"weights": checkpoint.weights, "statistics": statistics, "rows": digests}
    if _provenance_of(path) != provenance:
        scored = sum(sample.split is not Split.TRAIN for sample in samples)
        bar = tqdm(desc=f"{site.name}, {statistics}", total=scored, unit="img", disable=not progress)
        with torch_settings(run.experiment.train.threads), bar:
            write_reports([evaluate_site(checkpoint, STATISTICS[statistics], samples, provenance, bar.update)], path)
    return path


def _provenance_of(path: Path) -> object:
    """Read of what weights and rows a report is; None if there is no report that can be read."""
    try:
        return read_results(path)[0]["made"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _read_scores(path: Path, row: str, site: EvaluationSite, seed: int) -> list[Score]:
    fields = ("direction", "rank1", "mAP", "queries", "gallery")
    return [
        Score(row=row, site=site.name, category=entry["domain"], seed=seed, **{key: entry[key] for key in fields})
        for entry in read_results(path)
    ]


def _choose_directions(scores: Sequence[Score], directions: Sequence[str], own: Set[str]) -> list[Score]:
    """Choose the scores of ``directions`` and those of "all".

    ``own`` holds the direction within each modality of the data. If it is a single one of ``directions``, "all" gets
    its name.
    """
    names = {"all": next(iter(own))} if len(own) == 1 and own <= set(directions) else {}
    named = [replace(score, direction=names.get(score.direction, score.direction)) for score in scores]
    return [score for score in named if score.direction in (*directions, "all")]


def _cost(name: str, checkpoint: Checkpoint, folder: RunFolder) -> Cost:
    minutes = sum(line.get("seconds", 0.0) for line in folder.read_metrics()) / 60
    parameters = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    own = {domain: size.parameters for domain, size in domain_sizes(checkpoint.network).items()}
    return Cost(name, parameters, own, minutes)
