"""Options and arguments of commands that work on galleries, and how their data is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.options import data_specs
from reid.errors import DataError
from reid.records import Sample, Split, domain_of

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint
    from reid.retrieval.filters import Filter

Folder = Annotated[Path, typer.Argument(help="Folder of the gallery.")]
Place = Annotated[
    Path, typer.Argument(help="Folder of the gallery, or its address in Milvus: milvus://HOST:PORT/NAME or FILE.db.")
]
Where = Annotated[
    str | None,
    typer.Option(
        help="Condition over the columns, such as \"camera IN ('a1', 'a2') AND time >= '2024-05-01'\". Known are =, <>,"
        " <, <=, >, >=, IN, BETWEEN, LIKE, IS NULL, AND, OR and NOT."
    ),
]


def rows_and_columns(
    data: list[str] | None, root: Path | None, every_split: bool = False
) -> tuple[tuple[Sample, ...], tuple[Sample, ...], dict[str, list[str | None]]]:
    """Read the rows of all ``data``, or of the synthetic street, with their further columns.

    Args:
        data: Manifests, folders or names of published data sets.
        root: The folder of a published data set.
        every_split: Keep rows of every split, not only those of split gallery.

    Returns:
        All samples; those of split gallery; and the further columns of these by their names.

    Raises:
        DataError: A source is missing or wrong, or no row is of split gallery.
    """
    from reid.data.protocols.data_sets import open_data

    every_sample: list[Sample] = []
    rows: list[Sample] = []
    more: dict[str, list[str | None]] = {}
    for spec in data_specs(data):
        source = open_data(spec, root)
        chosen = [i for i, s in enumerate(source.samples) if every_split or s.split is Split.GALLERY]
        for name in source.more:
            more.setdefault(name, [None] * len(rows))
        for name, column in more.items():
            texts = source.more.get(name)
            column += [None if texts is None else texts[i] for i in chosen]
        every_sample += source.samples
        rows += [source.samples[i] for i in chosen]
    if not rows:
        raise DataError(f"{', '.join(data or ())}: no row of split gallery; expected at least one")
    return tuple(every_sample), tuple(rows), {name: texts for name, texts in more.items() if not name.startswith("_")}


def domains_to_offer(checkpoint: Checkpoint, samples: Iterable[Sample]) -> list[str]:
    """Return the domains that a checkpoint knows and some samples show; all that it knows where they show none.

    A network knows the cameras that it was trained on as well, which mean nothing to those who calibrated their own.
    """
    shown = {domain_of(sample, checkpoint.domain_fields) for sample in samples}
    return [domain for domain in checkpoint.domains if domain in shown] or list(checkpoint.domains)


def check_domains(folder: Path, checkpoint: Checkpoint, samples: Sequence[Sample]) -> None:
    """Refuse crops of cameras that the network of a gallery has no statistics for, before any is embedded."""
    from reid.pipeline import unknown_domains

    unknown = unknown_domains(checkpoint, samples) if checkpoint.unknown_domain is None else []
    if unknown:
        from reid.retrieval.gallery import Gallery

        offered = domains_to_offer(checkpoint, Gallery.open(folder).samples)
        known = ", ".join(offered[:20]) + (", ..." if len(offered) > 20 else "")
        fields = "/".join(checkpoint.domain_fields)
        raise DataError(
            f"{folder}: its network has no statistics for {fields} {', '.join(unknown[:10])};"
            f' known: {known}; run "reid calibrate" on crops of them and pass --profiles, or pass --unseen-camera'
        )


def filter_of(
    where: str | None,
    in_camera: list[str] | None = None,
    not_in_camera: list[str] | None = None,
    after: str | None = None,
    before: str | None = None,
) -> Filter | None:
    """Return the filter that the options ask for; None where they ask for none."""
    if all(option in (None, []) for option in (where, in_camera, not_in_camera, after, before)):
        return None  # without importing what reads expressions
    from reid.retrieval.filters import ColumnCondition, both, equals, parse_where, time_of, without

    for time in (after, before):
        if time is not None:
            time_of(time)
    return both(
        None if where is None else parse_where(where),
        equals("camera", *(in_camera or ())),
        without("camera", *(not_in_camera or ())),
        None if after is None else ColumnCondition("time", ">=", (after,)),
        None if before is None else ColumnCondition("time", "<", (before,)),
    )
