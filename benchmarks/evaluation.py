"""Measure what scoring costs beside torchmetrics, pytorch-metric-learning, sorting and the matrix product.

    python benchmarks/evaluation.py [--threads 1] [--only WORK] [--large] [--json benchmarks/results/evaluation.json]
        [--torchreid torchreid-0.2.5]

Every comparison runs in one process, in turn, on the same vectors, and counts only if all agree on the result.  Times
are processor seconds, which depend less on other work on the machine than those of the clock; ratios are medians over
rounds.  "memory" is how far the first run raised the resident memory (Linux).

Queries and gallery have different cameras, since the libraries have no rule about cameras.  Scores are positive, since
torchmetrics takes scores of 0 or less for no answer.  "textbook sorting" and "textbook dense" (whole matrices and a
loop over rows) are written down below; they stand in for FastReID and faiss_rerank, which are not on PyPI, and are not
those.  open-metric-learning needs numpy < 2.

The package torchreid of PyPI cannot be imported, but its files of distances, ranking and re-ranking can.  With
--torchreid and the folder that `pip download torchreid==0.2.5 --no-deps --no-binary :all:` unpacks to, they are
measured too.  Its ranking in Cython is not in that file; this is its ranking in Python, the slower one.
--large adds 10,000 x 1,000,000.  --small is a trial of the program and no measurement.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytorch_metric_learning
import torch
import torchmetrics
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from threadpoolctl import threadpool_info, threadpool_limits
from torchmetrics.retrieval import RetrievalMAP

from reid.evaluation import market_metrics
from reid.retrieval.rerank import k_reciprocal

Vectors = np.ndarray
Size = tuple[int, int, int]
Work = dict[str, Callable[[], object]]
# queries, gallery rows, dimensions, rounds after the first
FULL = {
    "market 512": ((3_368, 15_913, 512), 3),
    "market 2048": ((3_368, 15_913, 2_048), 1),
    "libraries": ((200, 15_913, 512), 5),
    "msmt17": ((11_659, 82_161, 512), 0),
    "rerank 4800": ((800, 4_000, 512), 3),
    "rerank 9640": ((1_607, 8_033, 512), 1),
    "rerank 19281": ((3_368, 15_913, 512), 0),
}
LARGE = {"million": ((10_000, 1_000_000, 512), 0)}
SMALL = {
    "market 512": ((100, 1_000, 64), 2),
    "libraries": ((40, 1_000, 64), 2),
    "msmt17": ((100, 2_000, 64), 0),
    "rerank 4800": ((60, 240, 64), 2),
}
K1, K2, WEIGHT = 20, 6, 0.3
TOLERANCE = 1e-4
ODD = 1e-4  # share of re-ranked distances that may differ more, where rounding decides which neighbour is nearer
PRODUCT = "matrix product alone"


def people(queries: int, gallery: int, dimension: int, seed: int = 0) -> tuple[Vectors, Vectors, dict[str, Vectors]]:
    """Make unit vectors of noisy identities with positive scores, about twenty gallery rows each, and their labels."""
    random = np.random.default_rng(seed)
    count = max(4, gallery // 20)
    centres = random.standard_normal((count, dimension), np.float32) + 2
    who = np.concatenate([random.integers(0, count, queries), random.permutation(gallery) % count])
    vectors = centres[who] + 2.5 * random.standard_normal((len(who), dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = {
        "query_identities": who[:queries],
        "gallery_identities": who[queries:],
        "query_cameras": np.zeros(queries, np.int64),
        "gallery_cameras": np.ones(gallery, np.int64),
    }
    return vectors[:queries], vectors[queries:], labels


def by_sorting(query: Vectors, gallery: Vectors, labels: dict[str, Vectors]) -> float:
    """Compute the mean average precision as textbooks do: sort every row of the whole matrix and go along it."""
    order = np.argsort(-(query @ gallery.T), axis=1, kind="stable")
    values = []
    for row, identity in zip(order, labels["query_identities"], strict=True):
        ranks = np.flatnonzero(labels["gallery_identities"][row] == identity) + 1
        if len(ranks):
            values.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(values))


def with_torchmetrics(query: Vectors, gallery: Vectors, labels: dict[str, Vectors]) -> float:
    scores = torch.from_numpy(query) @ torch.from_numpy(gallery).T
    right = torch.from_numpy(labels["query_identities"][:, None] == labels["gallery_identities"])
    which = torch.arange(len(query))[:, None].expand_as(scores)
    return float(RetrievalMAP()(scores.reshape(-1), right.reshape(-1), indexes=which.reshape(-1)))


def with_metric_learning(query: Vectors, gallery: Vectors, labels: dict[str, Vectors]) -> float:
    calculator = AccuracyCalculator(include=("mean_average_precision",), k=None, device=torch.device("cpu"))
    sides = (query, labels["query_identities"], gallery, labels["gallery_identities"])
    found = calculator.get_accuracy(*map(torch.from_numpy, sides), ref_includes_query=False)
    return float(found["mean_average_precision"])


def dense_k_reciprocal(query: Vectors, gallery: Vectors) -> Vectors:
    """Compute distances (Q, G) by the formulas of Zhong et al. (CVPR 2017), with matrices of all pairs."""
    vectors = np.concatenate([query, gallery])
    distance = np.maximum(2 - 2 * vectors @ vectors.T, 0)
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1, kind="stable")
    features = np.zeros_like(distance)
    for row in range(len(vectors)):
        members = _mutual(order, row, K1)
        wide = members
        for other in members:
            half = _mutual(order, other, round(K1 / 2))
            if len(np.intersect1d(half, members)) > 2 / 3 * len(half):
                wide = np.union1d(wide, half)
        weights = np.exp(-distance[row, wide])
        features[row, wide] = weights / weights.sum()
    features = np.stack([features[order[row, :K2]].mean(axis=0) for row in range(len(vectors))])
    holders = [np.flatnonzero(column) for column in features.T]
    jaccard = np.empty((len(query), len(vectors)), np.float32)
    for row in range(len(query)):
        shared = np.zeros(len(vectors), np.float32)
        for column in np.flatnonzero(features[row]):
            rows = holders[column]
            shared[rows] += np.minimum(features[row, column], features[rows, column])
        jaccard[row] = 1 - shared / (2 - shared)
    return (1 - WEIGHT) * jaccard[:, len(query) :] + WEIGHT * distance[: len(query), len(query) :]


def _mutual(order: Vectors, row: int, k: int) -> Vectors:
    near = order[row, : k + 1]
    return near[(order[near, : k + 1] == row).any(axis=1)]


def sparse_k_reciprocal(query: Vectors, gallery: Vectors) -> Vectors:
    reranked = k_reciprocal(query, gallery, k1=K1, k2=K2, weight=WEIGHT)
    blocks = [-reranked(start, min(start + 256, len(query))) for start in range(0, len(query), 256)]
    return np.concatenate(blocks)


class Torchreid:
    """Distances, ranking and re-ranking of the unpacked torchreid in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._distance, self._rank, self._rerank = (
            _module(next(folder.glob(f"torchreid/**/{name}.py"))) for name in ("distance", "rank", "rerank")
        )

    def mean_average_precision(self, query: Vectors, gallery: Vectors, labels: dict[str, Vectors]) -> float:
        distances = self._distances(query, gallery, "cosine")
        sides = (labels[f"{side}_{what}"] for what in ("identities", "cameras") for side in ("query", "gallery"))
        return float(self._rank.evaluate_rank(distances, *sides)[1])

    def k_reciprocal(self, query: Vectors, gallery: Vectors) -> Vectors:
        pairs = ((query, gallery), (query, query), (gallery, gallery))
        squared = (np.maximum(self._distances(*pair, "euclidean"), 0) for pair in pairs)
        reranked: Vectors = self._rerank.re_ranking(*map(np.sqrt, squared), K1, K2, WEIGHT)
        return reranked

    def _distances(self, first: Vectors, second: Vectors, metric: str) -> Vectors:
        sides = map(torch.from_numpy, (first, second))
        found: Vectors = self._distance.compute_distance_matrix(*sides, metric).numpy()
        return found


def _module(path: Path) -> ModuleType:
    """Load the module of one file without the package around it."""
    spec = importlib.util.spec_from_file_location(f"torchreid_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work_of(name: str, size: Size, torchreid: Torchreid | None) -> Work:
    """List what is compared, by name; "ours" is the first."""
    query, gallery, labels = people(*size)

    def ours() -> float:
        return market_metrics(query, gallery, **labels).mAP

    if name.startswith("rerank"):
        work: Work = {"ours": lambda: sparse_k_reciprocal(query, gallery)}
        if torchreid is not None:
            work["torchreid 0.2.5"] = lambda: torchreid.k_reciprocal(query, gallery)
        return {**work, "textbook dense": lambda: dense_k_reciprocal(query, gallery)}
    if name in ("msmt17", "million"):  # a whole matrix would not fit
        return {"ours": ours}
    work = {"ours": ours, PRODUCT: lambda: query @ gallery.T}
    if torchreid is not None:
        work["torchreid 0.2.5, Python"] = lambda: torchreid.mean_average_precision(query, gallery, labels)
    if name == "libraries":
        work["pytorch-metric-learning"] = lambda: with_metric_learning(query, gallery, labels)
        work["torchmetrics"] = lambda: with_torchmetrics(query, gallery, labels)
    return {**work, "textbook sorting": lambda: by_sorting(query, gallery, labels)}


def memory_of(way: Callable[[], object]) -> tuple[object, float | None]:
    """Return the result of ``way``, and by how many MiB it raised the peak of resident memory; None if unknown."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the earlier peak
        before = _status("VmRSS")
        result = way()
        return result, (_status("VmHWM") - before) / 1024
    except OSError:
        return way(), None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def measure(name: str, size: Size, rounds: int, torchreid: Torchreid | None) -> dict[str, object]:
    """Run each way once for its result and memory, and then ``rounds`` times in turn for its time.

    With 0 rounds, the first run gives the time too.
    """
    work = work_of(name, size, torchreid)
    seconds: dict[str, list[float]] = {way: [] for way in work}
    memory: dict[str, float | None] = {}
    results = {}
    for turn in range(rounds + 1):
        for way, run in work.items():
            start = time.process_time()
            result, raised = memory_of(run)
            if turn or not rounds:
                seconds[way].append(time.process_time() - start)
            if not turn:
                memory[way] = raised
                if way != PRODUCT:
                    results[way] = np.asarray(result)
            del result
    others = max(float(np.mean(np.abs(result - results["ours"]) > TOLERANCE)) for result in results.values())
    if others > ODD:
        raise SystemExit(f"{name}: {others:.2g} of the results differ by more than {TOLERANCE}; the times mean nothing")
    ratio = {way: statistics.median(a / b for a, b in zip(seconds[way], seconds["ours"], strict=True)) for way in work}
    but = f" but for {others:.1e} of them" if others else ""
    print("{}: {:,} x {:,} x {}, results within {:g}{}".format(name, *size, TOLERANCE, but))
    for way in work:
        held = "" if memory[way] is None else f"{memory[way]:10,.0f} MiB"
        print(f"  {way:26}{statistics.median(seconds[way]):10.3f} s{ratio[way]:10.2f} x ours{held}", flush=True)
    sizes = dict(zip(("queries", "gallery", "dimension"), size, strict=True))
    what = {"others": others, "times_ours": ratio, "cpu_seconds": seconds, "memory_mib": memory}
    return {"work": name, **sizes, **what}


def machine(threads: int) -> dict[str, object]:
    """Describe what the figures depend on, including the load of other work."""
    kernels = sorted({f"{p['prefix']} {p.get('architecture', '')}".strip() for p in threadpool_info()})
    modules = (np, torch, torchmetrics, pytorch_metric_learning)
    return {
        "machine": platform.machine(),
        "threads": threads,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "processors": os.cpu_count(),
        "kernels": kernels,
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", ""),
        "versions": {module.__name__: module.__version__ for module in modules},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=[*FULL, *LARGE], help="only this work; repeatable")
    parser.add_argument("--large", action="store_true", help="10,000 x 1,000,000 too: minutes, and 4 GiB of memory")
    parser.add_argument("--small", action="store_true", help="a trial of the program; writes nothing unless told where")
    parser.add_argument("--torchreid", type=Path, help="folder of an unpacked torchreid, to measure it too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = (
        SMALL if options.small else {**FULL, **(LARGE if options.large or "million" in (options.only or ()) else {})}
    )
    partial = options.small or options.only
    out = options.json or (None if partial else Path(__file__).parent / "results" / "evaluation.json")
    torchreid = Torchreid(options.torchreid) if options.torchreid else None
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        report = machine(options.threads)
        print(json.dumps(report))
        entries: list[dict[str, object]] = []
        for name, (size, rounds) in chosen.items():
            if not options.only or name in options.only:
                entries.append(measure(name, size, rounds, torchreid))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**report, "works": entries}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
