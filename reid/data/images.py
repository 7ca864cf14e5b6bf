"""Read image files: complete, upright and in RGB, or as an error of one line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from reid.errors import DataError

# What Pillow's decoders raise on damaged files, beside UnidentifiedImageError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """Read an image file.

    The image is turned as its EXIF orientation asks.  16-bit grey images, as thermal cameras deliver them, are scaled
    from 0..65535 to 0..255.  Transparency is dropped.

    Args:
        path: The file: JPEG, PNG, BMP, WebP, TIFF, or what else Pillow reads.

    Returns:
        The decoded image in mode RGB.

    Raises:
        DataError: The file is missing, empty, damaged, incomplete, too large, or not an image.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the image is an empty file; copy or download it again")
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except IsADirectoryError:
        raise DataError(f"{path}: expected an image, got a folder") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read the image") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image in a known format (JPEG, PNG, BMP, WebP, ...)") from None
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
