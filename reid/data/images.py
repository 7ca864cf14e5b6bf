"""Read image files: complete, upright and in RGB, or as an error of one line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from reid.errors import DataError

# The formats that may be opened. Pillow knows more and starts another program for some (Ghostscript, for PostScript).
# JPEG includes MPO, the JPEG of many telephones.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
# What Pillow's decoders raise on damaged files, beside UnidentifiedImageError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """Read an image file.

    The image is turned as its EXIF orientation asks.  16-bit grey images, as thermal cameras deliver them, are scaled
    from 0..65535 to 0..255.  Transparency is dropped.

    Args:
        path: The file, in one of the formats of ``FORMATS``, whatever its name ends in.

    Returns:
        The decoded image in mode RGB.

    Raises:
        DataError: The file is missing, empty, damaged, incomplete, too large, or not an image.
    """

    def open_file() -> BinaryIO:
        return BytesIO() if path.stat().st_size == 0 else path.open("rb")  # a pipe has no size and is not opened

    return _decode(open_file, path)


def decode_image(content: bytes, name: Path) -> Image.Image:
    """Decode the content of an image file, as :func:`read_image` does.

    Args:
        content: All bytes of the file.
        name: What messages call the file.

    Returns:
        The decoded image in mode RGB.

    Raises:
        DataError: The content is empty, damaged, incomplete, too large, or not an image.
    """
    return _decode(lambda: BytesIO(content), name)


def _decode(open_file: Callable[[], BinaryIO], path: Path) -> Image.Image:
    # Pillow gets an open file, because given a path some of its decoders open or map the file again by themselves.
    try:
        with open_file() as file:
            if not file.read(1):
                raise DataError(f"{path}: the image is an empty file; copy or download it again")
            file.seek(0)
            image: Image.Image = Image.open(file, formats=FORMATS)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except IsADirectoryError:
        raise DataError(f"{path}: expected an image, got a folder") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read the image") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image in a known format (JPEG, PNG, BMP, WebP, TIFF, GIF)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: the image is far too large for a crop; cut out the person or vehicle") from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: the image is damaged or cut off ({reason}); copy or download it again") from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # Pillow's own conversion of 16-bit grey clips at 255
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: pixel values go beyond 16 bits; convert the image to 8 or 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have no agreed range; convert the image to 8 or 16 bits")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette with transparency warns when it goes to RGB directly
    return image.convert("RGB")
