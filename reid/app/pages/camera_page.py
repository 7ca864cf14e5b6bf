"""The page "Cameras": one crop of each camera, and why camera BN helps."""

from __future__ import annotations

from collections import defaultdict

import gradio as gr

from reid.app import presentation as present
from reid.app.first_view import FirstValues
from reid.app.pages.crop_cards import crop_of
from reid.app.served_data import ServedData
from reid.app.site_data import SiteData
from reid.errors import ReidError
from reid.records import Sample

EXPLANATION = """
### Every camera is a domain
The same coat looks orange under one lamp, grey at dusk and white in infrared light. A network with ordinary batch
normalization averages these differences into one set of statistics, and then compares images of cameras that it has
mixed up.

**Camera BN** keeps a mean and a variance *for each camera* in every normalization layer, including the neck. Each image
is normalized with the statistics of the camera that took it, so the differences between cameras are reduced and the
identity remains. All other weights are shared. **Plain BN** has one mean and one variance for all cameras. For a fair
comparison, one small network was trained twice in the same way, once with each kind of normalization. Both answer
beside the larger network, for people only.

A new camera needs no labels, because its statistics are measured on its own images. Cameras that the network was never
trained on, such as those of a second site, get their statistics when this page is started for the first time.
"""


def build_camera_page(data: ServedData) -> FirstValues:
    """Build the page, to be called inside a ``gr.Blocks``; return its images, and what makes them again."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            gr.Markdown(EXPLANATION, elem_classes="reid-prose")
        with gr.Column(scale=8, min_width=320):
            walls = [gr.HTML(_walls_html(site), apply_default_css=False) for site in data.sites]
    return walls, lambda: _current_walls(data)


def _current_walls(data: ServedData) -> list[str]:
    try:
        return [_walls_html(site) for site in data.sites]
    except ReidError as error:
        return [present.message_html(str(error))] * len(data.sites)


def _walls_html(site: SiteData) -> str:
    try:
        return "".join(
            present.camera_wall_html(
                f"{site.name}: the same {category} in every camera" if same else f"{site.name}: {category}",
                [crop_of(sample, site.name) for sample in samples],
            )
            for category, same, samples in example_crops(site)
        )
    except ReidError as error:
        return present.message_html(str(error))


def example_crops(site: SiteData) -> list[tuple[str, bool, list[Sample]]]:
    """Choose an example crop of each camera, for each category at a site.

    The identity in the largest number of cameras is chosen; a camera without it shows another identity.

    Args:
        site: The site.

    Returns:
        For each category: the category, whether all crops show one identity, and one sample for each camera.
    """
    examples = []
    for category in dict.fromkeys(sample.category for sample in site.samples):
        by_camera = {sample.camera: sample for sample in site.cameras if sample.category == category}
        by_identity: dict[str, dict[str, Sample]] = defaultdict(dict)
        for sample in site.samples:
            if sample.category == category and sample.identity:
                by_identity[sample.identity].setdefault(sample.camera, sample)
        most = max(by_identity.values(), key=len, default={})
        examples.append((category, most.keys() == by_camera.keys(), list((by_camera | most).values())))
    return examples
