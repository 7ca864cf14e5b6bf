"""Read the crops of samples as batches that a network can use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import torch
from PIL.Image import Image
from torch import Tensor

from reid.data.images import read_image, read_pixels
from reid.data.near_duplicates import current_near_duplicates
from reid.data.transforms import EvaluationTransform
from reid.data.unreadable import current_unreadable
from reid.errors import ConditionError, ConfigError, DataError
from reid.records import Sample, domain_of

OnUnreadable = Callable[[Sample, DataError], object]
"""Called with a sample whose image cannot be read, and why."""
Progress = Callable[[int], object]
"""Called with the number of images done since the last call, as ``tqdm.update`` is."""
ImageChange = Callable[[Sample, Image], Image]
"""Called with a sample and its image of mode RGB before it is resized; returns the image to use instead."""

_SHOWN_NAMES = 12


@dataclass(frozen=True)
class Batch:
    """Images ready for a network.

    Args:
        images: (B, 3, H, W) float32, normalised; or uint8, only resized.
        domain: (B,) int64, the index of each image's normalization domain; None where the network has no domains.
        samples: The B records.
        rows: Where the records stand in the samples that were to be read.
    """

    images: Tensor
    domain: Tensor | None
    samples: tuple[Sample, ...]
    rows: tuple[int, ...]


def domain_indices(
    samples: Sequence[Sample], domain_fields: Sequence[str], domains: Sequence[str], unknown_domain: int | None = None
) -> Tensor:
    """Find the index of each sample's normalization domain.

    Args:
        samples: N samples.
        domain_fields: Fields of a sample that name its domain; none of them means that all samples share domain 0.
        domains: Names of the domains in the order of their indices.
        unknown_domain: The index for a domain that is not in ``domains``; None makes such a domain an error.

    Returns:
        (N,) int64.

    Raises:
        ConditionError: A domain is not in ``domains``, and ``unknown_domain`` is None.

    Example:
        >>> from pathlib import Path
        >>> samples = [Sample(Path("1.jpg"), camera="yard"), Sample(Path("2.jpg"), camera="door")]
        >>> domain_indices(samples, ("camera",), ("door", "yard")).tolist()
        [1, 0]
        >>> domain_indices(samples, ("camera",), ("door",), unknown_domain=-1).tolist()
        [-1, 0]
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
        raise ConditionError(_unknown_domain_message(first, domain_fields, domains)) from None


def _unknown_domain_message(sample: Sample, domain_fields: Sequence[str], domains: Sequence[str]) -> str:
    fields, name = "/".join(domain_fields), domain_of(sample, domain_fields)
    known = ", ".join(domains[:_SHOWN_NAMES]) + (
        f", ... ({len(domains)} in all)" if len(domains) > _SHOWN_NAMES else ""
    )
    if "camera" in domain_fields and not sample.camera:
        return (
            f"{sample.path}: the camera is empty, but these weights normalize by {fields}; known: {known};"
            " fill in the camera, or pass --unseen-camera prior, nearest or mixture, or other --weights"
        )
    return (
        f'{fields} "{name}" is unknown to these weights; known: {known}; run "reid calibrate ..." on its images, '
        f"or pass --unseen-camera prior, nearest or mixture where a command has it, or other --weights"
        f" (first found at {sample.path})"
    )


def readable_rows(samples: Sequence[Sample], *, workers: int = 0) -> list[int]:
    """Find the samples whose images can be read, for work that has to know this before it begins.

    Args:
        samples: N samples.
        workers: Threads that read images; 0 reads them one by one.

    Returns:
        The numbers of the samples, ascending.  Where images that cannot be read are errors, these are all of them, and
        nothing is read.  Inside :func:`~reid.data.unreadable.handled_by` each image is read once, and those that
        cannot be read are noted.

    Raises:
        DataError: None of the images can be read.

    Example:
        >>> from pathlib import Path
        >>> readable_rows([Sample(Path("1.jpg")), Sample(Path("2.jpg"))])
        [0, 1]
    """
    unreadable = current_unreadable()
    if unreadable is None:
        return list(range(len(samples)))

    def find_error(sample: Sample) -> DataError | None:
        try:
            read_image(sample.path)
        except DataError as error:
            return error
        return None

    known = unreadable.read | set(unreadable.reasons)
    new = [sample for path, sample in {sample.path: sample for sample in samples}.items() if path not in known]
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="reid-check") as pool:
        for sample, error in zip(new, pool.map(find_error, new), strict=True):
            if error is None:
                unreadable.read.add(sample.path)
            else:
                unreadable.add(sample, error)
    rows = [row for row, sample in enumerate(samples) if sample.path in unreadable.read]
    if samples and not rows:
        first = samples[0].path
        raise DataError(f"{unreadable.reasons[first]}; none of the {len(samples)} images can be read")
    return rows


def load_batches(
    samples: Sequence[Sample],
    transform: EvaluationTransform,
    *,
    domain_fields: Sequence[str] = (),
    domains: Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 0,
    unknown_domain: int | None = None,
    decoder: str = "pillow",
    on_unreadable: OnUnreadable | None = None,
    change: ImageChange | None = None,
    fast: bool = False,
    is_normalised: bool = True,
) -> Iterator[Batch]:
    """Read samples in batches, in their order.

    The domains of all samples are checked before the first image is read.

    Args:
        samples: The samples to read.
        transform: The image preparation of the network.
        domain_fields: Fields of a sample that name its domain; without them ``Batch.domain`` is None.
        domains: Names of the domains, as in :func:`domain_indices`.
        batch_size: Images in a batch; the last batch may have fewer.
        workers: Threads that decode ahead; 0 decodes in the caller's thread.  At most two batches are held beside the
            one in use.
        unknown_domain: The index for an unknown domain, as in :func:`domain_indices`.
        decoder: What decodes JPEG files, see :func:`~reid.data.images.read_image`.
        on_unreadable: Is told of each image that cannot be read, which is then left out; without it such an image is
            an error.
        change: Changes every image before it is resized; the image is decoded at its full size then.
        fast: Whether images are resized in less time, with a few values that differ by 1, see
            :meth:`~reid.data.transforms.EvaluationTransform.resize`.
        is_normalised: Whether the images are normalised; if not, they are uint8.

    Returns:
        An iterator over the batches.

    Raises:
        ConfigError: ``batch_size`` is below 1.
        ConditionError: A domain is unknown, and ``unknown_domain`` is None.
        DataError: An image cannot be read, and nobody is told of it; or it is nearly the same as an earlier one, inside
            a :func:`~reid.data.near_duplicates.duplicates_handled_by` that stops there.  Raised when its batch is due.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    domain = domain_indices(samples, domain_fields, domains, unknown_domain) if domain_fields else None
    crops = _read_crops(
        samples, transform, workers, 2 * batch_size, decoder, on_unreadable is not None, change=change, fast=fast
    )
    batches = _batches(crops, samples, domain, batch_size, on_unreadable)
    if is_normalised:
        return (replace(batch, images=transform.normalise(batch.images)) for batch in batches)
    return batches


def _batches(
    crops: Generator[Tensor | DataError],
    samples: Sequence[Sample],
    domain: Tensor | None,
    batch_size: int,
    on_unreadable: OnUnreadable | None,
) -> Iterator[Batch]:
    near = current_near_duplicates()
    with closing(crops):
        for start in range(0, len(samples), batch_size):
            rows, images = [], []
            for row, crop in enumerate(islice(crops, batch_size), start):
                if isinstance(crop, Tensor):
                    if near is not None:
                        near.add(samples[row], crop)
                    rows.append(row)
                    images.append(crop)
                elif on_unreadable is not None:
                    on_unreadable(samples[row], crop)
            if rows:
                batch_domain = None if domain is None else domain[torch.tensor(rows)]
                read = tuple(samples[row] for row in rows)
                yield Batch(torch.stack(images), batch_domain, read, tuple(rows))


def load_crops(
    samples: Sequence[Sample], transform: EvaluationTransform, *, workers: int = 0, progress: Progress | None = None
) -> Tensor:
    """Read all samples into memory, resized but not normalised.

    Args:
        samples: N samples.
        transform: Gives the height and the width.
        workers: Threads that decode ahead; 0 decodes in the caller's thread.
        progress: Called with 1 after each image.

    Returns:
        (N, 3, H, W) uint8; an image of 128 x 64 pixels takes 24 KiB.

    Raises:
        DataError: An image cannot be read.
    """
    crops = torch.empty((len(samples), 3, transform.height, transform.width), dtype=torch.uint8)
    with closing(_read_crops(samples, transform, workers, ahead=128)) as source:
        for row, crop in enumerate(source):
            if isinstance(crop, Tensor):  # an image that cannot be read has raised its error
                crops[row] = crop
            if progress is not None:
                progress(1)
    return crops


def _read_crops(
    samples: Iterable[Sample],
    transform: EvaluationTransform,
    workers: int,
    ahead: int,
    decoder: str = "pillow",
    keeps_errors: bool = False,
    change: ImageChange | None = None,
    fast: bool = False,
) -> Generator[Tensor | DataError]:
    """Yield each sample's crop, (3, H, W) uint8, in order; decode at most ``ahead`` crops before they are used.

    Where ``keeps_errors``, the error of an image that cannot be read stands in its place.
    """

    def load(sample: Sample) -> Tensor | DataError:
        try:
            if fast and change is None and transform.interpolation == "bilinear":
                return transform.resize_pixels(read_pixels(sample.path, decoder, (transform.width, transform.height)))
            size = None if change else (transform.width, transform.height)
            image = read_image(sample.path, decoder, size)
            return transform.resize(change(sample, image) if change else image, fast=fast)
        except DataError as error:
            if keeps_errors:
                return error
            raise

    if workers < 1:
        for sample in samples:
            yield load(sample)
        return
    # Threads are enough: Pillow decodes and resizes without the interpreter lock.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reid-load")
    try:
        source = iter(samples)
        waiting: deque[Future[Tensor | DataError]] = deque(
            pool.submit(load, sample) for sample in islice(source, ahead)
        )
        while waiting:
            crop = waiting.popleft().result()
            waiting.extend(pool.submit(load, sample) for sample in islice(source, 1))
            yield crop
    finally:
        pool.shutdown(cancel_futures=True)
