"""The form in which a visitor draws a box on an uploaded image, or writes its corners into four fields."""

from __future__ import annotations

from PIL import Image

from reid.app.frame_box import FIELDS, frame_name
from reid.app.page_values import PageValues, PageVisit
from reid.app.presentation import data_uri, escape
from reid.app.upload_images import WIDEST_PERSON

SHOWN = (640, 480)  # pixels of the image
WORDS = ("Left", "Top", "Right", "Bottom")


def box_form_html(values: PageValues, visit: PageVisit) -> str:
    """Return the form for the image of an uploaded query; "" where the query has none or several.

    Args:
        values: The fields of the page, with the corners that were drawn last.
        visit: The visitor's images.
    """
    names = values.words("images")
    name = frame_name(names[0]) if len(names) == 1 else ""
    image = visit.images.get(name)
    corners = PageValues({}) if values.words("uploads") else values  # those of an earlier image are gone
    return "" if image is None else _form_html(name, image, corners, is_open=names[0] != name)


def _form_html(name: str, image: Image.Image, values: PageValues, *, is_open: bool) -> str:
    limits = (image.width, image.height) * 2
    fields = "".join(
        f'<div class="reid-control"><span class="reid-label"><label for="reid-field-{field}">{words}</label></span>'
        f'<input id="reid-field-{field}" type="number" name="{field}" min="0" max="{most}" step="1" data-quiet'
        f' data-volatile value="{values.number(field, default, most)}">'
        "</div>"
        for field, words, most, default in zip(FIELDS, WORDS, limits, (0, 0, *limits[2:]), strict=True)
    )
    opened = " open" * (is_open or image.width > WIDEST_PERSON * image.height)
    return (
        f'<details class="reid-box"{opened}><summary>Search for a part of this image</summary><p class="reid-soft">Draw'
        " a box on the image, or write its corners in pixels.</p>"
        f'<div class="reid-box-image" data-box="{image.width},{image.height}"><img draggable="false"'
        f' src="{data_uri(image, SHOWN)}" alt="The uploaded image"><span class="reid-box-mark"></span></div>'
        f'<div class="reid-box-fields">{fields}</div><div class="reid-buttons"><button type="button"'
        f' class="reid-button reid-strong" data-action="box" data-frame="{escape(name)}">Search for this box</button>'
        f'<button type="button" class="reid-button" data-set="images" data-value="{escape(name)}">Whole image</button>'
        "</div></details>"
    )
