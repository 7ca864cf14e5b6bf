"""The query that a page names: a crop that is offered, a row of the gallery, or what the visitor uploaded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from reid.app.page_values import PageValues, PageVisit
from reid.app.query import Query
from reid.app.search_checks import notes_on_assumption
from reid.app.served_data import ServedData
from reid.app.upload_images import doubts_about, guess_modality
from reid.errors import DataError
from reid.records import Modality, Sample, Split, UnseenCameraPolicy
from reid.retrieval.search import UPLOADED

MOST_ROWS = 8  # of one query
CROPS_SHOWN = 12  # to choose from at a time
FIRST_CROPS_SEED = 0  # the first crops to choose from are the same at every visit
UPLOAD = "upload"
GUESSED = "guess"  # the modality of an upload is that of its camera, or is guessed from the image
UNKNOWN_CAMERAS = {
    "?mixture": "unknown: mixture of all cameras",
    "?nearest": "unknown: nearest camera",
}
GONE_QUERY = "this query does not exist; choose one of the crops"
GONE_UPLOAD = "uploaded images are forgotten when the page is closed or reloaded; upload them again"


def asks_other_cameras(data: ServedData) -> bool:
    """Whether a search leaves out the query's camera at first: not where only its own crops of one camera are there."""
    cameras = [name for name in data.main.gallery.table.distinct("camera") if name]
    return len(cameras) > 1 or (not data.query_crops.are_gallery_rows and bool(cameras))


def key_of(data: ServedData, number: int) -> str:
    """Return the name of a query crop in the address of the page."""
    return f"{'r' if data.query_crops.are_gallery_rows else 'q'}{number}"


def draw_keys(data: ServedData, site: str, category: str, camera: str | None, seed: int | None) -> list[str]:
    """Draw some crops to choose from at random; the same ones for the same seed."""
    numbers = data.query_crops.matching(site, category or None, camera)
    chosen = random.Random(seed).sample(range(len(numbers)), min(CROPS_SHOWN, len(numbers)))
    return [key_of(data, int(numbers[position])) for position in chosen]


def crop_query(data: ServedData, key: str) -> Query:
    """Return the query of a crop, or of several rows of the gallery ("r3,r7") that show one person or object.

    Raises:
        DataError: There is no such crop, it was erased, or there are too many.
    """
    key, *others = key.split(",")
    if others:
        return _query_of_rows(data, [key, *others])
    kind, digits = key[:1], key[1:]
    if kind not in ("q", "r") or not (digits.isascii() and digits.isdigit() and len(digits) < 17):
        raise DataError(GONE_QUERY)
    number, crops = int(digits), data.query_crops
    if kind == "q":
        found = None if crops.are_gallery_rows else crops.find(number)
        if found is None:
            raise DataError(GONE_QUERY)
        return Query(found[1], found[0])
    sample = sample_of_row(data, number)
    return Query(sample, data.site_of(sample), row=number)


def _query_of_rows(data: ServedData, keys: Sequence[str]) -> Query:
    """Return the query of several rows; those of another category than the first one are refused."""
    if len(keys) > MOST_ROWS:
        raise DataError(f"a query holds at most {MOST_ROWS} crops; choose fewer")
    queries = [crop_query(data, key) for key in dict.fromkeys(keys)]
    rows = [query.row for query in queries if query.row is not None]
    if len(rows) < len(queries):
        raise DataError("only crops of the gallery can be searched for together")
    if len({query.sample.category for query in queries}) > 1:
        raise DataError("the chosen crops show different categories; choose crops of one")
    return replace(queries[0], more_rows=tuple(rows[1:]))


def sample_of_row(data: ServedData, number: int) -> Sample:
    """Return the sample of a row of the main gallery by its lasting id.

    Raises:
        DataError: There is no such row, or it was erased.
    """
    table = data.main.gallery.table
    row = int(table.row_ids.searchsorted(number))
    if row == len(table) or table.row_ids[row] != number:
        raise DataError(GONE_QUERY)
    return table.samples[row]


def upload_query(data: ServedData, values: PageValues, visit: PageVisit) -> tuple[Query, list[str]]:
    """Return the query of uploaded images with the labels that the visitor chose.

    Returns:
        The query, and what the visitor should know about it, a sentence each.

    Raises:
        DataError: The images are gone.
    """
    names = values.words("images")
    images = tuple(visit.images[name] for name in names if name in visit.images)
    if not images or len(images) < len(names):
        raise DataError(GONE_UPLOAD)
    cameras = upload_cameras(data)
    chosen = values.text("upload_camera", next(iter(UNKNOWN_CAMERAS)))
    site, camera = cameras.get(chosen, ("", None))
    categories = data.main.categories or ("person",)
    category = values.text("upload_category", categories[0])
    if category not in categories:
        category = categories[0]
    modality, notes = _modality_of(values.text("upload_modality", GUESSED), images, camera)
    for image in images:
        notes += [doubt for doubt in doubts_about(image, category) if doubt not in notes]
    policy = ""
    if camera is None:
        policy = str(UnseenCameraPolicy.NEAREST if chosen == "?nearest" else UnseenCameraPolicy.MIXTURE)
    name = "" if camera is None else camera.camera
    query = Query(Sample(UPLOADED, "", name, modality, category, Split.QUERY), site, images, policy=policy)
    said = [f"{note[:1].upper()}{note[1:]}." for note in notes_on_assumption(data.main, query)]
    if said and policy and data.main.checkpoint is not None and data.main.checkpoint.domain_fields:
        said = [f"{said[0][:-1]}; name the camera if you know it."]
    return query, [*notes, *said]


def _modality_of(chosen: str, images: Sequence[Image.Image], camera: Sample | None) -> tuple[Modality, list[str]]:
    guesses = {guess_modality(image) for image in images}
    guess = guesses.pop() if len(guesses) == 1 else Modality.VISIBLE
    if chosen in [str(one) for one in Modality]:
        modality = Modality(chosen)
    elif camera is not None:
        modality = camera.modality
    else:
        said = "It has no colour, so it is taken for an infrared image."
        return guess, [said] if guess is Modality.INFRARED else []
    if guess is not modality:
        looks = "no colour, as infrared images have" if guess is Modality.INFRARED else "colours, as visible ones have"
        return modality, [f"It is taken for a {modality} image, but it has {looks}."]
    return modality, []


def upload_cameras(data: ServedData) -> Mapping[str, tuple[str, Sample]]:
    """Return (name of the site, a sample) of every known camera, by the label of the camera on the page."""
    several = data.has_several_sites
    return {
        f"{site.name} · {sample.camera}" if several else sample.camera: (site.name, sample)
        for site in data.sites
        for sample in site.cameras
        if sample.camera
    }
