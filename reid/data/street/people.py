"""Draw people and build their bodies from capsules.

A person has a body, clothes and perhaps a bag, which are drawn from the seed, the site and the number of the person.
Figures face +y, x is their right, z is up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.data.street.geometry import Capsule, Vec
from reid.data.street.hair_and_bags import carried_shapes, head_shapes
from reid.data.street.materials import SurfaceMaterial
from reid.data.street.random_draws import between, clipped, generator, pick
from reid.data.street.wardrobe import (
    Bottom,
    Carried,
    Head,
    Shoes,
    Top,
    draw_bottom,
    draw_carried,
    draw_head,
    draw_shoes,
    draw_top,
)

BLOCK = 4  # look-alikes are neighbours by number within blocks of this size
LOOKALIKES = {"": 0.62, "uniform": 0.2, "twin": 0.18}


@dataclass(frozen=True)
class Body:
    """Measures of a body: ``height`` in metres, and ratios about 1 for girth, shoulders, hips and legs."""

    height: float
    girth: float
    shoulders: float
    hips: float
    legs: float
    stoop: float
    stride: float


@dataclass(frozen=True)
class Person:
    """One identity."""

    body: Body
    top: Top
    bottom: Bottom
    shoes: Shoes
    head: Head
    carried: Carried

    def slots(self) -> dict[str, SurfaceMaterial]:
        """Return the materials by the names that :func:`person_shapes` uses."""
        found = {
            "top": self.top.material, "sleeve": self.top.sleeve_material, "inner": self.top.inner,
            "bottom": self.bottom.material, "belt": self.bottom.belt, "shoe": self.shoes.material,
            "skin": self.head.skin, "hair": self.head.hair_material, "hat": self.head.hat_material,
            "bag": self.carried.material,
        }  # fmt: skip
        if self.bottom.kind == "dress":
            found["bottom"] = self.top.material
        if self.head.scarf is not None:
            found["scarf"] = self.head.scarf
        return found


@dataclass(frozen=True)
class Pose:
    """A moment of walking or standing.

    Args:
        phase: Phase of the gait in radians.
        swing: 0 for standing to 1 for long strides.
        arm: What the free arm does: "swing", "phone" or "pocket".
        turn: How far the face is turned, in radians.
    """

    phase: float
    swing: float
    arm: str
    turn: float


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a body."""
    height = float(np.clip(clipped(rng, 1.71, 0.095), 1.5, 1.98))
    girth = float(np.clip(clipped(rng, 1.0, 0.12) + 0.22 * (rng.random() < 0.14), 0.8, 1.45))
    return Body(height, girth, clipped(rng, 1.0, 0.075), clipped(rng, 1.0, 0.08), clipped(rng, 1.0, 0.035),
                max(0.0, clipped(rng, 0.03, 0.04)), clipped(rng, 1.0, 0.15))  # fmt: skip


def draw_person(seed: int, site: str, group: str, index: int) -> Person:
    """Draw a person, who does not depend on which other people are drawn.

    Every aspect has a generator of its own.  In some blocks of neighbours the first two to four share aspects: a
    uniform (different people in the same clothes) or near twins (the same clothes and build, but other bags and shoes).

    Args:
        seed: The seed of the street.
        site: The site.
        group: "test", "train", or another name.
        index: The number of the person.

    Returns:
        The person.
    """
    block, member = divmod(index, BLOCK)
    rng = generator(seed, site, group, "block", block)
    relation, size = pick(rng, LOOKALIKES), pick(rng, {2: 0.4, 3: 0.3, 4: 0.3})
    relation = relation if member < size else ""
    shared = {
        "": (),
        "uniform": ("top", "bottom", "shoes"),
        "twin": ("top", "bottom", "body", "head"),
    }[relation]

    def aspect(name: str) -> np.random.Generator:
        number = -1 - block if name in shared else index
        return generator(seed, site, group, "person", name, abs(number), int(number < 0))

    carried = draw_carried(generator(seed, site, group, "twin bag", block), member) if relation == "twin" else (
        draw_carried(aspect("carried")))  # fmt: skip
    return Person(draw_body(aspect("body")), draw_top(aspect("top")), draw_bottom(aspect("bottom")),
                  draw_shoes(aspect("shoes")), draw_head(aspect("head")), carried)  # fmt: skip


def draw_pose(rng: np.random.Generator, body: Body) -> Pose:
    """Draw a pose of walking or standing."""
    standing = rng.random() < 0.2
    swing = between(rng, 0.0, 0.2) if standing else body.stride * between(rng, 0.65, 1.05)
    arm = pick(rng, {"swing": 0.78, "phone": 0.1, "pocket": 0.12})
    return Pose(2 * np.pi * float(rng.random()), swing, arm, clipped(rng, 0.0, 0.25))


def _along(start: Vec, length: float, pitch: float, spread: float = 0.0) -> Vec:
    """Return the point ``length`` below ``start``, swung forward by ``pitch`` and outward by ``spread`` radians."""
    return (
        start[0] + length * float(np.sin(spread)),
        start[1] + length * float(np.cos(spread) * np.sin(pitch)),
        start[2] - length * float(np.cos(spread) * np.cos(pitch)),
    )


@dataclass(frozen=True)
class _Leg:
    hip: Vec
    knee: Vec
    ankle: Vec
    toe: Vec


def _legs(body: Body, pose: Pose) -> tuple[list[_Leg], float]:
    """Return both legs and the height of the hips above the ground."""
    scale = body.height / 1.75
    thigh, calf = 0.44 * scale * body.legs, 0.42 * scale * body.legs
    legs: list[_Leg] = []
    for side, phase in ((-1, pose.phase), (1, pose.phase + np.pi)):
        swing = 0.45 * pose.swing * float(np.sin(phase))
        bend = 0.06 + pose.swing * (0.12 + 0.75 * max(0.0, float(np.cos(phase + 0.3))))
        hip = (side * 0.088 * scale * body.hips, 0.0, 0.0)
        knee = _along(hip, thigh, swing, side * 0.02)
        ankle = _along(knee, calf, swing - bend)
        tip = swing - bend + 1.35
        legs.append(_Leg(hip, knee, ankle, _along(ankle, 0.17 * scale, min(tip, 1.5), side * 0.12)))
    lowest = min(min(leg.ankle[2], leg.toe[2] + 0.03 * scale) for leg in legs)
    return legs, 0.085 * scale - lowest


def _lift(point: Vec, by: float) -> Vec:
    return point[0], point[1], point[2] + by


def _leg_shapes(person: Person, legs: list[_Leg], hip: float) -> list[Capsule]:
    body, bottom = person.body, person.bottom
    scale, girth = body.height / 1.75, body.girth**0.7
    bare = bottom.kind in ("skirt", "dress")
    cloth = 0.0 if bare else bottom.width
    cover = 0.0 if bare else bottom.leg
    shapes: list[Capsule] = []
    for leg in legs:
        start, knee, ankle, toe = (_lift(point, hip) for point in (leg.hip, leg.knee, leg.ankle, leg.toe))
        high, middle, low = (radius * scale * girth for radius in (0.086, 0.058, 0.04))
        upper = cloth if cover > 1 else cloth * 0.8
        shapes.append(Capsule(start, knee, high + 0.5 * cloth, middle + upper, "skin" if cover == 0 else "bottom",
                              "skin",
                              cover if cover else 2.0))  # fmt: skip
        boots, below = person.shoes.boots, cover - 1.0
        slot, beyond, cut = ("bottom", "skin", below) if below > 0 else ("skin", "skin", 2.0)
        if boots > 0 and cloth < 0.02:
            beyond, cut = "shoe", 1.0 - boots
        flare = cloth * 1.25 if below > 0 else 0.0
        shapes.append(Capsule(knee, ankle, middle + (cloth if below > 0 else 0.0), low + flare, slot, beyond, cut,
                              offset=0.44 * scale))  # fmt: skip
        shapes.append(Capsule(_lift(ankle, -0.03 * scale), toe, 0.047 * scale, 0.036 * scale, "shoe"))
    return shapes


def _skirt_shapes(person: Person, pose: Pose, hip: float) -> list[Capsule]:
    """Build the cones that hang from the waist: a skirt, a dress, the lower part of a coat."""
    scale, body = person.body.height / 1.75, person.body
    shapes: list[Capsule] = []
    waist = 0.158 * scale * body.girth * body.hips
    spread = 0.05 * pose.swing
    if person.bottom.kind in ("skirt", "dress"):
        hem = person.bottom.hem * scale
        shapes.append(Capsule((0, 0, hip + 0.1), (0, 0, hip - hem), waist, waist + 0.02 + 0.18 * hem + spread, "bottom",
                              flat=(1, 1.3, 1), open_end=True))  # fmt: skip
    if person.top.hem > 0.1:
        hem = person.top.hem * scale
        shapes.append(Capsule((0, 0, hip + 0.14), (0, 0, hip - hem), waist + person.top.bulk,
                              waist + person.top.bulk + 0.01 + 0.1 * hem + spread, "top", flat=(1, 1.3, 1),
                              open_end=True))  # fmt: skip
    return shapes


def _torso_shapes(person: Person, hip: float) -> tuple[list[Capsule], Vec]:
    """Build pelvis, chest, shoulders and neck; return them and the point between the shoulders."""
    body, bulk = person.body, person.top.bulk
    scale, girth = body.height / 1.75, body.girth
    lean = float(np.sin(body.stoop))
    rise = 0.5 * scale
    waist: Vec = (0.0, 0.1 * lean, hip + 0.14 * scale)
    breast: Vec = (0.0, 0.36 * lean, hip + 0.37 * scale)
    neck: Vec = (0.0, rise * lean, hip + rise)
    wide = 0.17 * scale * body.shoulders
    covered = "bottom" if person.top.tucked and person.bottom.kind != "dress" else "top"
    hips, chest = 0.155 * scale * girth * body.hips, 0.17 * scale * body.shoulders * (0.6 + 0.4 * girth)
    belly = 0.145 * scale * girth**1.3
    low = 0.09 * scale if covered == "bottom" else max(0.0, 0.05 - person.top.hem) * scale
    pelvis = Capsule((0, 0, hip + low - 0.02), waist, hips + (bulk if covered == "top" else 0.0), belly + bulk, covered,
                     "belt" if covered == "bottom" else "top", 0.75, (1, 1.28, 1))  # fmt: skip
    seat = Capsule((0, -0.01, hip - 0.02), (0, 0, hip + 0.06), hips * 0.98, hips * 0.96, "bottom", flat=(1, 1.3, 1))
    trunk = Capsule(waist, breast, belly + bulk, chest + bulk, "top", flat=(1, 1.42, 1))
    yoke_at = neck[2] - 0.075 * scale
    yoke = Capsule(
        (-wide, neck[1], yoke_at), (wide, neck[1], yoke_at), 0.068 * scale + bulk, 0.068 * scale + bulk, "top"
    )
    throat = Capsule((0, neck[1] - 0.01, neck[2] - 0.06), (0, neck[1] + 0.015, neck[2] + 0.06 * scale),
                     0.062 * scale, 0.052 * scale, "skin")  # fmt: skip
    shapes = [pelvis, seat, trunk, yoke, throat]
    if person.head.scarf is not None:
        shapes.append(
            Capsule(
                (0, neck[1], neck[2] - 0.035), (0, neck[1] + 0.02, neck[2] + 0.035), 0.1 * scale, 0.085 * scale, "scarf"
            )
        )
        shapes.append(
            Capsule((0.05, neck[1] + 0.1, neck[2] - 0.06), (0.06, 0.15 * girth, hip + 0.2), 0.035, 0.045, "scarf")
        )
    return shapes, neck


def _arm_shapes(person: Person, pose: Pose, neck: Vec) -> tuple[list[Capsule], dict[int, Vec]]:
    """Build both arms; return them and the positions of the hands by side (-1, 1)."""
    body, top = person.body, person.top
    scale = body.height / 1.75
    girth, cloth = body.girth**0.6, top.bulk * 0.7
    shapes: list[Capsule] = []
    hands: dict[int, Vec] = {}
    for side, phase in ((-1, pose.phase), (1, pose.phase + np.pi)):
        loaded = person.carried.kind in ("handbag", "suitcase", "shopping") and side == person.carried.side
        swing = -0.5 * pose.swing * float(np.sin(phase)) * (0.25 if loaded else 1.0)
        bend = 0.05 if loaded else 0.2 + 0.35 * pose.swing * max(0.0, -float(np.sin(phase)))
        spread = side * (0.1 + 0.1 * (body.girth - 0.9))
        if pose.arm != "swing" and not loaded and side == 1:
            swing, bend = {"phone": (0.35, 1.9), "pocket": (-0.35, 0.75)}[pose.arm]
        if person.carried.kind == "suitcase" and loaded:
            swing, bend = -0.45, 0.0
        shoulder = (side * 0.2 * scale * body.shoulders, neck[1], neck[2] - 0.085 * scale)
        elbow = _along(shoulder, 0.285 * scale, swing, spread)
        wrist = _along(elbow, 0.25 * scale, swing + bend, spread * (0.1 if bend < 1 else -1.5))
        hand = _along(wrist, 0.09 * scale, swing + bend)
        short, far = min(top.sleeve, 1.0), top.sleeve - 1.0
        loose = cloth if top.sleeve >= 1 else cloth + 0.008
        shapes.append(Capsule(shoulder, elbow, 0.056 * scale * girth + loose, 0.043 * scale * girth + loose, "sleeve",
                              "skin",
                              short if short < 1 else 2.0))  # fmt: skip
        cover = ("sleeve", "skin", far if far < 1 else 2.0) if far > 0 else ("skin", "skin", 2.0)
        shapes.append(Capsule(elbow, wrist, 0.042 * scale * girth + (loose if far > 0 else 0.0),
                              0.031 * scale * girth + (loose if far > 0 else 0.0), *cover,
                              offset=0.285 * scale))  # fmt: skip
        shapes.append(Capsule(wrist, hand, 0.034 * scale, 0.028 * scale, "skin"))
        hands[side] = hand
    return shapes, hands


def person_shapes(person: Person, pose: Pose) -> list[Capsule]:
    """Build the capsules of a person in a pose, with the feet on z = 0; slots are those of :meth:`Person.slots`."""
    legs, hip = _legs(person.body, pose)
    torso, neck = _torso_shapes(person, hip)
    arms, hands = _arm_shapes(person, pose, neck)
    found = _leg_shapes(person, legs, hip) + _skirt_shapes(person, pose, hip) + torso + arms
    found += head_shapes(person.head, person.top, neck, person.body.height / 1.75, pose.turn)
    found += carried_shapes(person.carried, person.body.girth, person.body.height / 1.75, neck, hip, hands)
    return found
