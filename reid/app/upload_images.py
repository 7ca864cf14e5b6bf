"""Read uploaded images, guess their light, and say when one does not look like a crop."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from reid.data.grey_images import GREY
from reid.data.images import IMAGE_FORMATS, decode_image
from reid.errors import DataError
from reid.records import Modality
from reid.retrieval.search import UPLOADED

MAX_PIXELS = 25_000_000  # a larger upload would only be shrunk to the size of a thumbnail
MAX_DEEP_PIXELS = 5_000_000  # of a 16-bit image, which takes more memory for each pixel while it is decoded
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
LONGEST_SIDE = 1024  # pixels of an upload, which stays in memory as long as the visitor stays
WIDEST_PERSON = 1.0  # width / height of a crop of a standing person, at most
SMALLEST_SIDE = 24  # pixels; there is little to recognize in a smaller crop


def guess_modality(image: Image.Image) -> Modality:
    """Guess the light that an image was taken in: an image without colour is taken for infrared.

    Example:
        >>> str(guess_modality(Image.new("RGB", (8, 16), "red"))), str(guess_modality(Image.new("L", (8, 16))))
        ('visible', 'infrared')
    """
    small = image.convert("RGB")
    small.thumbnail((128, 128))
    return Modality.INFRARED if float(np.ptp(np.asarray(small, np.int16), axis=2).mean()) <= GREY else Modality.VISIBLE


def doubts_about(image: Image.Image, category: str) -> list[str]:
    """Return why an image does not look like a crop of one person or object, a sentence each; often there is none."""
    doubts = []
    if category == "person" and image.width > WIDEST_PERSON * image.height:
        doubts.append(
            "This looks like a whole frame and not like a crop: it is wider than a standing person. Cut the person out"
            " for better answers."
        )
    if min(image.size) < SMALLEST_SIDE:
        doubts.append(f"This image has only {image.width} x {image.height} pixels, so its answers are little sure.")
    return doubts


def read_upload(content: bytes) -> Image.Image:
    """Read an uploaded image, turned upright and not larger than needed.

    Args:
        content: The content of the uploaded file.

    Returns:
        An RGB image; its longer side has at most ``LONGEST_SIDE`` pixels.

    Raises:
        DataError: The file is no image, is damaged or is far too large. The message names no file of this machine.
    """
    try:
        with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as header:
            width, height = header.size
            limit = MAX_PIXELS if header.mode in EIGHT_BIT_MODES else MAX_DEEP_PIXELS
    except UnidentifiedImageError:
        raise DataError("this file is not an image in a known format; send a JPEG, PNG, BMP or WebP crop") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError("this image is damaged or far too large; send a crop of one person or vehicle") from error
    if width * height > limit:
        raise DataError(f"this image has {width} x {height} pixels; send a crop of one person or vehicle")
    try:
        image = decode_image(content, UPLOADED)
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{UPLOADED}: ")) from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image
