"""Short videos of rendered people who walk on known paths, for tests of ``reid ingest``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reid.data.street.crop_rendering import frame_figure, person_figure
from reid.data.street.geometry import CameraView
from reid.data.street.people import draw_person, draw_pose, person_shapes
from reid.data.street.photometry import compute_light
from reid.data.street.random_draws import generator
from reid.data.street.render import Rendered, render
from reid.data.street.scenery import render_background
from reid.data.street.street_cameras import SITES
from reid.data.video.frames import load_cv2

Pixels = npt.NDArray[np.uint8]

SIZE = (240, 320)  # height and width of a video
RATE = 10.0  # frames a second
POSES = 3
TALL = 128  # height in pixels of the image of a person, who fills most of it
CAMERA = SITES["street-a"][0]


@dataclass(frozen=True)
class Walk:
    """Person ``index``, whose image has its left upper corner at ``start`` and moves by ``step`` pixels a frame."""

    index: int
    start: tuple[float, float]
    step: tuple[float, float]
    frames: range


TWO = (
    Walk(0, (10.0, 60.0), (4.0, 0.0), range(40)),
    Walk(1, (230.0, 90.0), (-4.0, 0.0), range(5, 35)),
)


@cache
def _drawn(index: int, pose: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], CameraView]:
    """Render a person in a pose; return light (3, TALL, TALL / 2), cover (TALL, TALL / 2) and the view."""
    person = draw_person(0, "street-a", "test", index)
    position = (0.0, 9.0, 0.0)
    figure = person_figure(
        person, person_shapes(person, draw_pose(generator(index, "pose", pose), person.body)), position, 0.3
    )
    view = frame_figure(figure, CAMERA, 0.5, (0.0, 0.0, 1.1, 1.0))
    drawn: Rendered = render(view, [figure], compute_light(CAMERA, 12.0, 0.2), (TALL, TALL // 2))
    return drawn.light, drawn.cover, view


@cache
def _ground() -> npt.NDArray[np.float32]:
    """Render the street with a wall behind it; return linear light (3, H, W)."""
    view = _drawn(0, 0)[2]
    wide = CameraView(view.origin, view.right, view.up, view.forward, (-0.34, 0.34, -0.3, 0.21))
    return np.asarray(render_background(wide, SIZE, CAMERA.ground, compute_light(CAMERA, 12.0, 0.2), []), np.float32)


def box(walk: Walk, number: int) -> tuple[float, float, float, float] | None:
    """Return left, top, right, bottom of the pixels that show the person in a frame; None where it is not there."""
    if number not in walk.frames:
        return None
    x, y = _corner(walk, number)
    rows, columns = np.nonzero(_drawn(walk.index, _pose(number))[1] > 0.5)
    return x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1


def draw_frame(walks: Sequence[Walk], number: int) -> Pixels:
    """Draw frame ``number`` (H, W, 3) uint8 RGB; people of later walks hide those of earlier ones."""
    scene = _ground().copy()
    for walk in walks:
        if number in walk.frames:
            x, y = _corner(walk, number)
            light, cover, _ = _drawn(walk.index, _pose(number))
            left, top = max(x, 0), max(y, 0)
            part = (slice(top - y, min(TALL, SIZE[0] - y)), slice(left - x, min(TALL // 2, SIZE[1] - x)))
            here = (slice(None), slice(top, y + part[0].stop), slice(left, x + part[1].stop))
            scene[here] = scene[here] * (1 - cover[part]) + light[:, part[0], part[1]]
    shown = np.clip(scene, 0, 1) ** (1 / 2.2)
    return np.ascontiguousarray(np.round(255 * shown).astype(np.uint8).transpose(1, 2, 0))


def write_video(path: Path, walks: Sequence[Walk] = TWO, frames: int = 40) -> Path:
    """Write a video, Motion JPEG for .avi and MPEG-4 otherwise, and return its path."""
    cv2 = load_cv2()
    path.parent.mkdir(parents=True, exist_ok=True)
    code = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), RATE, (SIZE[1], SIZE[0]))
    for number in range(frames):
        writer.write(draw_frame(walks, number)[:, :, ::-1])
    writer.release()
    return path


def _pose(number: int) -> int:
    return number // 2 % POSES


def _corner(walk: Walk, number: int) -> tuple[int, int]:
    steps = number - walk.frames.start
    return round(walk.start[0] + walk.step[0] * steps), round(walk.start[1] + walk.step[1] * steps)
