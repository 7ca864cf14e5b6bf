"""The walk from data and weights to a report or a gallery: what the command line, the scripts and the demo share.

Each function joins stages that know nothing of each other; nothing is drawn or printed here but
progress bars, on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from tqdm import tqdm

from reid.data.manifest import check_files
from reid.data.protocols.data_sets import DataSet, Scoring, all_choices, open_data, read_data
from reid.data.street.generation import StreetPlan, generate
from reid.errors import ConfigError, DataError, GalleryError
from reid.evaluation import Details, Report, Reranking, details_of, evaluate, mean_report
from reid.models.calibration import calibrate_checkpoint
from reid.models.checkpoint import PRIOR, Checkpoint, load_checkpoint
from reid.norm import Profiles
from reid.records import Embeddings, Sample, Split, domain_of
from reid.retrieval.embed import embed
from reid.retrieval.gallery import Gallery
from reid.retrieval.storage import check_gallery_folder, open_gallery_folder

DEFAULT_DATA = Path("data/street")
DEFAULT_GALLERY = Path("galleries/street")
WEIGHTS_FILE = "street.safetensors"
NETWORK = "network.safetensors"  # the file of a gallery that holds the network that made its vectors
UNSEEN_CAMERA_KEY = (
    "unseen cameras"  # key of a checkpoint's free text, and of results: what became of cameras it did not know
)

UnseenCamera = Literal["error", "calibrate", "prior", "nearest", "mixture"]


def shipped_weights() -> Path:
    """The weights that come with the program: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    in_checkout = package.parent / "demo" / "weights" / WEIGHTS_FILE
    return in_checkout if in_checkout.is_file() else package / "_weights" / WEIGHTS_FILE


def workers() -> int:
    """How many threads may decode images beside the network."""
    return max(1, (os.cpu_count() or 1) // 2)


def claim_output(out: Path, mark: str, inputs: Sequence[str] | None = None) -> None:
    """Refuse an output that would replace anything but an earlier one of its kind, before work is spent on it.

    The first bytes of a file of that kind hold ``mark``; ``inputs`` are what the command reads.
    """
    claim_folder(out.parent, out)
    if not out.exists():
        return
    if not out.is_file():
        raise ConfigError(f"{out}: expected a file to write, this is a folder or device; choose another name")
    with out.open("rb") as file:
        start = file.read(2**20)  # the header of a file with many cameras is long
    given = {Path(spec).resolve() for spec in inputs or ()}
    if out.resolve() in given or (start and mark.encode() not in start):
        raise ConfigError(f"{out}: exists and is something else; it would be lost, so choose another name or delete it")


def claim_folder(folder: Path, out: Path | None = None) -> Path:
    """``folder``, made if need be; ConfigError that names ``out``, or it, where no file can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"{out or folder}: no file can be written there ({error.strerror or error}); choose another place"
        ) from error
    return folder


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on stderr with a rate and the time left; yields what to call with the images done."""
    with tqdm(desc=title, total=total, unit="img", dynamic_ncols=True, file=sys.stderr) as bar:
        yield bar.update


def make_street(out: Path, plan: StreetPlan, processes: int = 0) -> list[Path]:
    """Make the synthetic street in ``out``, or find it there; the manifests, one a site."""
    claim_folder(out)
    with tqdm(desc="making the street", unit="img", dynamic_ncols=True, file=sys.stderr, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return generate(out, plan, workers=processes, progress=show)


def load_checkpoint_for(
    weights: Path | None,
    backbone: str | None = None,
    size: tuple[int, int] | None = None,
    profiles: Sequence[Path] = (),
    flip: bool = False,
) -> Checkpoint:
    """The checkpoint in ``weights`` (None: the shipped ones) with its ``profiles``, in that order.

    ``flip``: it embeds a picture and its mirror image, and the mean of both stands for it.
    """
    checkpoint = load_checkpoint(weights or shipped_weights(), backbone, size=size)
    for path in profiles:
        checkpoint = checkpoint.with_profiles(Profiles.load(path))
    return checkpoint.with_flip() if flip else checkpoint


def unseen_domains(checkpoint: Checkpoint, samples: Sequence[Sample]) -> list[str]:
    """Names of the normalization domains of ``samples`` that the checkpoint does not know."""
    if not checkpoint.domain_fields:
        return []
    return sorted({domain_of(sample, checkpoint.domain_fields) for sample in samples} - set(checkpoint.domains))


def with_unseen_cameras(checkpoint: Checkpoint, samples: Sequence[Sample], unseen: UnseenCamera) -> Checkpoint:
    """The checkpoint with statistics for every camera of ``samples``.

    ``unseen`` says what a camera gets that the checkpoint does not know: "error" nothing (embedding its
    images will raise), "calibrate" its own, measured on the unlabelled rows of split "train", "prior" the
    mixture of all known ones.  "nearest" and "mixture" go by every picture: it is taken for one of the known
    camera whose statistics it is most like, or for one of each, weighed by likeness (:mod:`reid.norm.unseen_domains`);
    they also hold for cameras that are met later, as by a search in a gallery.  The free text of the checkpoint says
    what any camera got.
    """
    if unseen in ("nearest", "mixture"):
        return checkpoint.with_unseen(unseen)
    missing = unseen_domains(checkpoint, samples)
    if not missing or unseen == "error":
        return checkpoint
    met = {**checkpoint.extra, UNSEEN_CAMERA_KEY: unseen}
    if unseen == "prior":
        return replace(checkpoint.with_domains(missing), extra=met)
    pool = [s for s in samples if s.split is Split.TRAIN and domain_of(s, checkpoint.domain_fields) in set(missing)]
    pooled = {domain_of(sample, checkpoint.domain_fields) for sample in pool}
    if pooled != set(missing):
        raise DataError(
            f"cannot calibrate {', '.join(sorted(set(missing) - pooled))}: no rows of split train show them;"
            ' add unlabelled crops, or run "reid calibrate" on other images and pass --profiles'
        )
    check_files(pool)
    with progress_bar("calibrating", len(pool)) as progress:
        profiles = calibrate_checkpoint(checkpoint, pool, workers=workers(), progress=progress)
    return replace(checkpoint.with_profiles(profiles), extra=met)


def embed_samples(checkpoint: Checkpoint, samples: Sequence[Sample], title: str = "embedding") -> Embeddings:
    """Embed with a progress bar; every file is looked for before the first is read, and a picture is run once.

    A picture may be listed as a query and as an answer: both rows get the same vector.
    """
    check_files(samples)
    keys = [(sample.path, domain_of(sample, checkpoint.domain_fields)) for sample in samples]
    once = dict(zip(keys, samples, strict=True))
    with progress_bar(title, len(once)) as progress:
        found = embed(checkpoint, list(once.values()), workers=workers(), progress=progress)
    if len(once) < len(samples):
        place = {key: row for row, key in enumerate(once)}
        found = Embeddings(tuple(samples), found.vectors[[place[key] for key in keys]], found.fingerprint)
    return found


def evaluate_samples(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    protocol: str,
    scoring: Scoring | None = None,
    reranking: Reranking | None = None,
    memory: int | None = None,
    query_examples: int | None = None,
) -> Details:
    """Embed the query and gallery rows and score them; with ``query_examples``, add what :func:`details_of` gives."""
    asked = [sample for sample in samples if sample.split is not Split.TRAIN]
    if scoring is not None and scoring.rule.ignore == "itself":
        asked = list({sample.path: sample for sample in reversed(asked)}.values())[::-1]
    else:
        for split in (Split.QUERY, Split.GALLERY):
            if not any(sample.split is split for sample in asked):
                raise DataError(f'{protocol}: no row of split "{split}"; evaluation needs queries and a gallery')
    embeddings, made = embed_samples(checkpoint, asked), _provenance(checkpoint)
    report = evaluate(
        embeddings, protocol=protocol, scoring=scoring, provenance=made, reranking=reranking, memory=memory
    )
    return (
        Details(report)
        if query_examples is None
        else details_of(report, embeddings, scoring, query_examples=query_examples, memory=memory)
    )


def _provenance(checkpoint: Checkpoint) -> dict[str, object]:
    """How embeddings come about, as far as the files' names do not say it."""
    made: dict[str, object] = {"neck": checkpoint.spec.neck, "flip": checkpoint.transform.flip}
    if checkpoint.runtime:
        made["runtime"] = checkpoint.runtime
    if PRIOR in checkpoint.extra:
        made[PRIOR] = checkpoint.extra[PRIOR]
    policies = [
        checkpoint.extra.get(UNSEEN_CAMERA_KEY, ""),
        "" if checkpoint.unknown_domain is None else checkpoint.unseen,
    ]
    if any(policies):
        made[UNSEEN_CAMERA_KEY] = " and ".join(filter(None, policies))
    return made


def evaluate_data(
    spec: str,
    root: Path | None,
    rule: Mapping[str, str],
    checkpoint_of: Callable[[DataSet], Checkpoint],
    reranking: Reranking | None = None,
    memory: int | None = None,
    query_examples: int | None = None,
) -> Iterator[Details]:
    """The report of a data set; of each of its choices and their means where ``spec`` says "all", as in trial=all.

    ``checkpoint_of`` gives the network for each choice: papers train one on each split.  ``query_examples`` as in
    :func:`evaluate_samples`; a mean has nothing behind it but its reports.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Report]] = {}
    for one in all_choices(spec):
        data = open_data(one, root, rule)
        checkpoint = checkpoint_of(data)
        scored = evaluate_samples(checkpoint, data.samples, data.name, data.scoring, reranking, memory, query_examples)
        yield scored
        variants = data.protocol.variants if data.protocol else {}
        kept = {name: choice for name, choice in data.scoring.variant.items() if not variants[name].mean}
        groups.setdefault(tuple(kept.items()), []).append(scored.report)
    for key, reports in groups.items():
        if len(reports) > 1:
            variant = {name: dict(key).get(name, "mean of all") for name in reports[0].variant}
            yield Details(mean_report(reports, variant))


def build_gallery(checkpoint: Checkpoint, samples: Sequence[Sample], out: Path) -> Gallery:
    """Embed the gallery rows and save their index, and the network to ask it with, in the folder ``out``."""
    rows = [sample for sample in samples if sample.split is Split.GALLERY]
    if not rows:
        raise DataError('no row of split "gallery" to build a gallery from')
    check_gallery_folder(out)
    gallery = Gallery.build(embed_samples(checkpoint, rows, "building the gallery"))
    gallery.save(out, {NETWORK: checkpoint.save})
    return gallery


def gallery_checkpoint(folder: Path) -> Checkpoint:
    """The network that made the gallery in ``folder``, with the statistics of its cameras."""
    with open_gallery_folder(folder) as (_, files):
        if NETWORK not in files:
            raise GalleryError(f"{folder}: holds no network; pass the weights it was built with, or build it again")
        return load_checkpoint(files[NETWORK])


def read_all(specs: Sequence[str], root: Path | None = None) -> tuple[Sample, ...]:
    """The samples of several data sets, one after the other."""
    return tuple(sample for spec in specs for sample in read_data(spec, root))
