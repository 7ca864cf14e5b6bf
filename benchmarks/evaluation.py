"""What scoring costs: ours beside torchmetrics, pytorch-metric-learning and the matrix product alone.

    python benchmarks/evaluation.py [--rounds 5] [--threads 1] [--json benchmarks/results/evaluation.json]

Every comparison runs in one process, in turn, on the same vectors, and only counts if all agree on the
result.  Queries and gallery have different cameras, since the libraries know no rule about cameras, and
scores are positive, since torchmetrics takes scores of 0 or less for no answer.  Re-ranking is compared
with the usual dense way (two N x N matrices and a loop over rows), written down below.  --small is a
trial of the program, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from threadpoolctl import threadpool_info, threadpool_limits
from torchmetrics.retrieval import RetrievalMAP

from reid.evaluation import market_metrics
from reid.retrieval.rerank import k_reciprocal

Vectors = np.ndarray
Work = dict[str, Callable[[], object]]
SMALL = {"market": (100, 1_000, 64), "libraries": (40, 1_000, 64), "rerank": (60, 240, 64)}
FULL = {"market": (3_368, 15_913, 512), "libraries": (200, 15_913, 512), "rerank": (800, 4_000, 512)}
K1, K2, WEIGHT = 20, 6, 0.3


def people(queries: int, gallery: int, dimension: int, seed: int = 0) -> tuple[Vectors, Vectors, dict[str, Vectors]]:
    """Unit vectors of noisy identities, about twenty gallery rows each, with positive scores; and their labels."""
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
    """Distances (Q, G) by the formulas of Zhong et al. (CVPR 2017), with matrices of all pairs."""
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


def works(sizes: dict[str, tuple[int, int, int]]) -> dict[str, Work]:
    """What is compared with what; "ours" is the first of each."""
    market, some, rerank = (people(*sizes[name]) for name in ("market", "libraries", "rerank"))
    return {
        "market": {
            "ours": lambda: market_metrics(market[0], market[1], **market[2]).mAP,
            "matrix product alone": lambda: market[0] @ market[1].T,
        },
        "libraries": {
            "ours": lambda: market_metrics(some[0], some[1], **some[2]).mAP,
            "pytorch-metric-learning": lambda: with_metric_learning(*some),
            "torchmetrics": lambda: with_torchmetrics(*some),
            "matrix product alone": lambda: some[0] @ some[1].T,
        },
        "rerank": {
            "ours": lambda: sparse_k_reciprocal(*rerank[:2]),
            "dense": lambda: dense_k_reciprocal(*rerank[:2]),
        },
    }


def compare(work: Work, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each way, ``rounds`` of each in turn after one to warm up, and the largest difference of results."""
    times: dict[str, list[float]] = {name: [] for name in work}
    results: dict[str, object] = {}
    for turn in range(rounds + 1):
        for name, way in work.items():
            start = time.perf_counter()
            result = way()
            if turn:
                times[name].append(time.perf_counter() - start)
            elif name != "matrix product alone":
                results[name] = np.asarray(result)
    differences = [float(np.abs(result - results["ours"]).max()) for result in results.values()]
    return times, max(differences)


def measure(sizes: dict[str, tuple[int, int, int]], rounds: int) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for name, work in works(sizes).items():
        times, difference = compare(work, rounds)
        if difference > 1e-4:
            raise SystemExit(f"{name}: results differ by {difference:.2g}; the times mean nothing")
        ratio = {
            way: statistics.median(a / b for a, b in zip(seconds, times["ours"], strict=True))
            for way, seconds in times.items()
        }
        queries, gallery, dimension = sizes[name]
        print(f"{name}: {queries:,} x {gallery:,} x {dimension}, results within {difference:.1e}")
        for way, seconds in times.items():
            print(f"  {way:26}{statistics.median(seconds):10.3f} s{ratio[way]:10.2f} x ours")
        size = {"queries": queries, "gallery": gallery, "dimension": dimension}
        entries.append({"work": name, **size, "difference": difference, "times_ours": ratio, "seconds": times})
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a trial of the program; writes nothing unless told where")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        kernels = sorted({f"{p['internal_api']} {p.get('architecture', '')}".strip() for p in threadpool_info()})
        print(f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, {', '.join(kernels)}")
        entries = measure(SMALL if options.small else FULL, options.rounds)
    out = options.json or (None if options.small else Path(__file__).parent / "results" / "evaluation.json")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"kernels": kernels, "threads": options.threads, "works": entries}, indent=1) + "\n")


if __name__ == "__main__":
    main()
