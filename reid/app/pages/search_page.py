"""The page "Search": choose or upload a query, set the options, compare the answers of the networks.

An error becomes one line on the page.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from reid.app import presentation as present
from reid.app.first_view import FirstValues
from reid.app.pages.crop_cards import crop_of, crop_of_query
from reid.app.pages.fields import accept_any_choice, hold_upload_name
from reid.app.query import Query, QueryOutcome, SearchOptions, answer_query
from reid.app.served_data import ServedData
from reid.app.upload_images import read_upload
from reid.app.uploads import UploadStore
from reid.errors import DataError, ReidError
from reid.records import Modality, Sample, Split
from reid.retrieval.search import UPLOADED

CROPS_SHOWN = 12  # to choose from at a time
ANSWERS_SHOWN = 10  # until the visitor chooses another number
FIRST_CROPS_SEED = 0  # the first crops to choose from are the same at every visit
UPLOAD_HINT = "At most 10 MB. The file is never written to a disk and is deleted from memory once it is read."
ANY = "all"
BOTH = "both"
OWN_SITE, ALL_SITES = "the query's site", "all sites"
# Values are not read by gradio: reid.app.messages has checked them, and gradio logs a traceback for each wrong one.
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
PRESS_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-key]');
  if (!button) return;
  element.querySelectorAll('[aria-pressed="true"]').forEach((other) => other.setAttribute('aria-pressed', 'false'));
  button.setAttribute('aria-pressed', 'true');
  trigger('select', {key: Number(button.dataset.key)});
});
"""


class SearchPage:
    """The components of the page and what they do; to be made inside a ``gr.Blocks``."""

    def __init__(self, data: ServedData, uploads: UploadStore):
        self._data = data
        self._uploads = uploads
        keys, chosen = self._first_crops()
        first: Query | str = "choose a query first" if chosen is None else self._query(chosen)
        self.query = gr.State(first, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=3, min_width=290, elem_classes="reid-side"), gr.Tabs():
                with gr.Tab("From the data set", id="choose"):
                    self._build_picker(keys, chosen)
                with gr.Tab("Upload", id="upload"):
                    self._build_upload()
            with gr.Column(scale=9, min_width=320):
                self._build_answers(first)
        self._connect_picker()
        self._connect_upload()
        self._connect_options()

    @property
    def first_values(self) -> FirstValues:
        """The components that show crops when the page is opened, and what makes their values again."""
        return (self.query, self.picker, self.card, self.answers), self._make_first_values

    def _make_first_values(self) -> tuple[Query | str, str, str, str]:
        keys, chosen = self._first_crops()
        query = "no query is left; choose another site, category or camera" if chosen is None else self._query(chosen)
        shown = self.show_answers(query, True, BOTH, OWN_SITE, ANSWERS_SHOWN)
        return query, self._picker_html(keys, chosen), *shown

    def _first_crops(self) -> tuple[list[int], int | None]:
        """Return the crops that are offered first, and which of them is searched for; None where there is none."""
        keys = _draw(self._keys(self._data.sites[0].name, self._data.query_crops.categories[0], ANY), FIRST_CROPS_SEED)
        visible = [key for key in keys if self._query(key).sample.modality is Modality.VISIBLE]
        return keys, next(iter([*visible, *keys]), None)

    def _build_picker(self, keys: Sequence[int], chosen: int | None) -> None:
        sites, categories = [site.name for site in self._data.sites], list(self._data.query_crops.categories)
        fixed: dict[str, Any] = {"filterable": False, "min_width": 80}
        with gr.Row(elem_classes="reid-filters"):
            self.site = gr.Dropdown(sites, value=sites[0], label="Site", elem_id="site", **fixed)
            self.category = gr.Dropdown(categories, value=categories[0], label="Category", elem_id="category", **fixed)
            self.camera = accept_any_choice(
                gr.Dropdown(self._camera_choices(sites[0]), value=ANY, label="Camera", elem_id="camera", **fixed)
            )
        picker = self._picker_html(keys, chosen)
        self.picker = gr.HTML(picker, js_on_load=PRESS_SCRIPT, elem_id="picker", apply_default_css=False)
        with gr.Row():
            self.others = gr.Button("Show others", size="sm", min_width=90, elem_id="others")
            self.random = gr.Button("Random query", size="sm", min_width=90, variant="primary", elem_id="random")

    def _build_upload(self) -> None:
        cameras, categories = self._cameras(), list(self._data.query_crops.categories)
        first = next(iter(cameras))
        modality = str(cameras[first][1].modality)
        self.file = hold_upload_name(gr.File(label="A crop of one person or vehicle", height=132, elem_id="upload"))
        self.upload_camera = gr.Dropdown(
            list(cameras), value=first, label="Camera that took it", elem_id="upload-camera", filterable=False
        )
        self.upload_modality = gr.Radio(
            [*map(str, Modality)], value=modality, label="Modality", elem_id="upload-modality"
        )
        self.upload_category = gr.Radio(categories, value=categories[0], label="Category", elem_id="upload-category")
        gr.HTML(present.hint_html(UPLOAD_HINT))

    def _build_answers(self, first: Query | str) -> None:
        card, answers = self.show_answers(first, True, BOTH, OWN_SITE, ANSWERS_SHOWN)
        with gr.Row(elem_classes="reid-top"):
            with gr.Column(scale=4, min_width=250):
                self.card = gr.HTML(card, elem_id="query", apply_default_css=False)
            with gr.Column(scale=9, min_width=300):
                self._build_options()
        self.answers = gr.HTML(answers, elem_id="answers", apply_default_css=False)

    def _build_options(self) -> None:
        with gr.Row(elem_classes="reid-switches"):
            self.cross_camera = gr.Checkbox(
                True,
                label="Other cameras only",
                info="leave out the query's own camera",
                elem_id="cross-camera",
                min_width=190,
            )
            self.answer_modality = gr.Radio(
                [BOTH, *map(str, Modality)], value=BOTH, label="Answers in", elem_id="answers-modality", min_width=260
            )
        with gr.Row(elem_classes="reid-switches"):
            self.count = gr.Slider(
                5, 50, value=ANSWERS_SHOWN, step=5, label="Number of answers", elem_id="count", min_width=190
            )
            self.scope = gr.Radio(
                [OWN_SITE, ALL_SITES], value=OWN_SITE, label="Search in", elem_id="scope", min_width=260
            )

    def _search_event(self) -> dict[str, Any]:
        """Return the event that searches for the chosen query, as ``then`` and ``gr.on`` expect it."""
        options = [self.cross_camera, self.answer_modality, self.scope, self.count]
        return {
            "fn": self.show_answers,
            "inputs": [self.query, *options],
            "outputs": [self.card, self.answers],
            **HIDDEN,
            "show_progress": "minimal",
            "concurrency_id": "network",
            "concurrency_limit": 1,
        }

    def _connect_picker(self) -> None:
        filters: list[Any] = [self.site, self.category, self.camera]
        changes, search = [component.change for component in filters], self._search_event()
        self.site.change(self._update_cameras, self.site, self.camera, **HIDDEN)
        gr.on(changes, self.show_first_crops, filters, self.picker, trigger_mode="always_last", **HIDDEN)
        self.others.click(self.show_other_crops, filters, self.picker, **HIDDEN)
        self.random.click(self.choose_random, filters, [self.picker, self.query], **HIDDEN).then(**search)
        self.picker.select(self.choose_pressed, None, self.query, **HIDDEN).then(**search)

    def _connect_upload(self) -> None:
        labels: list[Any] = [self.upload_camera, self.upload_category, self.upload_modality]
        changes, search = [component.change for component in labels], self._search_event()
        one_at_a_time = {"concurrency_id": "upload", "concurrency_limit": 1}  # decoding an image takes much memory
        self.file.upload(
            self.receive_upload, [self.file, *labels], [self.file, self.query], **HIDDEN, **one_at_a_time
        ).then(**search)
        self.upload_camera.change(self._modality_of, self.upload_camera, self.upload_modality, **HIDDEN)
        gr.on(changes, self.relabel_upload, [self.query, *labels], self.query, **HIDDEN).then(**search)

    def _connect_options(self) -> None:
        changes = [self.cross_camera.change, self.answer_modality.change, self.scope.change, self.count.release]
        gr.on(changes, trigger_mode="always_last", **self._search_event())

    def show_first_crops(self, site: str, category: str, camera: str) -> str:
        """Show crops that fit the filters, the same ones each time."""
        return self._picker_html(_draw(self._keys(site, category, camera), FIRST_CROPS_SEED))

    def show_other_crops(self, site: str, category: str, camera: str) -> str:
        """Show crops that fit the filters, drawn at random."""
        return self._picker_html(_draw(self._keys(site, category, camera)))

    def choose_random(self, site: str, category: str, camera: str) -> tuple[str, Query | str]:
        """Choose a random query that fits the filters.

        Returns:
            HTML of crops to choose from that include the query, and the query, or one line that says why there is
            none.
        """
        keys = _draw(self._keys(site, category, camera))
        if not keys:
            return self._picker_html(keys), "no query fits this selection; choose another site, category or camera"
        return self._picker_html(keys, keys[0]), self._query(keys[0])

    def choose_pressed(self, event: gr.EventData) -> Query | str:
        """Return the query whose button was pressed; its key comes from the browser, so it is checked."""
        key = event._data.get("key") if isinstance(event._data, dict) else None
        if not isinstance(key, int) or self._data.query_crops.find(key) is None:
            return "this query does not exist; choose one of the crops"
        return self._query(key)

    def receive_upload(
        self, upload: str | None, camera_label: str, category: str, modality: str
    ) -> tuple[None, Query | str]:
        """Read an uploaded crop as the query, and forget its file.

        Args:
            upload: The name of the upload; None when nothing arrived.
            camera_label: The camera that took it, as the list of cameras names it.
            category: What it shows.
            modality: Its modality.

        Returns:
            None, which empties the field for uploads, and the query, or one line that says what is wrong.
        """
        content = None if upload is None else self._uploads.take(upload)
        if content is None:
            return None, "no file arrived; choose one again"
        try:
            image = read_upload(content)
        except ReidError as error:
            return None, str(error)
        return None, self._label(Query(Sample(UPLOADED), "", (image,)), camera_label, category, modality)

    def relabel_upload(self, query: Query | str, camera_label: str, category: str, modality: str) -> Query | str:
        """Return an uploaded query with its labels as they are chosen now, and any other query as it is."""
        if isinstance(query, str) or not query.uploads:
            return query
        return self._label(query, camera_label, category, modality)

    def show_answers(
        self, query: Query | str, cross_camera: bool, modality: str, scope: str, count: int
    ) -> tuple[str, str]:
        """Search for a query in every gallery.

        Args:
            query: The query, or one line that says why there is none.
            cross_camera: Leave out the query's own camera.
            modality: The modality of the answers, or ``BOTH``.
            scope: ``OWN_SITE`` or ``ALL_SITES``.
            count: How many answers to show.

        Returns:
            HTML of the query, and HTML of the rankings or of one line that says what is wrong.
        """
        if not isinstance(query, Query):
            return "", present.message_html(query or "choose a query first")
        card = ""
        try:
            card = present.query_html(crop_of_query(query))
            site = query.site if scope == OWN_SITE else ""
            options = SearchOptions(cross_camera, None if modality == BOTH else Modality(modality), site, int(count))
            rankings = [self._ranking_html(query, outcome) for outcome in answer_query(self._data, query, options)]
        except ReidError as error:
            return card, present.message_html(str(error))
        return card, "".join(rankings) + present.legend_html()

    def _ranking_html(self, query: Query, outcome: QueryOutcome) -> str:
        ranking = [
            present.RankedCrop(
                rank,
                crop_of(answer.sample, self._data.site_of(answer.sample)),
                answer.score,
                str(verdict),
            )
            for rank, (answer, verdict) in enumerate(outcome.answers, 1)
        ]
        return present.ranking_html(
            outcome.title,
            ranking,
            rows=outcome.rows,
            first_right=outcome.first_right,
            average_precision=outcome.average_precision,
            known=bool(query.sample.identity),
        )

    def _query(self, key: int) -> Query:
        crops = self._data.query_crops
        found = crops.find(key)
        if found is None:
            raise DataError("this query does not exist; choose one of the crops")
        return Query(found[1], found[0], row=key if crops.are_gallery_rows else None)

    def _label(self, query: Query, camera_label: str, category: str, modality: str) -> Query:
        site, camera = self._cameras()[camera_label]
        sample = replace(
            query.sample, camera=camera.camera, modality=Modality(modality), category=category, split=Split.QUERY
        )
        return replace(query, sample=sample, site=site)

    def _keys(self, site: str, category: str, camera: str) -> list[int]:
        """Return the indices in ``ServedData.queries`` of the queries that fit the filters and were not erased."""
        wanted = None if camera == ANY else camera
        return list(self._data.query_crops.matching(site, category, wanted).tolist())

    def _picker_html(self, keys: Sequence[int], chosen: int | None = None) -> str:
        try:
            return present.picker_html({key: crop_of_query(self._query(key)) for key in keys}, chosen)
        except ReidError as error:
            return present.message_html(str(error))

    def _camera_choices(self, name: str) -> list[tuple[str, str]]:
        site = next(site for site in self._data.sites if site.name == name)
        cameras = {sample.camera: f"{sample.camera} {sample.modality}" for sample in site.cameras if sample.camera}
        return [("all", ANY), *((words, camera) for camera, words in sorted(cameras.items()))]

    def _update_cameras(self, site: str) -> Any:
        return gr.update(choices=self._camera_choices(site), value=ANY)

    def _cameras(self) -> dict[str, tuple[str, Sample]]:
        """Return (name of the site, a sample) of every camera, by the label of the camera on the page."""
        return {
            f"{site.name} · {sample.camera or 'unknown'} · {sample.modality}": (site.name, sample)
            for site in self._data.sites
            for sample in site.cameras
        }

    def _modality_of(self, camera_label: str) -> str:
        return str(self._cameras()[camera_label][1].modality)


def _draw(keys: Sequence[int], seed: int | None = None) -> list[int]:
    """Draw at most ``CROPS_SHOWN`` of ``keys`` at random; the same ones for the same seed."""
    return random.Random(seed).sample(keys, min(CROPS_SHOWN, len(keys)))
