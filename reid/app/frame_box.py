"""A part of an uploaded image that a visitor cuts out by two corners, so that it can be searched for."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from reid.app.page_values import PageValues, PageVisit
from reid.app.query_choice import GONE_UPLOAD
from reid.errors import DataError

FIELDS = ("box_left", "box_top", "box_right", "box_bottom")
BOXED = "box"  # the end of the name of what was cut out
SMALLEST = 8  # pixels of a side
UNSET = 2**31  # stands for a field that is empty or holds no whole number


@dataclass(frozen=True)
class FrameBox:
    """A box in an image, in pixels; the right column and the bottom row do not belong to it."""

    left: int
    top: int
    right: int
    bottom: int


def frame_name(name: str) -> str:
    """Return the name of the uploaded image that an image was cut out of; that of an uploaded one is its own.

    Example:
        >>> frame_name("upload-0a1b-box"), frame_name("upload-0a1b-2"), frame_name("upload-0a1b")
        ('upload-0a1b', 'upload-0a1b', 'upload-0a1b')
    """
    return "-".join(name.split("-")[:2])


def read_box(values: PageValues, image: Image.Image) -> FrameBox:
    """Return the box between two corners, which may be any two that lie opposite.

    Args:
        values: The fields ``FIELDS`` in pixels of the image; what lies beyond the image is left out.
        image: The image.

    Raises:
        DataError: A field is empty, or the box has nearly no pixels in the image.

    Example:
        >>> corners = dict(zip(FIELDS, ("60", "90", "10", "500")))
        >>> read_box(PageValues(corners), Image.new("RGB", (100, 200)))
        FrameBox(left=10, top=90, right=60, bottom=200)
    """
    numbers = [values.number(name, UNSET) for name in FIELDS]
    if UNSET in numbers:
        raise DataError("a box needs four whole numbers of pixels: left, top, right and bottom")
    (left, right), (top, bottom) = sorted(numbers[::2]), sorted(numbers[1::2])
    box = FrameBox(left, top, min(right, image.width), min(bottom, image.height))
    if min(box.right - box.left, box.bottom - box.top) < SMALLEST:
        size = f"{image.width} x {image.height}"
        raise DataError(f"this box has less than {SMALLEST} pixels a side in the image of {size}; draw a larger one")
    return box


def cut_box(values: PageValues, visit: PageVisit) -> str:
    """Cut the box out of the image that the field ``frame`` names, and return the name of what was cut out.

    Raises:
        DataError: The image is gone, or the box is wrong.
    """
    frame = values.text("frame")
    image = visit.images.get(frame)
    if image is None:
        raise DataError(GONE_UPLOAD)
    box = read_box(values, image)
    visit.keep(frame, image)  # it stays as long as its parts do
    visit.keep(f"{frame}-{BOXED}", image.crop((box.left, box.top, box.right, box.bottom)))
    return f"{frame}-{BOXED}"
