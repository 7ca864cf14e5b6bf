"""The page "Cameras": what each camera sees, and what camera BN makes of it.  Nothing on it moves."""

from __future__ import annotations

from collections import defaultdict

import gradio as gr

from reid.app import presentation as present
from reid.app.pages.crop_cards import crop_of
from reid.app.world import SiteData, World
from reid.errors import ReidError
from reid.records import Sample

EXPLANATION = """
### Every camera is a domain
The same coat is orange under one lamp, grey at dusk and white in infrared. A network averages such habits of a
camera into the statistics of its batch normalization, and then compares pictures from cameras that it has mixed up.

**Camera BN** keeps a mean and a variance *for each camera* in every normalization layer, the neck included. Each
picture is normalized by the statistics of the camera that took it, so what is left is who is in it. All other
weights are shared. **Plain BN** has one mean and variance for all. To compare the two fairly, one small network was
trained twice alike, once with each; both answer beside the shipped one, for people.

A new camera needs no labels: its statistics are measured on pictures of its own. So the cameras of a street that the
network was never trained on were met when this page was first started.
"""


def cameras_page(world: World) -> None:
    """Build the page inside a ``gr.Blocks``."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            gr.Markdown(EXPLANATION, elem_classes="reid-prose")
        with gr.Column(scale=8, min_width=320):
            for site in world.sites:
                gr.HTML(_walls(site), apply_default_css=False)


def _walls(site: SiteData) -> str:
    try:
        return "".join(
            present.camera_wall(
                f"{site.name}: the same {category} everywhere" if same else f"{site.name}: {category}",
                [crop_of(sample, site.name) for sample in samples],
            )
            for category, same, samples in examples(site)
        )
    except ReidError as error:
        return present.message(str(error))


def examples(site: SiteData) -> list[tuple[str, bool, list[Sample]]]:
    """(kind, whether all show one identity, a sample of each camera) for each kind of object at a site.

    Shown is the identity that most cameras saw; a camera that never saw it shows somebody else.
    """
    found = []
    for category in dict.fromkeys(sample.category for sample in site.samples):
        by_camera = {sample.camera: sample for sample in site.cameras if sample.category == category}
        seen: dict[str, dict[str, Sample]] = defaultdict(dict)
        for sample in site.samples:
            if sample.category == category and sample.identity:
                seen[sample.identity].setdefault(sample.camera, sample)
        most = max(seen.values(), key=len, default={})
        found.append((category, most.keys() == by_camera.keys(), list((by_camera | most).values())))
    return found
