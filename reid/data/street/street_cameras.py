"""The cameras of each street: their positions and the properties of their images."""

from __future__ import annotations

from dataclasses import dataclass

from reid.data.street.geometry import Vec


@dataclass(frozen=True)
class Ground:
    """The ground and the wall behind it.

    Args:
        floor: Texture of the ground.
        floor_colour: sRGB, 0..255.
        wall: Texture of the wall.
        wall_colour: sRGB, 0..255.
        wall_at: Distance of the wall from the camera, in metres.
        wall_yaw: Turn of the wall, in degrees.
    """

    floor: str
    floor_colour: Vec
    wall: str
    wall_colour: Vec
    wall_at: float
    wall_yaw: float = 0.0


@dataclass(frozen=True)
class Camera:
    """One camera.  Lengths are metres, angles degrees.

    Args:
        name: The name.
        height: Height above the ground.
        distance: Least and greatest distance of people.
        heading: Where most people walk: 0 away from the camera, 90 to the left, 180 towards it.
        roll: Turn about the optical axis.
        sun: Azimuth and height of the sun at 13:00.
        sunshine: Strength of the sun.
        cast: Gains of R, G and B.
        exposure: Factor for all light.
        gamma: Gamma of the tone curve; 1 is usual.
        saturation: Factor for the saturation.
        contrast: Bend of the tone curve.
        black: Level of the darkest tone on the display scale 0..1.
        blur: Sigma of a Gaussian, in pixels of a crop that is 64 pixels wide.
        noise: Standard deviation on the display scale.
        vignette: How much light is lost towards the edge.
        quality: Quality of the JPEG.
        pixels: Least and greatest width of a crop on the sensor.
        hours: First and last hour of the day at which it sees people.
        ground: What is behind the people.
        infrared: The camera sees infrared light.
    """

    name: str
    height: float
    distance: tuple[float, float]
    heading: float
    roll: float
    sun: tuple[float, float]
    sunshine: float
    cast: Vec
    exposure: float
    gamma: float
    saturation: float
    contrast: float
    black: float
    blur: float
    noise: float
    vignette: float
    quality: int
    pixels: tuple[int, int]
    hours: tuple[float, float]
    ground: Ground
    infrared: bool = False


SITES: dict[str, tuple[Camera, ...]] = {
    "street-a": (
        Camera("a1", 3.2, (7, 13), 175, 0, (140, 40), 0.9, (1.0, 1.0, 1.0), 1.05, 1.0, 1.0, 0.1, 0.01, 0.45, 0.012, 0.2,
               88, (48, 90), (7, 19), Ground("slabs", (150, 146, 138), "bricks", (140, 92, 74), 19)),
        Camera("a2", 4.6, (9, 16), 80, 2.5, (-60, 30), 0.35, (0.80, 0.98, 1.30), 0.8, 1.12, 0.8, 0.25, 0.02, 0.6,
               0.02, 0.35, 72, (36, 70), (7, 18), Ground("asphalt", (86, 88, 94), "panels", (120, 126, 132), 24, 12)),
        Camera("a3", 2.4, (4.5, 9), 20, -1.5, (200, 55), 0.15, (1.32, 1.0, 0.62), 1.15, 0.9, 1.15, -0.05, 0.04, 0.5,
               0.025, 0.3, 80, (50, 96), (8, 22), Ground("tiles", (168, 152, 128), "doors", (176, 160, 132), 12, -8)),
        Camera("a4", 5.6, (10, 18), -65, -3, (30, 62), 1.4, (0.94, 1.12, 0.86), 1.4, 0.85, 0.65, -0.2, 0.10, 0.8,
               0.016, 0.15, 60, (28, 56), (9, 17), Ground("grass", (92, 112, 62), "hedge", (58, 80, 46), 26, 5)),
        Camera("a5", 3.4, (5, 10), 165, 1, (0, 90), 0, (1, 1, 1), 1.0, 0.95, 0, 0.1, 0.03, 0.6, 0.028, 0.55,
               76, (44, 80), (20, 23.9), Ground("slabs", (130, 130, 130), "bricks", (110, 110, 110), 17), True),
        Camera("a6", 4.8, (7, 13), -40, -2, (0, 90), 0, (1, 1, 1), 1.35, 0.82, 0, 0.3, 0.06, 0.8, 0.036, 0.75,
               64, (32, 62), (20.5, 23.9), Ground("asphalt", (90, 90, 90), "panels", (100, 100, 100), 22, 10), True),
    ),
    "street-b": (
        Camera("b1", 2.8, (6, 11), -150, 1.5, (-120, 25), 0.7, (1.22, 1.0, 0.80), 0.85, 1.15, 1.2, 0.2, 0.0, 0.5,
               0.016, 0.3, 82, (44, 84), (7, 19), Ground("asphalt", (104, 98, 92), "tiles", (196, 188, 170), 16, -6)),
        Camera("b2", 5.2, (9, 17), 110, -2, (80, 48), 1.1, (0.88, 1.0, 1.18), 1.3, 0.88, 0.9, -0.1, 0.06, 0.7, 0.02,
               0.2, 66, (32, 60), (8, 18), Ground("slabs", (126, 130, 138), "panels", (74, 86, 104), 25, 14)),
        Camera("b3", 3.8, (6, 12), 10, 3, (160, 35), 0.2, (0.86, 1.16, 0.94), 0.75, 1.05, 0.7, 0.3, 0.03, 0.55, 0.03,
               0.45, 74, (40, 76), (7, 22), Ground("tiles", (122, 132, 122), "doors", (112, 122, 112), 15, 9)),
        Camera("b4", 2.2, (4.5, 8), -95, -1, (10, 60), 0.5, (1.16, 0.90, 1.10), 1.1, 0.95, 0.55, -0.15, 0.09, 0.9,
               0.018, 0.25, 56, (34, 64), (8, 20), Ground("slabs", (150, 136, 130), "bricks", (164, 150, 138), 13, 0)),
        Camera("b5", 2.9, (5, 10), 60, -1.5, (0, 90), 0, (1, 1, 1), 1.2, 1.05, 0, 0.2, 0.02, 0.7, 0.032, 0.65,
               70, (40, 74), (20, 23.9), Ground("tiles", (120, 120, 120), "doors", (96, 96, 96), 14, 5), True),
        Camera("b6", 5.0, (7, 13), 190, 2, (0, 90), 0, (1, 1, 1), 0.85, 0.9, 0, 0.0, 0.05, 0.6, 0.04, 0.5,
               60, (34, 62), (20.5, 23.9), Ground("grass", (120, 120, 120), "hedge", (130, 130, 130), 21, -8), True),
    ),
}  # fmt: skip
