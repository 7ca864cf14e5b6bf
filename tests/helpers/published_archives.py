"""Write data sets that come as one file: the HDF5 release of CUHK03 and the metadata of animals."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

ANIMALS = """image_id,path,identity,date,species
0,a/0.jpg,t1,2012-05-01,turtle
1,a/1.jpg,t1,2012-05-01T17:00:00,turtle
2,a/2.jpg,t1,2013-06-02,turtle
3,a/3.jpg,t1,2014-06-02,turtle
4,a/4.jpg,t2,2012,turtle
5,a/5.jpg,t2,2015,turtle
6,a/6.jpg,t3,2012-01-01,turtle
7,a/7.jpg,unknown,2012-01-01,turtle
8,a/8.jpg,t1,,turtle
"""


def animal_metadata(root: Path, text: str = ANIMALS) -> Path:
    path = root / "metadata.csv"
    path.write_text(text)
    return path


def cuhk03_release(path: Path) -> Path:
    """Write five camera pairs of two people with two images of the first camera and one of the second.

    The file has the form in which MATLAB writes it: axes are reversed, cells are references, and an empty cell is an
    array of two sizes.
    """
    with h5py.File(path, "w") as file:

        def cell(content: np.ndarray) -> object:
            return file.create_dataset(f"#refs#/{len(file.get('#refs#', ()))}", data=content).ref

        for boxes, shade in (("detected", 50), ("labeled", 200)):
            pairs = []
            for pair in range(5):
                people = np.empty((10, 2), h5py.ref_dtype)
                for person in range(2):
                    for number in range(10):
                        pixels = np.full((3, 8, 16), shade + pair, np.uint8)
                        pixels[0] = 10 * person
                        people[number, person] = cell(pixels if number in (0, 1, 5) else np.zeros(2, np.uint64))
                pairs.append(file.create_dataset(f"#refs#/{boxes}{pair}", data=people, dtype=h5py.ref_dtype).ref)
            file.create_dataset(boxes, data=np.array([pairs], h5py.ref_dtype), dtype=h5py.ref_dtype)
        sets = [cell(np.array([[1 + number % 5, 2], [1, 2]], np.float64)) for number in range(20)]
        file.create_dataset("testsets", data=np.array([sets], h5py.ref_dtype), dtype=h5py.ref_dtype)
    return path
