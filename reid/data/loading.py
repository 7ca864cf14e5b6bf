"""From samples to batches a network can read.

Knows pictures, transforms and the names of normalization domains; it knows no network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from reid.data.images import read_image
from reid.data.transforms import EvaluationTransform
from reid.errors import ConditionError, ConfigError
from reid.records import Sample, domain_of

Progress = Callable[[int], object]
"""Called with the number of images done since the last call, as ``tqdm.update`` is."""

_SHOWN_NAMES = 12


@dataclass(frozen=True)
class Batch:
    """Images ready for a network.

    ``images`` (B, 3, H, W) float32, normalised; ``domain`` (B,) int64, index of each image's
    normalization domain, or None where the network has none; ``samples`` the B records.
    """

    images: Tensor
    domain: Tensor | None
    samples: tuple[Sample, ...]


def domain_indices(
    samples: Sequence[Sample], domain_fields: Sequence[str], domains: Sequence[str], unknown_domain: int | None = None
) -> Tensor:
    """int64 (N,): place in ``domains`` of each sample's ``label_of(sample, by)``; zeros for ``domain_fields`` ().

    A label that is not in ``domains`` is ``unknown_domain`` or, without one, a :class:`ConditionError`.
    """
    if not domain_fields:
        return torch.zeros(len(samples), dtype=torch.int64)
    index = {name: i for i, name in enumerate(domains)}
    if unknown_domain is not None:
        return torch.tensor(
            [index.get(domain_of(sample, domain_fields), unknown_domain) for sample in samples], dtype=torch.int64
        )
    try:
        return torch.tensor([index[domain_of(sample, domain_fields)] for sample in samples], dtype=torch.int64)
    except KeyError:
        first = next(sample for sample in samples if domain_of(sample, domain_fields) not in index)
        raise ConditionError(_unknown_domain(first, domain_fields, domains)) from None


def _unknown_domain(sample: Sample, domain_fields: Sequence[str], domains: Sequence[str]) -> str:
    kind, label = "/".join(domain_fields), domain_of(sample, domain_fields)
    known = ", ".join(domains[:_SHOWN_NAMES]) + (
        f", ... ({len(domains)} in all)" if len(domains) > _SHOWN_NAMES else ""
    )
    if "camera" in domain_fields and not sample.camera:
        return f"{sample.path}: the camera is empty, but these weights normalize by {kind}; known: {known}"
    return (
        f'{kind} "{label}" is unknown to these weights; known: {known}; run "reid calibrate ..." on its images, '
        f"or pass --unseen-camera prior, nearest or mixture where a command has it (first seen at {sample.path})"
    )


def load_batches(
    samples: Sequence[Sample],
    transform: EvaluationTransform,
    *,
    domain_fields: Sequence[str] = (),
    domains: Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 0,
    unknown_domain: int | None = None,
) -> Iterator[Batch]:
    """Batches in the order of ``samples``, the last one as short as it comes.

    ``workers`` threads decode ahead (0: none, in the caller's thread); two batches are held at
    most beside the one in use.  ``domain_fields`` () leaves the condition None; ``unknown_domain`` as in
    :func:`domain_indices`.  Labels are checked before the first picture is read.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    condition = domain_indices(samples, domain_fields, domains, unknown_domain) if domain_fields else None
    return _batches(samples, transform, condition, batch_size, workers)


def _batches(
    samples: Sequence[Sample], transform: EvaluationTransform, condition: Tensor | None, batch_size: int, workers: int
) -> Iterator[Batch]:
    with closing(_crops(samples, transform, workers, ahead=2 * batch_size)) as crops:
        for start in range(0, len(samples), batch_size):
            rows = slice(start, start + batch_size)
            images = torch.stack(list(islice(crops, batch_size)))  # (B, 3, H, W) uint8
            labels = None if condition is None else condition[rows]
            yield Batch(transform.normalise(images), labels, tuple(samples[rows]))


def load_crops(
    samples: Sequence[Sample], transform: EvaluationTransform, *, workers: int = 0, progress: Progress | None = None
) -> Tensor:
    """All samples in memory: uint8 (N, 3, H, W), resized but not normalised, 24 KiB each at 128 x 64."""
    crops = torch.empty((len(samples), 3, transform.height, transform.width), dtype=torch.uint8)
    with closing(_crops(samples, transform, workers, ahead=128)) as source:
        for row, crop in enumerate(source):
            crops[row] = crop
            if progress is not None:
                progress(1)
    return crops


def _crops(samples: Iterable[Sample], transform: EvaluationTransform, workers: int, ahead: int) -> Generator[Tensor]:
    """uint8 (3, H, W) of each sample in order, at most ``ahead`` decoded before they are asked for."""

    def load(sample: Sample) -> Tensor:
        return transform.resize(read_image(sample.path))

    if workers < 1:
        for sample in samples:
            yield load(sample)
        return
    # Threads, not processes: Pillow decodes and resizes without the interpreter lock.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reid-load")
    try:
        source = iter(samples)
        waiting: deque[Future[Tensor]] = deque(pool.submit(load, sample) for sample in islice(source, ahead))
        while waiting:
            crop = waiting.popleft().result()
            waiting.extend(pool.submit(load, sample) for sample in islice(source, 1))
            yield crop
    finally:
        pool.shutdown(cancel_futures=True)
