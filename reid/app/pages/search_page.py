"""The page "Search": choose or upload a query, set the switches, compare the answers of both norms.

Knows the world, asks it through ``ask`` and shows what comes back; a mistake becomes one line on the page.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from reid.app import presentation as present
from reid.app.pages.crop_cards import crop_of, crop_of_query
from reid.app.query import Query, QueryOutcome, Switches, ask, read_upload
from reid.app.world import World
from reid.errors import ReidError
from reid.records import Modality, Sample, Split
from reid.retrieval.search import UPLOADED

SHOWN = 12  # crops to choose from at a time
ANSWERS = 10
FIRST = 0  # seed of the crops that are offered first
ANY = "all"
BOTH = "both"
OWN_SITE, ALL_SITES = "the query's site", "all sites"
CHOOSE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-key]');
  if (!button) return;
  element.querySelectorAll('[aria-pressed="true"]').forEach((other) => other.setAttribute('aria-pressed', 'false'));
  button.setAttribute('aria-pressed', 'true');
  trigger('select', {key: Number(button.dataset.key)});
});
"""


class SearchPage:
    """The components of the page and what they do; made inside a ``gr.Blocks``."""

    def __init__(self, world: World):
        self._world = world
        keys = _sample(self._keys(world.sites[0].name, world.kinds[0], ANY), FIRST)
        queries = [self._query(key) for key in keys]
        first = next((query for query in queries if query.sample.modality is Modality.VISIBLE), queries[0])
        self.query = gr.State(first, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=3, min_width=290, elem_classes="reid-side"), gr.Tabs():
                with gr.Tab("From the data set", id="choose"):
                    self._choose(keys, keys[queries.index(first)])
                with gr.Tab("Upload", id="upload"):
                    self._upload()
            with gr.Column(scale=9, min_width=320):
                self._answers(first)
        self._connect()

    def _choose(self, keys: Sequence[int], chosen: int) -> None:
        sites, kinds = [site.name for site in self._world.sites], list(self._world.kinds)
        fixed: dict[str, Any] = {"filterable": False, "min_width": 80}
        with gr.Row(elem_classes="reid-filters"):
            self.site = gr.Dropdown(sites, value=sites[0], label="Site", elem_id="site", **fixed)
            self.kind = gr.Dropdown(kinds, value=kinds[0], label="Kind", elem_id="kind", **fixed)
            self.camera = gr.Dropdown(
                self._camera_choices(sites[0]), value=ANY, label="Camera", elem_id="camera", **fixed
            )
        self.picker = gr.HTML(self._picker(keys, chosen), js_on_load=CHOOSE, elem_id="picker", apply_default_css=False)
        with gr.Row():
            self.others = gr.Button("Show others", size="sm", min_width=90, elem_id="others")
            self.random = gr.Button("Random query", size="sm", min_width=90, variant="primary", elem_id="random")

    def _upload(self) -> None:
        cameras, kinds = self._cameras(), list(self._world.kinds)
        first = next(iter(cameras))
        light = str(cameras[first][1].modality)
        self.file = gr.File(label="A crop of one person or vehicle", height=132, elem_id="upload")
        self.taken_by = gr.Dropdown(
            list(cameras), value=first, label="Camera it was taken by", elem_id="upload-camera", filterable=False
        )
        self.light = gr.Radio([*map(str, Modality)], value=light, label="Modality", elem_id="upload-modality")
        self.shows = gr.Radio(kinds, value=kinds[0], label="Kind", elem_id="upload-kind")
        gr.HTML(present.hint("10 MB at most. The file is deleted once it is read."))

    def _answers(self, first: Query) -> None:
        card, answers = self.answer(first, True, BOTH, OWN_SITE, ANSWERS)
        with gr.Row(elem_classes="reid-top"):
            with gr.Column(scale=4, min_width=250):
                self.card = gr.HTML(card, elem_id="query", apply_default_css=False)
            with gr.Column(scale=9, min_width=300):
                self._switches()
        self.answers = gr.HTML(answers, elem_id="answers", apply_default_css=False)

    def _switches(self) -> None:
        with gr.Row(elem_classes="reid-switches"):
            self.cross_camera = gr.Checkbox(
                True,
                label="Other cameras only",
                info="leave out the query's own camera",
                elem_id="cross-camera",
                min_width=190,
            )
            self.light_of_answers = gr.Radio(
                [BOTH, *map(str, Modality)], value=BOTH, label="Answers in", elem_id="answers-modality", min_width=260
            )
        with gr.Row(elem_classes="reid-switches"):
            self.count = gr.Slider(
                5, 50, value=ANSWERS, step=5, label="Number of answers", elem_id="count", min_width=190
            )
            self.scope = gr.Radio(
                [OWN_SITE, ALL_SITES], value=OWN_SITE, label="Search in", elem_id="scope", min_width=260
            )

    def _connect(self) -> None:
        filters: list[Any] = [self.site, self.kind, self.camera]
        switches = [self.cross_camera, self.light_of_answers, self.scope, self.count]
        told: list[Any] = [self.taken_by, self.shows, self.light]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asking: dict[str, Any] = {
            "fn": self.answer,
            "inputs": [self.query, *switches],
            "outputs": [self.card, self.answers],
            "api_visibility": "private",
            "show_progress": "minimal",
            "concurrency_id": "network",
            "concurrency_limit": 1,
        }
        self.site.change(self._offer_cameras, self.site, self.camera, **quiet)
        gr.on([f.change for f in filters], self.offer, filters, self.picker, trigger_mode="always_last", **quiet)
        self.others.click(self.offer_others, filters, self.picker, **quiet)
        self.random.click(self.draw, filters, [self.picker, self.query], **quiet).then(**asking)
        self.picker.select(self.choose, None, self.query, **quiet).then(**asking)
        self.file.upload(self.take, [self.file, *told], [self.file, self.query], **quiet).then(**asking)
        self.taken_by.change(self._light_of, self.taken_by, self.light, **quiet)
        gr.on([c.change for c in told], self.retell, [self.query, *told], self.query, **quiet).then(**asking)
        changes = [self.cross_camera.change, self.light_of_answers.change, self.scope.change, self.count.release]
        gr.on(changes, trigger_mode="always_last", **asking)

    def offer(self, site: str, kind: str, camera: str) -> str:
        """Crops to choose from, the same ones each time."""
        return self._picker(_sample(self._keys(site, kind, camera), FIRST))

    def offer_others(self, site: str, kind: str, camera: str) -> str:
        """Other crops that fit the filters, by chance."""
        return self._picker(_sample(self._keys(site, kind, camera)))

    def draw(self, site: str, kind: str, camera: str) -> tuple[str, Query | str]:
        """A random query among those that fit the filters, and crops to choose from that include it."""
        keys = _sample(self._keys(site, kind, camera))
        if not keys:
            return self._picker(keys), "no query fits this selection; choose another site, kind or camera"
        return self._picker(keys, keys[0]), self._query(keys[0])

    def choose(self, event: gr.EventData) -> Query | str:
        """The query whose button was pressed; the key comes from outside, so it is checked."""
        key = event._data.get("key") if isinstance(event._data, dict) else None
        if not isinstance(key, int) or not 0 <= key < len(self._world.queries):
            return "this query does not exist; choose one of the crops"
        return self._query(key)

    def take(self, file: str | None, taken_by: str, kind: str, light: str) -> tuple[None, Query | str]:
        """An uploaded crop as the query; the file is deleted as soon as it is read."""
        if file is None:
            return None, "no picture arrived; choose one again"
        path = Path(file)
        try:
            picture = read_upload(path)
        except ReidError as error:
            return None, str(error)
        finally:
            path.unlink(missing_ok=True)
        return None, self._told(Query(Sample(UPLOADED), "", picture), taken_by, kind, light)

    def retell(self, query: Query | str, taken_by: str, kind: str, light: str) -> Query | str:
        """An uploaded query with what is now said of it; any other query as it is."""
        if isinstance(query, str) or query.picture is None:
            return query
        return self._told(query, taken_by, kind, light)

    def answer(self, query: Query | str, cross: bool, light: str, scope: str, count: int) -> tuple[str, str]:
        """HTML of the query and of the rankings, or one line that says what is wrong."""
        if not isinstance(query, Query):
            return "", present.message(query or "choose a query first")
        card = ""
        try:
            card = present.query_card(crop_of_query(query))
            site = query.site if scope == OWN_SITE else ""
            switches = Switches(cross, None if light == BOTH else Modality(light), site, int(count))
            rankings = [self._ranking(query, outcome) for outcome in ask(self._world, query, switches)]
        except ReidError as error:
            return card, present.message(str(error))
        return card, "".join(rankings) + present.legend()

    def _ranking(self, query: Query, outcome: QueryOutcome) -> str:
        places = [
            present.Place(
                rank,
                crop_of(answer.sample, self._world.site_of[answer.sample.path]),
                answer.score,
                str(verdict),
            )
            for rank, (answer, verdict) in enumerate(outcome.answers, 1)
        ]
        return present.ranked(
            outcome.title,
            places,
            rows=outcome.rows,
            first_right=outcome.first_right,
            average_precision=outcome.average_precision,
            known=bool(query.sample.identity),
        )

    def _query(self, key: int) -> Query:
        site, sample = self._world.queries[key]
        return Query(sample, site.name)

    def _told(self, query: Query, taken_by: str, kind: str, light: str) -> Query:
        site, camera = self._cameras()[taken_by]
        sample = replace(query.sample, camera=camera.camera, modality=Modality(light), category=kind, split=Split.QUERY)
        return replace(query, sample=sample, site=site)

    def _keys(self, site: str, kind: str, camera: str) -> list[int]:
        """Positions in ``world.queries`` of those that fit the filters."""
        return [
            key
            for key, (home, sample) in enumerate(self._world.queries)
            if home.name == site and sample.category == kind and camera in (ANY, sample.camera)
        ]

    def _picker(self, keys: Sequence[int], chosen: int | None = None) -> str:
        try:
            return present.picker({key: crop_of_query(self._query(key)) for key in keys}, chosen)
        except ReidError as error:
            return present.message(str(error))

    def _camera_choices(self, name: str) -> list[tuple[str, str]]:
        site = next(site for site in self._world.sites if site.name == name)
        cameras = {sample.camera: f"{sample.camera} {sample.modality}" for sample in site.cameras if sample.camera}
        return [("all", ANY), *((words, camera) for camera, words in sorted(cameras.items()))]

    def _offer_cameras(self, site: str) -> Any:
        return gr.update(choices=self._camera_choices(site), value=ANY)

    def _cameras(self) -> dict[str, tuple[str, Sample]]:
        """(site, a sample) of every camera, by what it is called on the page."""
        return {
            f"{site.name} · {sample.camera or 'unknown'} · {sample.modality}": (site.name, sample)
            for site in self._world.sites
            for sample in site.cameras
        }

    def _light_of(self, taken_by: str) -> str:
        return str(self._cameras()[taken_by][1].modality)


def _sample(keys: Sequence[int], seed: int | None = None) -> list[int]:
    """At most ``SHOWN`` of ``keys``, by chance; the same ones for a seed."""
    return random.Random(seed).sample(keys, min(SHOWN, len(keys)))
