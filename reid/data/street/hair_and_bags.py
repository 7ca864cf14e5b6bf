"""Build heads and bags from capsules: hair, hats, hoods, backpacks, handbags, suitcases."""

from __future__ import annotations

import numpy as np

from reid.data.street.geometry import Capsule, Vec
from reid.data.street.wardrobe import Carried, Head, Top

HAIR_END = {"medium": 0.12, "long": 0.3, "tail": 0.24}  # metres below the middle of the head


def head_shapes(head: Head, top: Top, neck: Vec, scale: float, turn: float) -> list[Capsule]:
    """Build head, hair, hat and hood above the neck; the face looks ``turn`` radians to the side."""
    ahead = (float(np.sin(turn)), float(np.cos(turn)))
    x, y, z = neck[0], neck[1] + 0.035 * scale, neck[2] + 0.165 * scale

    def at(forward: float, up: float) -> Vec:
        return x + ahead[0] * forward * scale, y + ahead[1] * forward * scale, z + up * scale

    found = [Capsule(at(0.012, -0.045), at(0.0, 0.03), 0.072 * scale, 0.09 * scale, "skin")]
    if head.hair != "bald":
        found.append(Capsule(at(-0.035, -0.035), at(-0.012, 0.04), 0.082 * scale, 0.094 * scale, "hair"))
    if head.hair in HAIR_END:
        thick = 0.05 if head.hair == "tail" else 0.085
        found.append(Capsule(at(-0.045, 0.0), at(-0.075, -HAIR_END[head.hair]), (thick + 0.012) * scale,
                             thick * 0.75 * scale, "hair",
                             flat=(1.0, 1.0, 1.0)))  # fmt: skip
    if head.hair == "bun":
        found.append(Capsule(at(-0.09, 0.085), at(-0.1, 0.095), 0.048 * scale, 0.045 * scale, "hair"))
    if head.hat:
        found.append(
            Capsule(
                at(-0.012, 0.045), at(-0.012, 0.06), 0.1 * scale, (0.098 if head.hat != "hat" else 0.09) * scale, "hat"
            )
        )
    if head.hat == "cap":
        found.append(Capsule(at(0.08, 0.045), at(0.15, 0.03), 0.045 * scale, 0.05 * scale, "hat", flat=(1, 1, 3)))
    if head.hat == "hat":
        found.append(Capsule(at(-0.012, 0.04), at(-0.01, 0.041), 0.165 * scale, 0.165 * scale, "hat", flat=(1, 1, 6)))
    if top.kind == "hoodie":
        found.append(Capsule((x - 0.06, y - 0.1 * scale, neck[2] + 0.0), (x + 0.06, y - 0.1 * scale, neck[2] + 0.0),
                             0.075 * scale, 0.075 * scale, "top"))  # fmt: skip
    elif top.kind in ("coat", "jacket"):
        found.append(
            Capsule((x, y - 0.03, neck[2] - 0.04), (x, y - 0.035, neck[2] + 0.02), 0.088 * scale, 0.08 * scale, "top")
        )
    return found


def carried_shapes(
    carried: Carried, girth: float, scale: float, neck: Vec, hip: float, hands: dict[int, Vec]
) -> list[Capsule]:
    """Build the bag at the position where its type is carried."""
    size, side = carried.size, float(carried.side)
    deep = 0.12 * scale * girth
    if carried.kind == "backpack":
        back = neck[1] - deep - 0.11 * size
        low, high = (0.0, back - 0.01, neck[2] - 0.36 * size * scale), (0.0, back + 0.01, neck[2] - 0.16 * scale)
        straps = [Capsule((s * 0.11 * scale, neck[1], neck[2] - 0.005),
                          (s * 0.13 * scale, neck[1] + deep - 0.005, neck[2] - 0.3 * scale),
                          0.03, 0.026, "bag") for s in (-1.0, 1.0)]  # fmt: skip
        return [Capsule(low, high, 0.155 * size, 0.135 * size, "bag", flat=(1, 1.2, 1)), *straps]
    if carried.kind == "shoulder bag":
        middle_of_bag = (side * (0.21 * scale + 0.04 * girth), -0.04, hip + 0.02)
        end = (middle_of_bag[0], middle_of_bag[1] + 0.0, middle_of_bag[2] + 0.1 * size)
        cross = (-side * 0.1 * scale, neck[1] + 0.0, neck[2] + 0.005)
        return [
            Capsule(middle_of_bag, end, 0.15 * size, 0.13 * size, "bag", flat=(2.2, 1, 1)),
            Capsule(cross, (side * 0.17 * scale, deep + 0.0, hip + 0.2), 0.025, 0.022, "bag"),
            Capsule(cross, (side * 0.17 * scale, -deep - 0.02, hip + 0.2), 0.025, 0.022, "bag"),
        ]
    if carried.kind in ("handbag", "shopping"):
        hand = hands[carried.side]
        drop = 0.2 if carried.kind == "handbag" else 0.34
        middle = (hand[0] + side * 0.02, hand[1], hand[2] - drop * scale)
        width = (0.12 if carried.kind == "handbag" else 0.15) * size
        return [
            Capsule(
                (middle[0], middle[1] - 0.05, middle[2]),
                (middle[0], middle[1] + 0.05, middle[2]),
                width,
                width,
                "bag",
                flat=(2.4, 1, 1.15 if carried.kind == "handbag" else 0.85),
            ),
            Capsule(hand, (middle[0], middle[1] - 0.06, middle[2] + 0.1), 0.012, 0.012, "bag"),
            Capsule(hand, (middle[0], middle[1] + 0.06, middle[2] + 0.1), 0.012, 0.012, "bag"),
        ]
    if carried.kind == "suitcase":
        hand = hands[carried.side]
        case = (hand[0] + side * 0.05, hand[1] - 0.3, 0.2)
        return [
            Capsule(
                case, (case[0], case[1] + 0.08, case[2] + 0.3 * size), 0.19 * size, 0.19 * size, "bag", flat=(1, 1.7, 1)
            ),
            Capsule((case[0], case[1] + 0.08, case[2] + 0.4), hand, 0.014, 0.014, "bag"),
        ]
    return []
