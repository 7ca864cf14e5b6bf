"""The steps from data and weights to a report or a gallery that the commands, the scripts and the application share.

PyTorch, FAISS and what needs them are imported inside the functions that use them.  So the data can be read and wrong
input can be reported before PyTorch is imported, which takes more than a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from reid.data.manifest import check_files
from reid.data.selection import evaluated_samples, gallery_samples
from reid.data.unreadable import current_unreadable
from reid.errors import DataError, GalleryError, WeightsError
from reid.files import prepare_output_folder
from reid.models.execution import as_stored, current_execution, execution_with
from reid.models.provenance import UNSEEN_CAMERA_KEY
from reid.records import Embeddings, Sample, Split, UnseenCameraPolicy, domain_of

if TYPE_CHECKING:
    from reid.data.loading import ImageChange
    from reid.data.protocols.data_sets import DataSet
    from reid.data.street.generation import StreetPlan
    from reid.evaluation import Details, Report, Reranking
    from reid.evaluation.corruption_benchmark import CorruptionBenchmark
    from reid.models.checkpoint import Checkpoint
    from reid.retrieval.gallery import Gallery

DEFAULT_DATA = Path("data/street")
DEFAULT_GALLERY = Path("galleries/street")
WEIGHTS_FILE = "street.safetensors"
NETWORK = "network.safetensors"  # suffix of the file of a gallery that holds the network that embedded its crops


def shipped_weights() -> Path:
    """Return the path of the weights that come with the program.

    They lie in ``demo/weights`` of a checkout, and inside the package of an installed wheel.
    """
    package = Path(__file__).parent
    in_checkout = package.parent / "demo" / "weights" / WEIGHTS_FILE
    return in_checkout if in_checkout.is_file() else package / "_weights" / WEIGHTS_FILE


def workers() -> int:
    """Return how many threads may decode images while the network computes."""
    return max(1, (os.cpu_count() or 1) // 2)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on stderr, with a rate and the time left.

    Args:
        title: What the program does.
        total: The number of images.

    Yields:
        A function to call with the number of images done since the last call.
    """
    with tqdm(desc=title, total=total, unit="img", dynamic_ncols=True, file=sys.stderr) as bar:
        yield bar.update


def make_street(out: Path, plan: StreetPlan, processes: int = 0) -> list[Path]:
    """Draw the synthetic street, or complete what is missing of it.

    Args:
        out: The folder of the street.
        plan: What the street shows.
        processes: The number of processes that draw; 0 takes all cores.

    Returns:
        The manifests, one for each site.
    """
    from reid.data.street.generation import generate

    prepare_output_folder(out)
    with tqdm(desc="making the street", unit="img", dynamic_ncols=True, file=sys.stderr, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return generate(out, plan, workers=processes, progress=show)


def read_samples(*sources: str | Path, root: str | Path | None = None) -> tuple[Sample, ...]:
    """Read the samples of one or several data sets, one after the other.

    Args:
        sources: For each data set its manifest (CSV or Parquet), the folder that holds ``manifest.csv``, or the name
            of a published data set such as "market1501" or "regdb:trial=3".
        root: The folder of a data set that is given by name.

    Returns:
        All samples, in the order of the sources.

    Raises:
        DataError: A source is missing, unknown or wrong.
    """
    from reid.data.protocols.data_sets import read_data

    folder = None if root is None else Path(root)
    return tuple(sample for source in sources for sample in read_data(str(source), folder))


def check_weights(weights: str | Path | None, profiles: Sequence[str | Path] = ()) -> None:
    """Check that weights and profiles exist, without importing PyTorch.

    Raises:
        WeightsError: A file is missing.
    """
    if weights and not Path(weights).is_file():
        raise WeightsError(f"{weights}: no such weights file; nothing is downloaded, so give the path of one")
    for path in profiles:
        if not Path(path).is_file():
            raise WeightsError(f'{path}: no such file of camera profiles; make one with "reid calibrate"')


def load_checkpoint(
    weights: str | Path | None = None,
    backbone: str | None = None,
    size: tuple[int, int] | None = None,
    profiles: Sequence[str | Path] = (),
    flip: bool = False,
    device: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
) -> Checkpoint:
    """Load a network with everything that is needed to use it.

    Args:
        weights: The weights file; None loads the weights that come with the program.
        backbone: The network of weights that do not name it, such as "osnet_x0_25".
        size: Height and width in pixels, instead of those that the weights were trained with.
        profiles: Files of camera profiles, installed in this order.
        flip: Embed each image and its mirror image, and take the mean of both.
        device: Where it runs: "cpu", "cuda", "cuda:N", "mps" or "auto"; by default that of
            :func:`~reid.models.execution.executed_as`, and outside of it the CPU.
        precision: What it computes in, a name of :data:`~reid.models.execution.PRECISIONS`; likewise.
        runtime: What runs it, a name of :data:`~reid.models.execution.RUNTIME_NAMES`; likewise.

    Returns:
        The checkpoint, ready to embed images.

    Raises:
        WeightsError: A file is missing or damaged, or does not fit the network.
        ConfigError: The backbone is unknown, the size is out of range, or the device is not there.
    """
    execution = execution_with(device=device, precision=precision, runtime=runtime)
    check_weights(weights, profiles)
    from reid.models.checkpoint import load_checkpoint as load
    from reid.norm import Profiles

    checkpoint = load(Path(weights or shipped_weights()), backbone, size=size)
    for path in profiles:
        checkpoint = checkpoint.with_profiles(Profiles.load(Path(path)))
    return (checkpoint.with_flip() if flip else checkpoint).with_execution(execution)


def unknown_domains(checkpoint: Checkpoint, samples: Iterable[Sample]) -> list[str]:
    """Return the names of the normalization domains of some samples that a checkpoint has no statistics for."""
    if not checkpoint.domain_fields:
        return []
    return sorted({domain_of(sample, checkpoint.domain_fields) for sample in samples} - set(checkpoint.domains))


def with_unseen_cameras(checkpoint: Checkpoint, samples: Sequence[Sample], policy: str) -> Checkpoint:
    """Prepare a checkpoint for the cameras of some samples.

    Args:
        checkpoint: The network.
        samples: The samples that will be embedded.
        policy: What to do with a camera that the checkpoint has no statistics for, a name of
            :class:`~reid.records.UnseenCameraPolicy`.  "error" changes nothing, so that embedding an image of such a
            camera raises an error.  "calibrate" measures statistics on the unlabelled samples of split train.
            "prior" takes the mixture of all known statistics.  "nearest" and "mixture" choose for each image, see
            :mod:`reid.norm.unseen_domains`; they also hold for cameras that come later, as in a search.

    Returns:
        The prepared checkpoint.  Its free text names the policy where one was used.

    Raises:
        DataError: The policy is "calibrate", and split train does not show one of these cameras.
    """
    if policy in (UnseenCameraPolicy.NEAREST, UnseenCameraPolicy.MIXTURE):
        return checkpoint.with_unseen_camera_policy(policy)
    missing = unknown_domains(checkpoint, samples)
    if not missing or policy == UnseenCameraPolicy.ERROR:
        return checkpoint
    extra = {**checkpoint.extra, UNSEEN_CAMERA_KEY: str(policy)}
    if policy == UnseenCameraPolicy.PRIOR:
        return replace(checkpoint.with_domains(missing), extra=extra)
    recorded = [s for s in samples if s.split is Split.TRAIN and not s.generated]
    pool = [s for s in recorded if domain_of(s, checkpoint.domain_fields) in set(missing)]
    shown = {domain_of(sample, checkpoint.domain_fields) for sample in pool}
    if shown != set(missing):
        raise DataError(
            f"cannot calibrate {', '.join(sorted(set(missing) - shown))}: no rows of split train show them;"
            ' add unlabelled crops, or run "reid calibrate" on crops of these cameras and pass --profiles'
        )
    check_files(pool)
    from reid.retrieval.camera_normalization import count_images, levels_of, normalize_cameras
    from reid.retrieval.normalization_choice import NormalizationRequest

    request = NormalizationRequest(False, levels_of(checkpoint))
    with progress_bar("calibrating", count_images(pool, request, checkpoint.has_statistics)) as progress:
        profiles, _ = normalize_cameras(checkpoint, pool, request, workers=workers(), progress=progress)
    return replace(checkpoint.with_profiles(profiles), extra=extra)


def embed_samples(
    checkpoint: Checkpoint, samples: Sequence[Sample], title: str = "embedding", change: ImageChange | None = None
) -> Embeddings:
    """Embed samples and show a progress bar.

    All files are checked before the first is read.  Images that cannot be read are an error, or are noted and left out
    inside :func:`~reid.data.unreadable.handled_by`.  An image that is listed as a query and in the gallery is embedded
    once, and both rows get the same vector.

    Args:
        checkpoint: The network.
        samples: The samples.
        title: The title of the progress bar.
        change: Changes every image before it is resized.

    Returns:
        The embeddings, in the order of the samples.

    Raises:
        DataError: An image cannot be read, or none of them can.
    """
    from reid.models.runners import describe_execution
    from reid.retrieval.embed import distinct_images, embed_distinct

    check_files(samples)
    unreadable = current_unreadable()
    note = None if unreadable is None else unreadable.add
    with progress_bar(title, len(distinct_images(checkpoint, samples)[0])) as progress:
        embeddings = embed_distinct(
            checkpoint, samples, workers=workers(), progress=progress, on_unreadable=note, change=change
        )
    if not checkpoint.execution.is_usual:
        tqdm.write(f"embedded with {describe_execution(checkpoint)}", file=sys.stderr)
    return embeddings


def evaluate_data(
    data_sets: Iterable[DataSet],
    load: Callable[[DataSet], Checkpoint],
    reranking: Reranking | None = None,
    memory: int | None = None,
    query_examples: int | None = None,
    score_norm: str = "",
    corruption: CorruptionBenchmark | None = None,
) -> Iterator[Details]:
    """Evaluate one data set, or all choices of one, such as the ten trials of "regdb:trial=all".

    Args:
        data_sets: The choices.
        load: Returns the network for a choice, because papers train one on each split.
        reranking: A second result for each one, with re-ranking.
        memory: The most bytes of scores held at a time; None means 64 MiB.
        query_examples: How many of the best and of the worst queries to show; None computes scores only.
        score_norm: Adds results with scores that are normalized by "csls" or "snorm"; "" does what the profiles of the
            network recommend, if anything.
        corruption: Adds results with corrupted images.

    Yields:
        The report of each choice, then the means over choices that papers report.  A mean has scores only.
    """
    from reid.evaluation import Details, mean_report

    groups: dict[tuple[tuple[str, str], ...], list[Report]] = {}
    for data in data_sets:
        checkpoint, samples = load(data), evaluated_samples(data)
        from reid.evaluation.data_evaluation import evaluate_data_set

        def embed(change: ImageChange | None, title: str) -> Embeddings:
            return embed_samples(checkpoint, samples, title, change)  # noqa: B023 - called before the next round

        details = evaluate_data_set(
            data, checkpoint, embed, reranking=reranking, memory=memory, query_examples=query_examples,
            score_norm=score_norm, corruption=corruption,
        )  # fmt: skip
        yield details
        variants = data.protocol.variants if data.protocol else {}
        kept = {name: choice for name, choice in data.scoring.variant.items() if not variants[name].mean}
        groups.setdefault(tuple(kept.items()), []).append(details.report)
    for key, reports in groups.items():
        if len(reports) > 1:
            variant = {name: dict(key).get(name, "mean of all") for name in reports[0].variant}
            yield Details(mean_report(reports, variant))


def build_gallery(checkpoint: Checkpoint, samples: Sequence[Sample], out: Path, thumbnails: bool = False) -> Gallery:
    """Embed the samples of split gallery and save them, with the network that embeds queries.

    Args:
        checkpoint: The network.
        samples: The samples; those of other splits, and of identities that were erased from the folder, are left out.
        out: The folder of the gallery.  An earlier gallery there is replaced.
        thumbnails: Whether a small JPEG image of each crop is kept with its row.

    Returns:
        The gallery.

    Raises:
        DataError: No sample is of split gallery, or the identities of all of them were erased.
        GalleryError: The folder holds something else, or cannot be written.
    """
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.kept_site import network_files
    from reid.retrieval.storage import check_gallery_folder
    from reid.retrieval.tombstones import read_tombstones, without_erased

    check_gallery_folder(out)
    kept = without_erased(gallery_samples(samples), [read_tombstones(out)])
    if not kept:
        raise DataError(f'{out}: the identities of all rows were erased; "reid index restore" lifts an erasure')
    gallery = Gallery.build(embed_samples(checkpoint, kept, "building the gallery"))
    gallery.save(out, network_files(checkpoint), gallery.make_thumbnails() if thumbnails else None)
    return gallery


def gallery_checkpoint(folder: Path) -> Checkpoint:
    """Load the network that a gallery was built with, with the statistics of its cameras.

    Raises:
        GalleryError: The gallery is missing or damaged, or holds no network.
    """
    from reid.models.checkpoint import load_checkpoint
    from reid.retrieval.folder_reading import read_attached
    from reid.retrieval.kept_site import with_site_of

    checkpoint = read_attached(folder, NETWORK, load_checkpoint)
    if checkpoint is None:
        raise GalleryError(f"{folder}: holds no network; pass the weights it was built with, or build it again")
    checkpoint = checkpoint.with_execution(as_stored(current_execution(), checkpoint.extra, str(folder)))
    return with_site_of(checkpoint, folder)
