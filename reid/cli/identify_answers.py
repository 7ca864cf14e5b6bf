"""The verbs of ``reid identify`` that ask: who is on these images, and who went from one camera to another?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid.cli.gallery_options import domains_to_offer
from reid.cli.options import AsJson, ScoreNormName
from reid.errors import ConfigError, unknown_name
from reid.records import Modality, Sample, Split

if TYPE_CHECKING:
    from reid.retrieval.persons.person_state import PersonState
    from reid.retrieval.search import Answer

answers = typer.Typer()

Folder = Annotated[Path | None, typer.Option("--gallery", help="Folder of the gallery. Default: galleries/street.")]


def gallery_folder(context: typer.Context, gallery: Path | None) -> Path:
    """Return the folder of the gallery, which may stand before or behind the verb."""
    from reid.pipeline import DEFAULT_GALLERY

    folder: Path = gallery or context.obj or DEFAULT_GALLERY
    from reid.retrieval.storage import check_gallery
    from reid.retrieval.stores.milvus_client import is_milvus_uri

    if str(folder).startswith("milvus:") or is_milvus_uri(str(folder)):
        raise ConfigError(
            f"{folder}: galleries in Milvus keep no persons; write its rows to a folder with Gallery.save"
        )

    check_gallery(folder)
    return folder


@answers.command("handoff", epilog="Example: reid identify handoff --left a1 --within 600 --gallery galleries/crops")
def identify_handoff(
    context: typer.Context,
    gallery: Folder = None,
    left: Annotated[str, typer.Option(help="Camera that people left. Default: any.")] = "",
    appeared: Annotated[str, typer.Option(help="Camera where they appeared next. Default: any, or none.")] = "",
    within: Annotated[
        float | None, typer.Option(min=0, help="Seconds within which they appeared. Later counts as not found again.")
    ] = None,
    visit_gap: Annotated[
        float, typer.Option(min=0, help="Seconds without a crop after which somebody has left a camera.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """List who left a camera and where they appeared next, from the times of the crops."""
    from reid.retrieval.persons.handoffs import handoff_json, handoffs_of
    from reid.retrieval.persons.person_state import read_persons

    state = read_persons(gallery_folder(context, gallery))
    known = state.table.distinct("camera")
    for option, camera in (("--left", left), ("--appeared", appeared)):
        if camera and camera not in known:
            raise ConfigError(f"{option}: {unknown_name('camera', camera, known)}")
    found = handoffs_of(state, left, appeared, within, visit_gap)
    rows = [handoff_json(state, one) for one in found]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        who = f"{row['person']} {row['name']}".rstrip()
        found_again = row["appeared_camera"] is not None
        to = "{appeared_camera}\t{appeared_time}\t{seconds:+.0f} s".format(**row) if found_again else "not found again"
        typer.echo(f"{row['left_camera']}\t{row['left_time']}\t{to}\t{row['confidence']:.2f}\t{who}")


@answers.command("match", epilog="Example: reid identify match 1.jpg 2.jpg 3.jpg --camera a1 --gallery galleries/crops")
def identify_match(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Images of one person or object.")],
    gallery: Folder = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(help="Camera that took the images, or one for each image, in their order. Can be repeated."),
    ] = None,
    modality: Annotated[Modality, typer.Option(help="Light that the camera records.")] = Modality.VISIBLE,
    category: Annotated[str, typer.Option(help="What the images show: person, vehicle, ...")] = "person",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of persons.")] = 10,
    score_norm: Annotated[
        ScoreNormName | None, typer.Option(help="How scores are normalized per pair of cameras. Default: as in search.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the persons of a gallery by several images of one person, which are one query together.

    The query is the mean of the embeddings of the images.  A person ranks by its best crop.  A crop without a person
    answers by itself.
    """
    from reid.data.label_text import clean_label
    from reid.data.manifest import check_files
    from reid.pipeline import gallery_checkpoint, unknown_domains

    folder, cameras = gallery_folder(context, gallery), [clean_label(one) for one in camera or [""]]
    if len(cameras) not in (1, len(images)):
        raise ConfigError(f"--camera: expected one camera for all images or one for each of {len(images)}")
    queries = [Sample(image, "", "", modality, category, Split.QUERY) for image in images]
    check_files(queries)
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.person_search import embed_together, label_persons, search_persons
    from reid.retrieval.search import DEFAULT_SCORE_NORM

    opened, checkpoint = Gallery.open(folder), gallery_checkpoint(folder)
    state = label_persons(opened)
    asked = [Sample(images[0], "", one, modality, category, Split.QUERY) for one in cameras]
    missing = unknown_domains(checkpoint, asked) if checkpoint.unknown_domain is None else []
    if missing:
        offered = domains_to_offer(checkpoint, opened.samples)
        raise ConfigError(f"--camera: {unknown_name('camera of the network', missing[0], offered)}")
    vectors = embed_together(checkpoint, images, cameras, modality=modality, category=category)
    found = search_persons(
        opened, vectors, fingerprint=checkpoint.fingerprint, modality=modality, category=category, k=k,
        camera=cameras[0] if len(set(cameras)) == 1 else "",
        score_norm=str(score_norm or checkpoint.score_norm or DEFAULT_SCORE_NORM),
    )  # fmt: skip
    rows = [person_answer_json(state, rank, one) for rank, one in enumerate(found, 1)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        judged = "\t{verdict}\t{false_match_rate:.2g}".format(**row) if "verdict" in row else ""
        typer.echo(
            "{rank}\t{score:.4f}{judged}\t{person}\t{person_name}\t{person_crops} crops\t{path}".format(
                judged=judged, **row
            )
        )


def person_answer_json(state: PersonState, rank: int, answer: Answer) -> dict[str, Any]:
    """Return what is printed about a person that answers a query."""
    row: dict[str, Any] = {
        "rank": rank,
        **state.describe(answer.row),
        "score": answer.score,
        "camera": answer.sample.camera,
        "identity": answer.sample.identity,
        "path": str(answer.sample.path),
    }
    row |= {} if answer.normalized is None else {"normalized_score": answer.normalized}
    if answer.match is not None:
        row |= {"verdict": str(answer.match.verdict), "false_match_rate": answer.match.false_match_rate}
    return row
