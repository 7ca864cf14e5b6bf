"""Draw clothes and bags, most of them in dark and muted colours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from reid.data.street.geometry import Vec
from reid.data.street.materials import (
    DENIM,
    HAIR,
    MUTED,
    SATURATED,
    SKIN,
    Logo,
    SurfaceMaterial,
    draw_infrared,
    draw_shade,
    srgb_to_linear,
)
from reid.data.street.random_draws import between, clipped, pick

TOP_COLOURS = {
    "black": 0.2, "charcoal": 0.11, "navy": 0.14, "grey": 0.1, "light grey": 0.05, "brown": 0.06, "dark brown": 0.05,
    "olive": 0.06, "beige": 0.07, "white": 0.08, "burgundy": 0.04, "slate": 0.05, "bottle green": 0.03, "khaki": 0.04,
}  # fmt: skip
BOTTOM_COLOURS = {
    "black": 0.3, "charcoal": 0.16, "navy": 0.14, "grey": 0.1, "beige": 0.08, "olive": 0.05, "khaki": 0.07,
    "dark brown": 0.06, "light grey": 0.04, "white": 0.02,
}  # fmt: skip
SHOE_COLOURS = {"black": 0.42, "white": 0.2, "brown": 0.12, "grey": 0.1, "dark brown": 0.1, "beige": 0.06}
BAG_COLOURS = {"black": 0.38, "grey": 0.12, "navy": 0.13, "brown": 0.12, "olive": 0.08, "beige": 0.09, "burgundy": 0.08}

TOPS = {"jacket": 0.27, "coat": 0.19, "hoodie": 0.16, "sweater": 0.12, "shirt": 0.1, "t-shirt": 0.16}
TOP_FABRICS = {
    "jacket": {"synthetic": 0.5, "leather": 0.18, "cotton": 0.17, "denim": 0.15},
    "coat": {"wool": 0.6, "synthetic": 0.3, "cotton": 0.1},
    "hoodie": {"cotton": 0.75, "synthetic": 0.25},
    "sweater": {"wool": 0.7, "cotton": 0.3},
    "shirt": {"cotton": 0.85, "denim": 0.15},
    "t-shirt": {"cotton": 0.75, "synthetic": 0.25},
}
PATTERN_CHANCES = {
    "jacket": {"plain": 0.68, "block": 0.16, "sides": 0.06, "band": 0.1},
    "coat": {"plain": 0.82, "checks": 0.1, "speckle": 0.08},
    "hoodie": {"plain": 0.66, "block": 0.14, "band": 0.1, "speckle": 0.1},
    "sweater": {"plain": 0.5, "bands": 0.26, "speckle": 0.16, "band": 0.08},
    "shirt": {"plain": 0.44, "checks": 0.3, "stripes": 0.26},
    "t-shirt": {"plain": 0.6, "bands": 0.24, "block": 0.08, "sides": 0.08},
}
BOTTOMS = {"jeans": 0.37, "trousers": 0.34, "joggers": 0.1, "shorts": 0.08, "skirt": 0.07, "dress": 0.04}
SATURATED_SHARE = 0.16


@dataclass(frozen=True)
class Top:
    """A garment for the upper body.

    Args:
        kind: A key of ``TOPS``.
        material: The material of the trunk.
        sleeve_material: The material of the sleeves.
        inner: The material that shows where the front is open.
        sleeve: How much of the two pieces of an arm it covers, 0..2.
        hem: Height of the hem below the hip joint, in metres.
        open_front: Half width of the open front, in metres.
        bulk: Thickness in metres.
        tucked: It is tucked into the trousers.
    """

    kind: str
    material: SurfaceMaterial
    sleeve_material: SurfaceMaterial
    inner: SurfaceMaterial
    sleeve: float
    hem: float
    open_front: float
    bulk: float
    tucked: bool


@dataclass(frozen=True)
class Bottom:
    """A garment for the lower body.

    Args:
        kind: A key of ``BOTTOMS``.
        material: The material.
        belt: The material of the belt.
        leg: How much of the two pieces of a leg it covers, 0..2.
        width: Distance of the cloth from the leg, in metres.
        hem: Length of a skirt, in metres.
    """

    kind: str
    material: SurfaceMaterial
    belt: SurfaceMaterial
    leg: float
    width: float
    hem: float


@dataclass(frozen=True)
class Shoes:
    """Shoes or boots; ``boots`` is the share of the calf that they cover, 0 for shoes."""

    material: SurfaceMaterial
    boots: float


@dataclass(frozen=True)
class Head:
    """Hair, hat, skin and scarf; ``hair`` is a length class, ``hat`` a type or ""."""

    hair: str
    hat: str
    hair_material: SurfaceMaterial
    hat_material: SurfaceMaterial
    skin: SurfaceMaterial
    scarf: SurfaceMaterial | None


@dataclass(frozen=True)
class Carried:
    """A bag: its type or "", the side -1 or 1, and a size about 1."""

    kind: str
    side: int
    size: float
    material: SurfaceMaterial = field(default_factory=lambda: SurfaceMaterial((0.1, 0.1, 0.1), 0.1))


def draw_colour(rng: np.random.Generator, weights: dict[str, float], saturated: float = SATURATED_SHARE) -> Vec:
    """Draw a linear colour: a muted one by ``weights``, or with probability ``saturated`` a saturated one."""
    if rng.random() < saturated:
        names = list(SATURATED)
        return draw_shade(rng, SATURATED[names[int(rng.integers(len(names)))]])
    return draw_shade(rng, MUTED[pick(rng, weights)])


def draw_dyed_material(
    rng: np.random.Generator, weights: dict[str, float], fabric: str, saturated: float = SATURATED_SHARE
) -> SurfaceMaterial:
    """Draw a plain material and a second dye for patterns; in infrared the two dyes often look alike."""
    first, second = draw_colour(rng, weights, saturated), draw_colour(rng, weights, 0.3)
    infrared, own = draw_infrared(rng, first, fabric), draw_infrared(rng, second, fabric)
    kept = float(rng.random()) ** 0.7
    return SurfaceMaterial(first, infrared, fabric, second, infrared + kept * (own - infrared))


def draw_pattern(rng: np.random.Generator, material: SurfaceMaterial, kind: str) -> SurfaceMaterial:
    """Draw a pattern for a garment of a type."""
    pattern = pick(rng, PATTERN_CHANCES[kind])
    period = {
        "bands": between(rng, 0.07, 0.2),
        "stripes": between(rng, 0.05, 0.11),
        "checks": between(rng, 0.07, 0.16),
        "block": between(rng, 0.16, 0.4),
        "band": between(rng, 0.18, 0.36),
        "sides": between(rng, 0.08, 0.14),
    }.get(pattern, 0.1)
    duty, phase = between(rng, 0.25, 0.65), float(rng.random())
    return replace(material, pattern=pattern, period=period, duty=duty, phase=phase)


def _draw_logos(rng: np.random.Generator, kind: str) -> tuple[Logo, ...]:
    logos: list[Logo] = []
    chances = {"coat": (0.02, 0.03), "shirt": (0.1, 0.04)}.get(kind, (0.26, 0.24))
    for front, chance in zip((True, False), chances, strict=True):
        wanted, big = rng.random() < chance, rng.random() < 0.55
        half_width = between(rng, 0.08, 0.12) if big else between(rng, 0.03, 0.05)
        half_height = half_width * between(rng, 0.4, 1.1)
        across = 0.0 if big else between(rng, -0.09, 0.09)
        bits = int(rng.integers(1 << 16)) | int(rng.integers(1 << 16))
        ink = draw_colour(rng, {"white": 0.6, "black": 0.15, "beige": 0.25}, 0.4)
        if wanted:
            logos.append(Logo(across, between(rng, 0.24, 0.38), half_width, half_height, front, bits, ink,
                              draw_infrared(rng, ink, "synthetic")))  # fmt: skip
    return tuple(logos)


def draw_top(rng: np.random.Generator) -> Top:
    """Draw a jacket, coat, hoodie, sweater, shirt or T-shirt."""
    kind = pick(rng, TOPS)
    fabric = pick(rng, TOP_FABRICS[kind])
    weights = {"black": 0.6, "dark brown": 0.2, "brown": 0.2} if fabric == "leather" else TOP_COLOURS
    material = draw_dyed_material(rng, weights, fabric, 0.03 if fabric == "leather" else SATURATED_SHARE)
    if fabric == "denim":
        material = _draw_denim(rng)
    material = replace(draw_pattern(rng, material, kind), logos=_draw_logos(rng, kind))
    inner = draw_dyed_material(rng, {"white": 0.4, "grey": 0.2, "black": 0.2, "light grey": 0.2}, "cotton")
    two_tone = rng.random() < (0.04 if kind in ("coat", "shirt") else 0.16)
    sleeve_material = replace(material, logos=())
    if material.pattern in ("block", "band", "sides"):
        sleeve_material = replace(sleeve_material, pattern="plain")
    if two_tone:
        sleeve_material = replace(
            sleeve_material, colour=material.second, infrared=material.second_infrared, pattern="plain"
        )
    elif rng.random() < 0.1:
        sleeve_material = replace(sleeve_material, pattern="band", period=between(rng, 0.1, 0.45), duty=0.4)
    short = kind == "t-shirt" or (kind == "shirt" and rng.random() < 0.35)
    rolled = kind in ("shirt", "hoodie", "sweater") and rng.random() < 0.2
    sleeve = between(rng, 0.45, 0.9) if short else between(rng, 1.3, 1.6) if rolled else 2.0
    hem = {"coat": between(rng, 0.15, 0.5), "jacket": between(rng, -0.02, 0.06)}.get(kind, between(rng, -0.03, 0.03))
    opened = rng.random() < {"jacket": 0.45, "coat": 0.35, "hoodie": 0.2}.get(kind, 0.0)
    bulk = {"coat": 0.028, "jacket": between(rng, 0.012, 0.05), "hoodie": 0.018, "sweater": 0.012}.get(kind, 0.004)
    tucked = kind in ("shirt", "t-shirt", "sweater") and rng.random() < 0.35
    return Top(
        kind, material, sleeve_material, inner, sleeve, hem, between(rng, 0.035, 0.085) if opened else 0.0, bulk, tucked
    )


def _draw_denim(rng: np.random.Generator) -> SurfaceMaterial:
    wash = pick(rng, {"dark blue": 0.4, "blue": 0.32, "pale": 0.12, "black": 0.16})
    first = draw_shade(rng, DENIM[wash], 0.14)
    second = srgb_to_linear((150, 158, 170))
    infrared = draw_infrared(rng, first, "denim")
    return SurfaceMaterial(first, infrared, "denim", second, infrared * 1.15)


def draw_bottom(rng: np.random.Generator) -> Bottom:
    """Draw jeans, trousers, joggers, shorts, a skirt, or the lower half of a dress."""
    kind = pick(rng, BOTTOMS)
    fabric = {"joggers": "synthetic", "skirt": "cotton", "trousers": "wool" if rng.random() < 0.5 else "cotton"}
    if kind == "jeans" or (kind == "shorts" and rng.random() < 0.3):
        material = _draw_denim(rng)
    else:
        material = draw_dyed_material(rng, BOTTOM_COLOURS, fabric.get(kind, "cotton"), 0.06 if kind != "dress" else 0.3)
    draw, period = rng.random(), between(rng, 0.07, 0.16)
    if kind == "joggers" and draw < 0.6:
        material = replace(material, pattern="sides", period=0.1)
    elif kind in ("skirt", "dress") and draw < 0.4:
        material = replace(material, pattern="bands" if draw < 0.2 else "checks", period=period)
    elif kind == "shorts" and draw < 0.2:
        material = replace(material, pattern="checks", period=period)
    leg = between(rng, 0.65, 1.0) if kind == "shorts" else 2.0 if rng.random() < 0.88 else between(rng, 1.6, 1.85)
    width = pick(rng, {0.004: 0.36, 0.016: 0.42, 0.034: 0.22}) * between(rng, 0.8, 1.2)
    belt = draw_dyed_material(rng, {"black": 0.5, "brown": 0.5}, "leather", 0.0)
    return Bottom(kind, material, belt, leg, width, between(rng, 0.22, 0.62))


def draw_shoes(rng: np.random.Generator) -> Shoes:
    """Draw shoes or boots."""
    fabric = "leather" if rng.random() < 0.55 else "synthetic"
    boots = between(rng, 0.3, 0.8) if rng.random() < 0.14 else 0.0
    return Shoes(draw_dyed_material(rng, SHOE_COLOURS, fabric, 0.1), boots)


def draw_head(rng: np.random.Generator) -> Head:
    """Draw hair, hat, scarf and skin."""
    tone = np.array(SKIN[pick(rng, {0: 0.26, 1: 0.28, 2: 0.18, 3: 0.12, 4: 0.1, 5: 0.06})]) * clipped(rng, 1.0, 0.04)
    skin = SurfaceMaterial(srgb_to_linear((tone[0], tone[1], tone[2])), clipped(rng, 0.5, 0.04), "skin")
    hair_name = pick(
        rng, {"black": 0.3, "dark brown": 0.27, "brown": 0.16, "fair": 0.09, "blond": 0.07, "grey": 0.08, "red": 0.03}
    )
    shadow = draw_shade(rng, HAIR[hair_name], 0.12)
    hair_material = SurfaceMaterial(
        shadow, float(np.clip(0.12 + 0.35 * shadow[0] + clipped(rng, 0, 0.06), 0.03, 0.6)), "hair"
    )
    hair = pick(rng, {"short": 0.42, "medium": 0.16, "long": 0.18, "bun": 0.08, "tail": 0.06, "bald": 0.1})
    hat = pick(rng, {"": 0.8, "cap": 0.09, "beanie": 0.08, "hat": 0.03})
    hat_material = draw_dyed_material(rng, BAG_COLOURS, "wool" if hat == "beanie" else "cotton", 0.25)
    scarf = draw_dyed_material(rng, TOP_COLOURS, "wool", 0.3) if rng.random() < 0.09 else None
    return Head(hair, hat, hair_material, hat_material, skin, scarf)


BAGS = {"": 0.36, "backpack": 0.24, "shoulder bag": 0.16, "handbag": 0.14, "suitcase": 0.05, "shopping": 0.05}


def draw_carried(rng: np.random.Generator, turn: int = 0) -> Carried:
    """Draw a bag or nothing; ``turn`` > 0 takes the type so many positions later, so that near twins differ."""
    kinds = list(BAGS)
    kind = kinds[(kinds.index(pick(rng, BAGS)) + turn) % len(kinds)]
    fabric = {"handbag": "leather", "backpack": "synthetic", "suitcase": "synthetic"}.get(kind, "cotton")
    material = draw_dyed_material(rng, BAG_COLOURS, fabric, 0.2)
    if rng.random() < 0.25:
        material = replace(material, pattern="block", period=between(rng, 0.15, 0.3))
    side = 1 if rng.random() < 0.5 else -1
    return Carried(kind, side, clipped(rng, 1.0, 0.12), material)
