"""Small trees in the exact layouts of published data sets: the same names, a few grey pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def picture(path: Path, colour: int = 90, size: tuple[int, int] = (8, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour // 2, colour)).save(path)


def market1501(root: Path) -> Path:
    for identity in ("0002", "0007", "0010"):
        for camera in (1, 3, 6):
            picture(root / f"bounding_box_train/{identity}_c{camera}s1_000451_03.jpg")
    for identity in ("0001", "0003"):
        picture(root / f"query/{identity}_c1s1_001051_00.jpg")
        for camera in (1, 2, 5):
            picture(root / f"bounding_box_test/{identity}_c{camera}s2_001051_01.jpg")
    picture(root / "bounding_box_test/0000_c4s6_000151_01.jpg")
    picture(root / "bounding_box_test/0000_c2s6_000152_01.jpg")
    picture(root / "bounding_box_test/-1_c1s1_000401_03.jpg")
    (root / "bounding_box_test/Thumbs.db").write_bytes(b"left by a file manager")
    (root / "readme.txt").write_text("Market-1501")
    return root


def msmt17(root: Path, train: str = "train", test: str = "test", ending: str = "_ex") -> Path:
    def write(name: str, folder: str, rows: list[tuple[str, str]]) -> None:
        lines = []
        for identity, camera in rows:
            path = f"{identity}/{identity}_000_{camera}_0303morning_0008_{len(lines)}{ending}.jpg"
            picture(root / folder / path)
            lines.append(f"{path} {int(identity)}")
        (root / name).write_text("\n".join(lines) + "\n")

    write("list_train.txt", train, [("0000", "01"), ("0000", "14"), ("0001", "02")])
    write("list_val.txt", train, [("0000", "07")])
    write("list_query.txt", test, [("0000", "15"), ("0002", "03")])
    write("list_gallery.txt", test, [("0000", "02"), ("0002", "04"), ("0002", "05")])
    return root


def sysu_mm01(root: Path) -> Path:
    identities = {"train_id.txt": [1, 2], "val_id.txt": [5], "test_id.txt": [6, 10]}
    (root / "exp").mkdir(parents=True)
    for name, numbers in identities.items():
        (root / "exp" / name).write_text(",".join(map(str, numbers)) + "\n")
    for camera in range(1, 7):
        for identity in (1, 2, 5, 6, 10, 11):  # 11 is in no list
            if (camera, identity) != (3, 2):  # not everybody passes every camera
                for frame in (1, 2):
                    picture(root / f"cam{camera}/{identity:04d}/{frame:04d}.jpg")
    return root


def regdb(root: Path, trials: int = 2) -> Path:
    (root / "idx").mkdir(parents=True)
    for trial in range(1, trials + 1):
        for split in ("train", "test"):
            for kind, letter in (("visible", "v"), ("thermal", "t")):
                lines = []
                for label in range(2):
                    person = 4 * (trial - 1) + 2 * (split == "test") + label
                    for frame in range(3):
                        path = f"{kind.title()}/{person}/male_back_{letter}_{frame:05d}_{person}.bmp"
                        picture(root / path)
                        lines.append(f"{path} {label}")
                (root / "idx" / f"{split}_{kind}_{trial}.txt").write_text("\n".join(lines) + "\n")
    return root
