"""Write small folders in the exact layouts of published data sets, with a few grey images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, colour: int = 90, size: tuple[int, int] = (8, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour // 2, colour)).save(path)


def market1501(root: Path) -> Path:
    for identity in ("0002", "0007", "0010"):
        for camera in (1, 3, 6):
            write_image(root / f"bounding_box_train/{identity}_c{camera}s1_000451_03.jpg")
    for identity in ("0001", "0003"):
        write_image(root / f"query/{identity}_c1s1_001051_00.jpg")
        for camera in (1, 2, 5):
            write_image(root / f"bounding_box_test/{identity}_c{camera}s2_001051_01.jpg")
    write_image(root / "bounding_box_test/0000_c4s6_000151_01.jpg")
    write_image(root / "bounding_box_test/0000_c2s6_000152_01.jpg")
    write_image(root / "bounding_box_test/-1_c1s1_000401_03.jpg")
    (root / "bounding_box_test/Thumbs.db").write_bytes(b"left by a file manager")
    (root / "readme.txt").write_text("Market-1501")
    return root


def msmt17(root: Path, train: str = "train", test: str = "test", ending: str = "_ex") -> Path:
    def write(name: str, folder: str, rows: list[tuple[str, str]]) -> None:
        lines = []
        for identity, camera in rows:
            path = f"{identity}/{identity}_000_{camera}_0303morning_0008_{len(lines)}{ending}.jpg"
            write_image(root / folder / path)
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
            if (camera, identity) != (3, 2):  # not every identity is seen by every camera
                for frame in (1, 2):
                    write_image(root / f"cam{camera}/{identity:04d}/{frame:04d}.jpg")
    return root


def regdb(root: Path, trials: int = 2) -> Path:
    (root / "idx").mkdir(parents=True)
    for trial in range(1, trials + 1):
        for split in ("train", "test"):
            for camera, letter in (("visible", "v"), ("thermal", "t")):
                lines = []
                for label in range(2):
                    person = 4 * (trial - 1) + 2 * (split == "test") + label
                    for frame in range(3):
                        path = f"{camera.title()}/{person}/male_back_{letter}_{frame:05d}_{person}.bmp"
                        write_image(root / path)
                        lines.append(f"{path} {label}")
                (root / "idx" / f"{split}_{camera}_{trial}.txt").write_text("\n".join(lines) + "\n")
    return root


def sysu_permutations(root: Path, images: int = 2) -> Path:
    """Write ``rand_perm_cam.mat`` for :func:`sysu_mm01`; odd trials list the images in order, even ones backwards."""
    from scipy.io import savemat

    cameras = np.empty((6, 1), object)
    for camera in range(6):
        people = np.empty((11, 1), object)
        for person in range(11):
            here = (root / f"cam{camera + 1}/{person + 1:04d}").is_dir()
            order = np.arange(1, images + 1, dtype=np.uint16)
            rows = [order if trial % 2 == 0 else order[::-1] for trial in range(10)]
            people[person, 0] = np.array(rows) if here else np.zeros((10, 0))
        cameras[camera, 0] = people
    savemat(root / "exp/rand_perm_cam.mat", {"rand_perm_cam": cameras}, do_compression=True)
    return root


def veri776(root: Path) -> Path:
    for folder, vehicles in (("image_train", (1, 3)), ("image_query", (2, 5)), ("image_test", (2, 5))):
        for vehicle in vehicles:
            for camera in (1, 19) if folder != "image_query" else (4,):
                write_image(root / folder / f"{vehicle:04d}_c{camera:03d}_00016450_0.jpg")
    (root / "gt_index.txt").write_text("1 2\n")
    write_image(root / "image_test" / "0002_c001_00016455_0.jpg")
    names = {"0002_c001_00016450": ["0002_c001_00016450_0.jpg", "0002_c001_00016455_0.jpg"]}
    names |= {name: [f"{name}_0.jpg"] for name in ("0002_c019_00016450", "0005_c001_00016450", "0005_c019_00016450")}
    lines = [" ".join([track, *images]) + " \n" for track, images in names.items()]  # the lines end in a space
    (root / "test_track.txt").write_text("".join(lines))
    return root


def cuhk03_np(root: Path) -> Path:
    for boxes in ("detected", "labeled"):
        for folder, people in (("bounding_box_train", (1, 2, 3)), ("query", (4, 9)), ("bounding_box_test", (4, 9))):
            for person in people:
                for camera in (1, 2):
                    write_image(root / boxes / folder / f"{person:04d}_c{camera}_{person + camera}.png")
    write_image(root / "labeled/bounding_box_train/0003_c1_77.png")
    return root


def viper(root: Path, people: int = 632) -> Path:
    for person in range(people):
        for camera, angle in (("cam_a", 45), ("cam_b", 90)):
            touch(root / f"{camera}/{person:03d}_{angle}.bmp")
    return root


def prid2011(root: Path) -> Path:
    for camera, people in (("cam_a", 385), ("cam_b", 749)):
        for person in range(1, people + 1):
            touch(root / f"single_shot/{camera}/person_{person:04d}.png")
    touch(root / "multi_shot/cam_a/person_0001/0001.png")
    return root


def grid(root: Path) -> Path:
    """Write ten partitions as the authors do: cells of structs whose third field lists the training identities."""
    from scipy.io import savemat

    for person in range(1, 251):
        touch(root / f"probe/{person:04d}_1_25004_107_32_106_221.jpeg")
        touch(root / f"gallery/{person:04d}_2_25023_116_134_128_330.jpeg")
    for distractor in range(775):
        touch(root / f"gallery/0000_5_{21132 + distractor}_88_31_113_244.jpeg")
    cells = np.empty((1, 10), object)
    for split in range(10):
        listed = np.arange(1 + split, 126 + split, dtype=np.uint8).reshape(1, -1)
        cells[0, split] = np.array([[(split, "x", listed)]], dtype=[("a", object), ("b", object), ("index", object)])
    savemat(root / "features_and_partitions.mat", {"trainIdxAll": cells})
    return root


def ilids(root: Path) -> Path:
    for person in range(1, 120):
        for number in range(2 + person % 3):
            touch(root / f"Persons/{person:04d}{number:03d}.jpg")
    return root


def occluded_reid(root: Path) -> Path:
    for folder in ("occluded_body_images", "whole_body_images"):
        for person in (1, 2, 200):
            for number in (1, 2):
                write_image(root / folder / f"{person:03d}/{person:03d}_{number:02d}.tif")
    return root


def llcm(root: Path) -> Path:
    """People 1 and 2 are for training, 3 and 7 for testing, with two images in cameras 1 and 2 of both lights."""
    (root / "idx").mkdir(parents=True)
    for light in ("vis", "nir"):
        lines = []
        for person in (1, 2):
            path = f"{light}/{person:04d}/{person:04d}_c01_s185535_f7010_{light}.jpg"
            write_image(root / path)
            lines.append(f"{path} {person - 1}")
        (root / f"idx/train_{light}.txt").write_text("\n".join(lines) + "\n")
        for person in (3, 7, 8):  # 8 is not listed
            for camera in (1, 2):
                for frame in (100, 101):
                    name = f"{person:04d}_c{camera:02d}_s192321_f{frame}_{light}.jpg"
                    write_image(root / f"test_{light}/cam{camera}/{person:04d}/{name}")
    (root / "idx/test_id.txt").write_text("3,7")
    return root


def cub200(root: Path) -> Path:
    for number in (1, 99, 100, 101, 200):
        for image_number in (1, 2):
            touch(root / f"images/{number:03d}.Some_Bird/Some_Bird_{image_number:04d}_{number}.jpg")
    (root / "images.txt").write_text("1 001.Some_Bird/Some_Bird_0001_1.jpg\n")
    return root


def sop(root: Path) -> Path:
    number = 0
    for name, classes in (("Ebay_train.txt", (1, 2)), ("Ebay_test.txt", (11319, 11320))):
        lines = ["image_id class_id super_class_id path"]
        for label in classes:
            for view in range(2):
                number += 1
                touch(root / f"bicycle_final/{label}_{view}.JPG")
                lines.append(f"{number} {label} 1 bicycle_final/{label}_{view}.JPG")
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def cars196(root: Path, labels: Sequence[int] = (1, 1, 98, 98, 99, 99, 196, 196)) -> Path:
    """Write one image for each label, in this order."""
    from scipy.io import savemat

    fields = [(name, object) for name in ("relative_im_path", "bbox_x1", "class", "test")]
    rows = [(f"car_ims/{i:06d}.jpg", 5, label, 0) for i, label in enumerate(labels, start=1)]
    for path, *_ in rows:
        touch(root / path)
    savemat(root / "cars_annos.mat", {"annotations": np.array([rows], dtype=fields)})
    return root


def touch(path: Path) -> None:
    """Write a file that is never opened as an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not opened here")
