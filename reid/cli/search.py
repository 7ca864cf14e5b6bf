"""``reid search``: rank a gallery by similarity to one image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid.cli.gallery_options import Where, filter_of
from reid.cli.index_milvus import milvus_uri, search_in_milvus
from reid.cli.network_options import NetworkCommand
from reid.cli.options import (
    AsJson,
    Backbone,
    Flip,
    ProfileFiles,
    ScoreNormName,
    Size,
    Unseen,
    Weights,
    check_cameras,
    same_rate,
    unseen_policy,
)
from reid.cli.search_messages import check_category, hint_nothing_excluded, unknown_domain
from reid.cli.start_up import collector_paused, wait_without_spinning
from reid.errors import ConfigError
from reid.records import Modality, Sample, Split, UnseenCameraPolicy

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint
    from reid.retrieval.filters import Filter
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.persons.person_state import PersonState
    from reid.retrieval.search import Answer

NOBODY = "nobody in this gallery: the answers below are as good as those to somebody who is not in it"

commands = typer.Typer()


@commands.command(cls=NetworkCommand, epilog="Example: reid search query.jpg --camera a1 --cross-camera")
def search(
    image: Annotated[Path, typer.Argument(help="Image of the person or object to search for.")],
    gallery: Annotated[
        Path | None, typer.Option(help="Folder of the gallery, or its address in Milvus. Default: galleries/street.")
    ] = None,
    camera: Annotated[
        str, typer.Option(help="Camera that took the image. Needed if the network has statistics for each camera.")
    ] = "",
    modality: Annotated[Modality, typer.Option(help="Light that the camera records.")] = Modality.VISIBLE,
    category: Annotated[str, typer.Option(help="What the image shows: person, vehicle, ...")] = "person",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of answers.")] = 10,
    cross_camera: Annotated[bool, typer.Option("--cross-camera", help="Leave out answers of the same camera.")] = False,
    answers: Annotated[
        list[Modality] | None, typer.Option(help="Show answers of this modality only. Can be repeated. Default: any.")
    ] = None,
    score_norm: Annotated[
        ScoreNormName | None,
        typer.Option(
            help="Rank by scores that are normalized per pair of cameras, and judge each answer. Default: what the"
            " profiles recommend, else csls where the gallery has enough crops.",
        ),
    ] = None,
    false_match_rate: Annotated[
        float | None,
        typer.Option(
            callback=same_rate,
            help="Share of pairs of different people that may get the verdict same. Default: 0.0001.",
        ),
    ] = None,
    where: Where = None,
    in_camera: Annotated[
        list[str] | None, typer.Option("--in-camera", help="Show answers of this camera only. Can be repeated.")
    ] = None,
    not_in_camera: Annotated[
        list[str] | None, typer.Option("--not-in-camera", help="Leave out answers of this camera. Can be repeated.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Show crops that were taken at this time or later (ISO 8601).")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Show crops that were taken before this time (ISO 8601).")] = None,
    one_per: Annotated[
        str,
        typer.Option("--one-per", help="Show only the best answer of each identity, person, track or other column."),
    ] = "",
    group_by: Annotated[
        str,
        typer.Option(
            "--group-by", help='The same as --one-per; "person" stands for the persons that reid identify has found.'
        ),
    ] = "",
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
    as_json: AsJson = False,
) -> None:
    """Rank a gallery by similarity to one image.

    Without --weights, the network that the gallery was built with embeds the image.  Behind the similarity of an answer
    stand its normalized score, which ranks the answers, the verdict (same, undecided or other), and its false-match
    rate: the share of pairs of different people of the same two cameras that are as similar.  These are left out where
    the gallery has too few crops for that.
    """
    chosen = filter_of(where, in_camera, not_in_camera, after, before)
    search_gallery(
        SearchRequest(
            image, gallery, camera=camera, modality=modality, category=category, k=k, cross_camera=cross_camera,
            answers=answers, where=chosen, one_per=one_per or group_by,
            score_norm=score_norm, false_match_rate=false_match_rate, weights=weights, backbone=backbone, size=size,
            profiles=profiles or (), unseen=unseen, flip=flip, as_json=as_json,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class SearchRequest:
    """What is searched for, where and with which network: the options of ``reid search``, which explain each value."""

    image: Path
    gallery: Path | None
    camera: str = ""
    modality: Modality = Modality.VISIBLE
    category: str = "person"
    k: int = 10
    cross_camera: bool = False
    answers: list[Modality] | None = None
    where: Filter | None = None
    one_per: str = ""
    score_norm: ScoreNormName | None = None
    false_match_rate: float | None = None
    weights: Path | None = None
    backbone: str | None = None
    size: tuple[int, int] | None = None
    profiles: Sequence[Path] = ()
    unseen: str | None = None
    flip: bool = False
    as_json: bool = False

    @property
    def has_own_network(self) -> bool:
        """Whether the network that the gallery was built with embeds the image."""
        return not (self.weights or self.profiles)

    def load(self) -> Checkpoint:
        """Load the network that --weights and --profiles name."""
        from reid.pipeline import load_checkpoint

        return load_checkpoint(self.weights, self.backbone, self.size, self.profiles, self.flip)

    def prepared(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return a checkpoint with the policy for unknown cameras that --unseen-camera names."""
        check_cameras(checkpoint, self.unseen)
        policy = _checked_policy(self.unseen, self.flip, self.has_own_network)
        return checkpoint if self.unseen is None else checkpoint.with_unseen_camera_policy(policy)


def search_gallery(asked: SearchRequest) -> None:
    """Rank a gallery by similarity to one image, and print the answers."""
    from reid.data.label_text import clean_label
    from reid.data.manifest import check_files
    from reid.pipeline import DEFAULT_GALLERY, check_weights
    from reid.retrieval.storage import check_gallery

    folder, asked = asked.gallery or DEFAULT_GALLERY, replace(asked, camera=clean_label(asked.camera))
    _checked_policy(asked.unseen, asked.flip, asked.has_own_network)
    query = Sample(asked.image, "", asked.camera, asked.modality, asked.category, Split.QUERY)
    uri = milvus_uri(folder)
    if uri is None:
        check_gallery(folder)
    check_files([query])
    check_weights(asked.weights, asked.profiles)
    if uri is None:
        _search_in_folder(asked, folder, query)
    else:
        _search_in_milvus(asked, uri)


def _search_in_milvus(asked: SearchRequest, uri: str) -> None:
    found = search_in_milvus(
        uri, asked.image, asked.prepared(asked.load()), camera=asked.camera, modality=asked.modality,
        category=asked.category, k=asked.k, cross_camera=asked.cross_camera, answers=asked.answers, where=asked.where,
        one_per=asked.one_per,
    )  # fmt: skip
    _print_answers(found, "none", False, None, asked.as_json)


def _search_in_folder(asked: SearchRequest, folder: Path, query: Sample) -> None:
    wait_without_spinning()
    with collector_paused():
        from reid.pipeline import gallery_checkpoint, unknown_domains
        from reid.retrieval.gallery import Gallery
        from reid.retrieval.match_thresholds import SAME_RATE
        from reid.retrieval.search import DEFAULT_SCORE_NORM, nobody_found, search_image

    opened = Gallery.open(folder)
    persons, where = _with_persons(folder, opened, asked.where, asked.one_per)
    if asked.cross_camera:
        hint_nothing_excluded(asked.camera, opened.table.distinct("camera"), folder)
    checkpoint = asked.prepared(gallery_checkpoint(folder) if asked.has_own_network else asked.load())
    if checkpoint.unknown_domain is None and unknown_domains(checkpoint, [query]):
        raise ConfigError(unknown_domain(folder, checkpoint, query, asked.has_own_network, opened.samples))
    check_category(asked.category, opened.table.distinct("category"), folder)
    method = str(asked.score_norm or checkpoint.score_norm or DEFAULT_SCORE_NORM)
    found = search_image(
        checkpoint,
        opened,
        asked.image,
        camera=asked.camera,
        modality=asked.modality,
        category=asked.category,
        k=asked.k,
        cross_camera=asked.cross_camera,
        modalities=asked.answers or None,
        categories=[asked.category],
        where=where,
        one_per=asked.one_per,
        score_norm=method,
        same_rate=SAME_RATE if asked.false_match_rate is None else asked.false_match_rate,
    )
    if asked.score_norm not in (None, ScoreNormName.NONE) and found and found[0].normalized is None:
        typer.echo(f"hint: {folder} has too few crops to normalize scores; they are ranked as they are", err=True)
    _print_answers(found, method, nobody_found(found), persons, asked.as_json)


def _with_persons(
    folder: Path, opened: Gallery, chosen: Filter | None, one_per: str
) -> tuple[PersonState | None, Filter | None]:
    """Return the persons of a gallery, None where it has none, and the filter with their ids in place of names."""
    from reid.retrieval.person_filters import asks_for_persons, with_ids_of_names
    from reid.retrieval.person_search import label_persons
    from reid.retrieval.persons.person_files import has_persons

    persons = label_persons(opened) if has_persons(folder) else None
    wanted = one_per == "person" or asks_for_persons(chosen)
    if wanted and persons is None and "person" not in opened.table.column_names:
        raise ConfigError(f'{folder}: has no persons yet; run "reid identify" on it first')
    if one_per:
        opened.table.column(one_per)  # an error where there is none
    return persons, with_ids_of_names(chosen, persons) if chosen is not None and persons is not None else chosen


def _print_answers(
    found: Sequence[Answer], method: str, nobody: bool, persons: PersonState | None, as_json: bool
) -> None:
    rows = [_row(rank, answer, method, nobody, persons) for rank, answer in enumerate(found, 1)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if nobody:
        typer.echo(NOBODY)
    for row in rows:
        judged = "\t{normalized_score:.4f}\t{verdict}\t{false_match_rate:.2g}" if "verdict" in row else ""
        person = "\t{person}\t{person_name}" if persons is not None else ""
        line = f"{{rank}}\t{{score:.4f}}{judged}\t{{identity}}\t{{camera}}\t{{modality}}\t{{path}}{person}"
        typer.echo(line.format(**row).rstrip("\t"))


def _checked_policy(unseen: str | None, flip: bool, own_network: bool) -> UnseenCameraPolicy:
    """Return the policy for unknown cameras, after refusing options that the gallery's own network does not take."""
    if flip and own_network:
        raise ConfigError("--flip: the gallery's own network embeds as the gallery was built; leave it out")
    policy = unseen_policy(unseen)
    if unseen is not None and (own_network or policy in (UnseenCameraPolicy.CALIBRATE, UnseenCameraPolicy.PRIOR)):
        raise ConfigError(
            "--unseen-camera: a gallery's own network does with unknown cameras what it was built with; beside"
            " --weights or --profiles a search knows error, nearest and mixture"
        )
    return policy


def _row(rank: int, answer: Answer, method: str, nobody: bool, persons: PersonState | None) -> dict[str, Any]:
    """Return what is printed about an answer; what is not known is left out, as version 0.1.0 did not know it."""
    sample = answer.sample
    row: dict[str, Any] = {
        "rank": rank,
        "score": answer.score,
        "identity": sample.identity,
        "camera": sample.camera,
        "modality": str(sample.modality),
        "domain": sample.category,
        "path": str(sample.path),
    }
    if answer.normalized is not None:
        row |= {"normalized_score": answer.normalized, "score_norm": method}
    if answer.match is not None:
        row |= {
            "verdict": str(answer.match.verdict),
            "false_match_rate": answer.match.false_match_rate,
            "false_alarm_rate": answer.match.false_alarm_rate,
            "nobody_in_gallery": nobody,
        }
    return row if persons is None else row | persons.describe(answer.row)
