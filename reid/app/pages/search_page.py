"""The page "Search": choose or upload a query, set the options, read the ranked answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock

from reid.app import presentation as present
from reid.app.frame_box import cut_box
from reid.app.frame_people import people_in
from reid.app.gallery_service import GalleryService
from reid.app.image_alarm import alarm_about
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.answer_words import export_row, one_line, rate_words, sentence, time_words
from reid.app.pages.box_form import box_form_html
from reid.app.pages.crop_cards import crop_of, crop_of_query
from reid.app.pages.search_form import (
    ANY,
    camera_select_html,
    filters_html,
    picker_filters_html,
    search_form_html,
    upload_labels_html,
)
from reid.app.query import Query, QueryOutcome, SearchOptions, answer_query
from reid.app.query_choice import (
    FIRST_CROPS_SEED,
    UPLOAD,
    asks_other_cameras,
    crop_query,
    draw_keys,
    sample_of_row,
    upload_query,
)
from reid.app.typical_scores import note_on_scores
from reid.app.upload_images import read_upload
from reid.app.uploads import UploadStore
from reid.errors import DataError, ReidError
from reid.records import Modality, Sample
from reid.retrieval.search import Answer

MOST_ANSWERS = 50
NEIGHBOURS = 5  # crops of the same camera before and after an enlarged one
NO_CROPS = 'This gallery is empty. Add crops to it with "reid index add", and they appear here.'


class SearchPage:
    """What the page does.

    Args:
        service: The gallery, with the log of searches.
        uploads: Where the images are that visitors upload.
    """

    name = "search"
    title = "Search"

    def __init__(self, service: GalleryService, uploads: UploadStore) -> None:
        self._service = service
        self._data = service.data
        self._uploads = uploads
        self._decoding = Lock()  # decoding an image takes much memory, so it is done for one visitor at a time
        self.actions: Mapping[str, PageAction] = {
            "search": self.search,
            "box": self.search_box,
            "pick": self.pick,
            "others": self.pick_others,
            "random": self.choose_random,
            "enlarge": self.enlarge,
        }

    def first_html(self) -> str:
        """Return the page as a visitor first sees it, with the answers to a first query."""
        keys, chosen = self.first_crops()
        card, answers = "", present.note_html(NO_CROPS)
        purposes = self._service.audit.purposes
        if chosen and purposes:
            answers = present.note_html("Name the purpose of your searches, then choose a crop.")
        elif chosen:
            card, answers = self._first_answers(crop_query(self._data, chosen))
        picker = self._picker_html(keys, chosen) if keys else ""
        return search_form_html(self._data, chosen, picker, card, answers, purposes)

    def following(self) -> Mapping[str, str]:
        """Return the lists that name the cameras and the categories of the gallery."""
        picker = {} if self._data.has_several_sites else {"picker-filters": picker_filters_html(self._data)}
        return {
            **picker,
            "upload-labels": upload_labels_html(self._data),
            "search-filters": filters_html(self._data),
        }

    def _first_answers(self, query: Query) -> tuple[str, str]:
        """Return the card and the answers of the first query; where nothing may answer it, a note instead of them."""
        try:
            parts = self._answered(query, PageValues({}), [])
        except ReidError as error:
            return present.query_html(self._crop_of_query(query)), present.note_html(one_line(error))
        return parts.parts["query"], parts.parts["answers"]

    def first_crops(self) -> tuple[list[str], str]:
        """Return the crops that are offered first, and which of them is searched for; "" where there is none."""
        crops = self._data.query_crops
        category = crops.categories[0] if crops.categories else ""
        keys = draw_keys(self._data, self._data.sites[0].name, category, None, FIRST_CROPS_SEED)
        visible = [key for key in keys if crop_query(self._data, key).sample.modality is Modality.VISIBLE]
        return keys, next(iter([*visible, *keys]), "")

    def search(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Search for the query that the page names; where that fails, nothing of an earlier query stays."""
        card = ""
        try:
            query, notes = self._query(values, visit)
            frame = self._frame_html(values.words("uploads"), query, visit)
            frame += box_form_html(values, visit) if query.uploads else ""
            card = present.query_html(self._crop_of_query(query)) + "".join(map(present.note_html, notes)) + frame
            self._record(query, values, visit)
            reveal = bool(values.text("reveal")) or values.flag("reveal")
            parts = self._answered(query, values, notes, reveal=reveal, frame=frame)
            return parts if values.text("query") else self._with_picker(parts)
        except ReidError as error:
            return PageParts({"query": card, "answers": ""}, error=one_line(error))

    def _with_picker(self, parts: PageParts) -> PageParts:
        """Add the crops to choose from, for a page that was opened while there were none."""
        keys, chosen = self.first_crops()
        return replace(
            parts, parts={**parts.parts, "picker": self._picker_html(keys, chosen)}, fields={"query": chosen}
        )

    def search_box(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Search for the part of an uploaded image that the visitor has drawn a box around."""
        name = cut_box(values, visit)
        parts = self.search(values.changed(query=UPLOAD, images=[name], reveal="1"), visit)
        return replace(parts, fields={"query": UPLOAD, "images": name})

    def _query(self, values: PageValues, visit: PageVisit) -> tuple[Query, list[str]]:
        """Return the query that the page names, and what the visitor should know about it."""
        key = values.text("query") or self.first_crops()[1]
        if not key:
            raise DataError(NO_CROPS)
        if key != UPLOAD:
            query = crop_query(self._data, key)
            together = f"The mean of {len(query.more_rows) + 1} crops is searched for; the first one is shown."
            return query, [together] * bool(query.more_rows)
        for name in values.words("uploads"):
            self._receive(name, visit)
        return upload_query(self._data, values, visit)

    def _frame_html(self, uploads: Sequence[str], query: Query, visit: PageVisit) -> str:
        """Return buttons for the people in a frame that was just uploaded; "" where none are found."""
        if len(uploads) != 1 or query.sample.category != "person":
            return ""
        found = people_in(query.uploads[-1])
        buttons = {}
        for number, image in enumerate(found, 1):
            name = f"{uploads[0]}-{number}"
            visit.keep(name, image)
            buttons[name] = crop_of_query(replace(query, uploads=(image,)))
        return present.frame_html(buttons) if buttons else ""

    def _record(self, query: Query, values: PageValues, visit: PageVisit) -> None:
        """Write to the log who searches and with which filters, and never what the query shows."""
        audit, options, purpose = self._service.audit, self._options(query, values), values.text("purpose")
        audit.check_purpose(purpose)
        facts = {name: value for name, value in vars(options).items() if value not in ("", None, ())}
        facts |= {"images": len(query.uploads), "row": query.row, "camera": query.sample.camera}
        audit.record("search", visit.user.name, facts, purpose)

    def _receive(self, name: str, visit: PageVisit) -> None:
        content = self._uploads.take(name)
        if content is None:
            raise DataError("no file arrived; choose one again")
        with self._decoding:
            visit.keep(name, read_upload(content))

    def _answered(
        self, query: Query, values: PageValues, notes: list[str], *, reveal: bool = False, frame: str = ""
    ) -> PageParts:
        options = self._options(query, values)
        outcomes = answer_query(self._data, query, options)
        if query.uploads:
            notes = [*notes, *note_on_scores(self._data.main, outcomes[0])]
        alarm = alarm_about(self._data.main, query)
        notes = [*notes, *([] if alarm is None else map(sentence, alarm.notes))]
        card = present.query_html(self._crop_of_query(query)) + "".join(map(present.note_html, notes)) + frame
        alone, compared = [
            "".join(self._ranking_html(query, one) for one in outcomes if one.is_compared is flag)
            for flag in (False, True)
        ]
        if compared:
            compared = f'<h3 class="reid-subtitle">The same network, trained twice</h3>{compared}'
        html = alone + compared + present.legend_html()
        count = len(outcomes[0].answers)
        purpose = {"purpose": values.text("purpose")} if self._service.audit.purposes else {}
        export = [
            {**export_row(rank, answer, row), **purpose} for rank, ((answer, _), row) in enumerate(
                zip(outcomes[0].answers, outcomes[0].row_ids, strict=True), 1
            )
        ]  # fmt: skip
        return PageParts({"query": card, "answers": html}, status=f"{count} answers", export=export, reveal=reveal)

    def _options(self, query: Query, values: PageValues) -> SearchOptions:
        modality = values.text("modality")
        return SearchOptions(
            cross_camera=values.flag("cross", asks_other_cameras(self._data)),
            modality=Modality(modality) if modality in [str(one) for one in Modality] else None,
            site="" if values.text("scope") == "all" else query.site,
            answers=max(values.number("count", 10, MOST_ANSWERS), 1),
            cameras=values.words("cameras"),
            without_cameras=values.words("without"),
            after=values.text("after"),
            before=values.text("before"),
            ranking=values.text("ranking", "plain"),
            one_per=values.text("one_per"),
            compare=values.flag("compare"),
            known=values.text("known"),
        )

    def _ranking_html(self, query: Query, outcome: QueryOutcome) -> str:
        ranking = [
            self._card(rank, answer, str(verdict), row)
            for rank, ((answer, verdict), row) in enumerate(zip(outcome.answers, outcome.row_ids, strict=True), 1)
        ]
        known = bool(query.sample.identity)
        summary = present.summary_html(
            outcome.rows, outcome.first_right, outcome.first_right_shown, outcome.average_precision, known
        )
        return present.ranking_html(outcome.title, ranking, summary, outcome.notes)

    def _card(self, rank: int, answer: Answer, verdict: str, row: int) -> present.RankedCrop:
        sample, match = answer.sample, answer.match
        return present.RankedCrop(
            rank,
            self._crop_of(sample, row),
            answer.score,
            verdict,
            row,
            "" if match is None else str(match.verdict),
            "" if match is None else rate_words(match.false_match_rate),
            "" if sample.time is None else f"{sample.time:%d %b %H:%M}",
        )

    def pick(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show crops to choose from that fit the filters, the same ones each time."""
        return self._picked(values, FIRST_CROPS_SEED)

    def pick_others(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show crops that fit the filters, drawn at random."""
        return self._picked(values, None)

    def _picked(self, values: PageValues, seed: int | None) -> PageParts:
        site = values.text("site") or self._data.sites[0].name
        cameras = {sample.camera for one in self._data.sites if one.name == site for sample in one.cameras}
        camera = values.text("camera", ANY)
        camera = camera if camera in cameras else ANY
        wanted = None if camera == ANY else camera
        keys = draw_keys(self._data, site, values.text("category"), wanted, seed)
        parts = {
            "picker": self._picker_html(keys, values.text("query")),
            "picker-camera": camera_select_html(self._data, site, camera),
        }
        return PageParts(parts, status=f"{len(keys)} crops to choose from")

    def choose_random(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Choose a random query that fits the filters, and search for it."""
        site = values.text("site") or self._data.sites[0].name
        camera = values.text("camera", ANY)
        keys = draw_keys(self._data, site, values.text("category"), None if camera == ANY else camera, None)
        if not keys:
            raise DataError("no query fits this selection; choose another site, category or camera")
        chosen = random.choice(keys)
        query = crop_query(self._data, chosen)
        self._record(query, values, visit)
        parts = self._answered(query, values, [], reveal=True)
        picker = {"picker": self._picker_html(keys, chosen)}
        return PageParts({**parts.parts, **picker}, {"query": chosen}, "", parts.status, parts.export, reveal=True)

    def enlarge(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show an answer in large, with the crops that its camera took before and after it."""
        number = values.number("row", -1)
        sample = sample_of_row(self._data, number)
        near = self._neighbours(sample)
        return PageParts({"dialog-content": present.enlarged_html(self._crop_of(sample, number), number, [
            (one, self._crop_of(other, one), time_words(other)) for one, other in near
        ], time_words(sample))}, status="answer enlarged")  # fmt: skip

    def _neighbours(self, sample: Sample) -> list[tuple[int, Sample]]:
        if sample.time is None:
            return []
        table = self._data.main.gallery.table
        codes, words = table.codes("camera")
        rows = (codes == words.index(sample.camera)).nonzero()[0]
        times = table.arrow.column("time").take(rows).to_numpy().astype("datetime64[us]").astype("int64")
        own = times[[str(path) == str(sample.path) for path in table.arrow.column("path").take(rows).to_pylist()]]
        order = abs(times - (own[0] if len(own) else 0)).argsort(kind="stable")[: 2 * NEIGHBOURS + 1]
        near = rows[order[times[order].argsort(kind="stable")]]
        samples = table.samples_at(near)
        return [(int(table.row_ids[row]), one) for row, one in zip(near.tolist(), samples, strict=True) if one.time]

    def _picker_html(self, keys: list[str], chosen: str) -> str:
        return present.picker_html({key: self._crop_of_query(crop_query(self._data, key)) for key in keys}, chosen)

    def _crop_of(self, sample: Sample, row: int) -> present.Crop:
        return crop_of(sample, self._data.site_of(sample), self._data.main.gallery, row)

    def _crop_of_query(self, query: Query) -> present.Crop:
        crop = crop_of_query(query, self._data.main.gallery)
        return crop if self._data.has_several_sites else replace(crop, site="")
