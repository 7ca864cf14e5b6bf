"""From light to a picture: what optics, sensor and electronics of a camera do.

The gains of a camera are one invertible change of all its pictures; tone curve, blur, noise,
clipping and JPEG are not invertible.  Photometry knows nothing of what is in the picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from reid.data.street.geometry import FloatArray, Vec
from reid.data.street.materials import GAMMA, LUMINANCE
from reid.data.street.random_draws import between, clipped
from reid.data.street.render import Light
from reid.data.street.street_cameras import Camera


@dataclass(frozen=True)
class Moment:
    """What changes from crop to crop: ``hour`` of the day, ``gain`` of the exposure control, ``smear`` of
    the motion in pixels (0 for none), ``centre`` where the optical axis lies, in crops from the middle,
    ``sharp`` a factor on the blur."""

    hour: float
    gain: float
    smear: float
    centre: tuple[float, float]
    sharp: float


def draw_moment(rng: np.random.Generator, hour: float) -> Moment:
    """Exposure, motion and place in the frame of one crop."""
    gain = float(np.exp(clipped(rng, 0.0, 0.13)))
    smear = between(rng, 1.5, 5.0) if rng.random() < 0.16 else 0.0
    centre = clipped(rng, 0.0, 0.5), clipped(rng, 0.0, 0.35)
    sharp = between(rng, 0.8, 1.2) if rng.random() < 0.85 else between(rng, 1.6, 2.6)
    return Moment(hour, gain, smear, centre, sharp)


def light_at(camera: Camera, hour: float, cloud: float) -> Light:
    """The light at an hour of the day; ``cloud`` 0..1 takes sunshine and gives to the sky."""
    if camera.infrared:
        return Light(lamp=1.15)
    day = float(np.clip(np.cos((hour - 13.0) / 7.5 * np.pi / 2), 0.0, 1.0))  # 1 at 13:00, 0 before 5:30
    warm = 1.0 - day
    azimuth = np.radians(camera.sun[0] + 9.0 * (hour - 13.0))
    height = np.radians(max(12.0, camera.sun[1] * (0.45 + 0.55 * day)))
    direction = (
        float(np.cos(height) * np.sin(azimuth)),
        float(np.cos(height) * np.cos(azimuth)),
        float(np.sin(height)),
    )
    strength = camera.sunshine * (0.25 + 0.75 * day) * (1.0 - 0.75 * cloud)
    dim = 0.7 + 0.3 * day
    sun = (strength * (1.0 + 0.22 * warm), strength, strength * (1.0 - 0.35 * warm))
    sky = (dim * (0.74 + 0.1 * warm), dim * 0.78, dim * (0.84 - 0.16 * warm))
    bounce = 0.32 * dim + 0.12 * strength
    return Light(direction, sun, sky, (bounce * 1.04, bounce, bounce * 0.9))


def _blurred(image: FloatArray, sigma: float) -> FloatArray:
    """(C, H, W) blurred by a Gaussian of ``sigma`` pixels, edges repeated."""
    reach = max(1, int(np.ceil(2.2 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        wide = np.pad(image, pad, mode="edge")
        count = image.shape[axis]
        shifted = (w * np.take(wide, range(k, k + count), axis=axis) for k, w in enumerate(weights))
        image = np.asarray(sum(shifted), np.float32)
    return image


def _smeared(image: FloatArray, length: float) -> FloatArray:
    """(C, H, W) averaged along the rows over about ``length`` pixels."""
    steps = max(2, round(length))
    width = image.shape[2]
    wide = np.pad(image, ((0, 0), (0, 0), (steps // 2, steps - 1 - steps // 2)), mode="edge")
    total = sum(wide[:, :, k : k + width] for k in range(steps))
    return np.asarray(total * np.float32(1 / steps), np.float32)


def _falloff(shape: tuple[int, int], camera: Camera, moment: Moment) -> FloatArray:
    """(H, W): light lost towards the edge of the frame; in infrared the lamp's halo."""
    height, width = shape
    y = (np.arange(height, dtype=np.float32) / height - 0.5 - np.float32(moment.centre[1]))[:, None]
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None] * np.float32(0.5) - np.float32(moment.centre[0])
    square = x * x + y * y
    if camera.infrared:
        return np.asarray(1.12 * np.exp(-square * np.float32(1.6 * camera.vignette)) + np.float32(0.05), np.float32)
    return np.asarray(1 / (1 + np.float32(camera.vignette) * square) ** 2, np.float32)


def _tone(image: FloatArray, camera: Camera) -> FloatArray:
    """Linear light (C, H, W) to the display scale: knee, gamma, contrast, black level."""
    image = np.where(image > 0.8, np.float32(0.8) + (1 - np.exp(-(image - 0.8) * 2.5)) * np.float32(0.2), image)
    image = np.clip(image, 0, 1) ** np.float32(camera.gamma / GAMMA)
    image = image + np.float32(camera.contrast) * (image - 0.5) * (image * (1 - image)) * 4
    shown: FloatArray = np.float32(camera.black) + image * np.float32(1 - camera.black)
    return shown


def develop(rng: np.random.Generator, light: FloatArray, camera: Camera, moment: Moment) -> FloatArray:
    """Light (C, H, W) to a picture (C, H, W) on the display scale 0..1."""
    image = light * (_falloff(light.shape[1:], camera, moment) * np.float32(camera.exposure * moment.gain))
    scale = light.shape[2] / 64
    sigma = camera.blur * moment.sharp * max(scale, 0.6)
    if camera.infrared:
        image = image + np.float32(0.12) * _blurred(np.minimum(image, 1.0), 3.0 * max(scale, 0.5))
    else:
        image = image * np.array(camera.cast, np.float32)[:, None, None]
    if moment.smear * scale > 1.2:
        image = _smeared(image, moment.smear * scale)
    image = _tone(_blurred(image, sigma), camera)
    if not camera.infrared:
        grey = sum(np.float32(w) * image[c] for c, w in enumerate(LUMINANCE))
        image = grey + np.float32(camera.saturation) * (image - grey)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + np.float32(camera.noise) * (np.float32(1.3) - image) * noise
    shown: FloatArray = np.clip(image, 0, 1)
    return shown


def encode(image: FloatArray, size: tuple[int, int], quality: int) -> bytes:
    """JPEG bytes of a picture (1 or 3, H, W) in 0..1, enlarged to ``size`` (height, width); always 3 channels."""
    pixels = np.round(np.repeat(image, 3 // len(image), axis=0).transpose(1, 2, 0) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if pixels.shape[:2] != size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def unit(vector: Vec) -> Vec:
    """The vector at length 1."""
    length = float(np.sqrt(sum(value * value for value in vector)))
    return vector[0] / length, vector[1] / length, vector[2] / length
