"""Turn light into an image as the optics, the sensor and the electronics of a camera do.

The gains of a camera change all its images in the same, invertible way.  Tone curve, blur, noise, clipping and JPEG are
not invertible.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from reid.data.street.geometry import FloatArray
from reid.data.street.materials import GAMMA, LUMINANCE
from reid.data.street.random_draws import between, clipped
from reid.data.street.render import Light
from reid.data.street.street_cameras import Camera


@dataclass(frozen=True)
class Moment:
    """What changes from crop to crop.

    Args:
        hour: Hour of the day.
        gain: Gain of the exposure control.
        smear: Length of the motion blur in pixels; 0 for none.
        centre: Position of the optical axis, in crops from the middle of the crop.
        sharp: Factor for the blur.
    """

    hour: float
    gain: float
    smear: float
    centre: tuple[float, float]
    sharp: float


def draw_moment(rng: np.random.Generator, hour: float) -> Moment:
    """Draw exposure, motion and position in the camera's image for one crop."""
    gain = float(np.exp(clipped(rng, 0.0, 0.13)))
    smear = between(rng, 1.5, 5.0) if rng.random() < 0.16 else 0.0
    centre = clipped(rng, 0.0, 0.5), clipped(rng, 0.0, 0.35)
    sharp = between(rng, 0.8, 1.2) if rng.random() < 0.85 else between(rng, 1.6, 2.6)
    return Moment(hour, gain, smear, centre, sharp)


def compute_light(camera: Camera, hour: float, cloud: float) -> Light:
    """Compute the light at an hour of the day; ``cloud`` (0..1) weakens the sun."""
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


def _blur(image: FloatArray, sigma: float) -> FloatArray:
    """Blur an image (C, H, W) with a Gaussian of ``sigma`` pixels; edges are repeated."""
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


def _smear(image: FloatArray, length: float) -> FloatArray:
    """Average an image (C, H, W) along the rows over about ``length`` pixels."""
    steps = max(2, round(length))
    width = image.shape[2]
    wide = np.pad(image, ((0, 0), (0, 0), (steps // 2, steps - 1 - steps // 2)), mode="edge")
    total = sum(wide[:, :, k : k + width] for k in range(steps))
    return np.asarray(total * np.float32(1 / steps), np.float32)


def _falloff(shape: tuple[int, int], camera: Camera, moment: Moment) -> FloatArray:
    """Compute the share of light (H, W) that the lens lets through, or in infrared the halo of the lamp."""
    height, width = shape
    y = (np.arange(height, dtype=np.float32) / height - 0.5 - np.float32(moment.centre[1]))[:, None]
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None] * np.float32(0.5) - np.float32(moment.centre[0])
    square = x * x + y * y
    if camera.infrared:
        return np.asarray(1.12 * np.exp(-square * np.float32(1.6 * camera.vignette)) + np.float32(0.05), np.float32)
    return np.asarray(1 / (1 + np.float32(camera.vignette) * square) ** 2, np.float32)


def _apply_tone_curve(image: FloatArray, camera: Camera) -> FloatArray:
    """Convert linear light (C, H, W) to the display scale by knee, gamma, contrast and black level."""
    image = np.where(image > 0.8, np.float32(0.8) + (1 - np.exp(-(image - 0.8) * 2.5)) * np.float32(0.2), image)
    image = np.clip(image, 0, 1) ** np.float32(camera.gamma / GAMMA)
    image = image + np.float32(camera.contrast) * (image - 0.5) * (image * (1 - image)) * 4
    shown: FloatArray = np.float32(camera.black) + image * np.float32(1 - camera.black)
    return shown


def develop(rng: np.random.Generator, light: FloatArray, camera: Camera, moment: Moment) -> FloatArray:
    """Convert light (C, H, W) to an image (C, H, W) on the display scale 0..1."""
    image = light * (_falloff(light.shape[1:], camera, moment) * np.float32(camera.exposure * moment.gain))
    scale = light.shape[2] / 64
    sigma = camera.blur * moment.sharp * max(scale, 0.6)
    if camera.infrared:
        image = image + np.float32(0.12) * _blur(np.minimum(image, 1.0), 3.0 * max(scale, 0.5))
    else:
        image = image * np.array(camera.cast, np.float32)[:, None, None]
    if moment.smear * scale > 1.2:
        image = _smear(image, moment.smear * scale)
    image = _apply_tone_curve(_blur(image, sigma), camera)
    if not camera.infrared:
        grey = sum(np.float32(w) * image[c] for c, w in enumerate(LUMINANCE))
        image = grey + np.float32(camera.saturation) * (image - grey)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + np.float32(camera.noise) * (np.float32(1.3) - image) * noise
    shown: FloatArray = np.clip(image, 0, 1)
    return shown


def encode(image: FloatArray, size: tuple[int, int], quality: int) -> bytes:
    """Encode an image (1 or 3, H, W) in 0..1, enlarged to ``size`` (height, width), as JPEG with three channels."""
    pixels = np.round(np.repeat(image, 3 // len(image), axis=0).transpose(1, 2, 0) * 255).astype(np.uint8)
    encoded = Image.fromarray(pixels)
    if pixels.shape[:2] != size:
        encoded = encoded.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    encoded.save(stream, format="JPEG", quality=quality)
    return stream.getvalue()
