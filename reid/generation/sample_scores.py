"""How far generated crops are from recorded ones, by features of an embedding network.

Three scores: the Frechet distance of two Gaussians (Heusel et al. 2017), the kernel distance KID (Binkowski et al.
2018), and the area under the ROC curve of a classifier of two samples (Lopez-Paz and Oquab 2017).  A score means
something beside its floor only: the same score of two halves of the recorded crops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError

Array = npt.NDArray[np.floating]
SUBSETS, LARGEST_SUBSET = 50, 200
RIDGE = 1e-2  # of the mean variance, is added to the variances of the classifier


@dataclass(frozen=True)
class SampleScores:
    """Distances between two sets of crops; smaller is better, except that an AUC of 0.5 is best.

    Attributes:
        frechet: The Frechet distance.
        kernel: The mean kernel distance over subsets; it may be below 0.
        kernel_deviation: Its standard deviation over subsets.
        auc: The area under the ROC curve of the classifier, on crops that it did not learn from.
    """

    frechet: float
    kernel: float
    kernel_deviation: float
    auc: float


def compare_samples(recorded: Array, written: Array, seed: int = 0) -> SampleScores:
    """Compare features of two sets of crops.

    The kernel depends on the size of the features: with embeddings of unit length it would be almost linear.  So both
    sets are divided by the root mean square of the recorded features before the kernel distance.

    Args:
        recorded: (N, D).
        written: (M, D).
        seed: Draws the subsets of the kernel distance and the halves of the classifier.

    Returns:
        The scores.

    Raises:
        DataError: A set has fewer than four rows, or they have other lengths.

    Example:
        >>> random = np.random.default_rng(0)
        >>> scores = compare_samples(random.normal(size=(200, 4)), random.normal(size=(200, 4)))
        >>> scores.frechet < 0.2, abs(scores.kernel) < 0.1, 0.35 < scores.auc < 0.65
        (True, True, True)
    """
    _check(recorded, written)
    size = max(float(np.sqrt(np.mean(np.square(recorded)))), 1e-12)
    kernel, deviation = kernel_distance(recorded / size, written / size, seed=seed)
    return SampleScores(
        frechet_distance(recorded, written), kernel, deviation, classifier_auc(recorded, written, seed=seed)
    )


def floor_scores(recorded: Array, seed: int = 0) -> SampleScores:
    """Compare two random halves of recorded crops (N, D): what a perfect generator would reach with N / 2 crops."""
    order = np.random.default_rng(seed).permutation(len(recorded))
    half = len(order) // 2
    return compare_samples(recorded[order[:half]], recorded[order[half : 2 * half]], seed)


def frechet_distance(first: Array, second: Array) -> float:
    """Compute the Frechet distance of the Gaussians of two samples, (N, D) and (M, D); covariances are unbiased."""
    moments = [(rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))) for rows in (first, second)]
    return frechet_of_moments(*moments[0], *moments[1])


def frechet_of_moments(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Compute |m - n|^2 + tr(A) + tr(B) - 2 tr((A B)^1/2) of two Gaussians (m, A) and (n, B).

    A B is not symmetric, so its root is not taken.  The symmetric matrix A^1/2 B A^1/2 has the same eigenvalues, and
    these are not negative; the trace of the root is the sum of their roots.

    Args:
        mean: m (D,).
        covariance: A (D, D), symmetric and positive semi-definite.
        other_mean: n (D,).
        other_covariance: B (D, D), likewise.

    Returns:
        The distance, 0 or more.

    Example:
        >>> float(round(frechet_of_moments(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2)), 6))
        4.0
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ np.asarray(other_covariance, np.float64) @ root
    roots = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0))
    gap = np.asarray(mean, np.float64) - other_mean
    total = gap @ gap + np.trace(covariance) + np.trace(other_covariance) - 2 * roots.sum()
    return max(0.0, float(total))


def kernel_mmd(first: Array, second: Array) -> float:
    """Compute the unbiased squared maximum mean discrepancy with the kernel (x y / D + 1)^3.

    Pairs of a row with itself are left out; with them, the estimate of two equal populations would be above 0.

    Args:
        first: (N, D), N at least 2.
        second: (M, D), M at least 2.

    Returns:
        The estimate, which may be below 0.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    within = [_kernel(rows, rows) for rows in (x, y)]
    parts = [(matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1)) for matrix in within]
    return float(sum(parts) - 2 * _kernel(x, y).mean())


def _kernel(x: Array, y: Array) -> Array:
    kernel: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def kernel_distance(first: Array, second: Array, *, subsets: int = SUBSETS, seed: int = 0) -> tuple[float, float]:
    """Compute the mean and the standard deviation of :func:`kernel_mmd` over random subsets of both samples (KID).

    Args:
        first: (N, D).
        second: (M, D).
        subsets: Their number; each has half of the smaller sample, and at most 200 rows.
        seed: Draws them.
    """
    random, size = np.random.default_rng(seed), min(len(first), len(second), 2 * LARGEST_SUBSET) // 2
    found = [
        kernel_mmd(first[random.permutation(len(first))[:size]], second[random.permutation(len(second))[:size]])
        for _ in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found))


def classifier_auc(first: Array, second: Array, seed: int = 0) -> float:
    """Learn to tell two samples on one half of each, and compute the area under the ROC curve on the other half.

    The classifier is Fisher's linear discriminant, with a small ridge; 0.5 means that it cannot tell them.

    Args:
        first: (N, D).
        second: (M, D).
        seed: Draws the halves.
    """
    random, halves = np.random.default_rng(seed), []
    for rows in (np.asarray(first, np.float64), np.asarray(second, np.float64)):
        order = random.permutation(len(rows))
        halves.append((rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]))
    (learned, tested), (other_learned, other_tested) = halves
    centred = np.concatenate([learned - learned.mean(0), other_learned - other_learned.mean(0)])
    within = centred.T @ centred / len(centred)
    within += (RIDGE * np.trace(within) / len(within) + 1e-12) * np.eye(len(within))
    direction = np.linalg.solve(within, other_learned.mean(0) - learned.mean(0))
    return area_under_curve(other_tested @ direction, tested @ direction)


def area_under_curve(higher: Array, lower: Array) -> float:
    """Compute the fraction of pairs in which the value of the first array is larger; ties count a half.

    Example:
        >>> area_under_curve(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
        0.875
    """
    order = np.sort(lower)
    below = np.searchsorted(order, higher, "left") + np.searchsorted(order, higher, "right")
    return float(below.mean() / (2 * len(order)))


def _check(recorded: Array, written: Array) -> None:
    for name, rows in (("recorded", recorded), ("generated", written)):
        if rows.ndim != 2 or len(rows) < 4 or rows.shape[1] != recorded.shape[-1]:
            raise DataError(f"{name} crops: expected features of 4 crops or more and of one length, got {rows.shape}")
        if not np.isfinite(rows).all():
            raise DataError(f"{name} crops: a feature is not finite")
