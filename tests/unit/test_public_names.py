"""``import reid`` offers the public names, and costs nothing until one of them is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import reid
from reid.errors import DataError
from reid.records import Embeddings, Sample

SOURCE = ast.parse(Path(str(reid.__file__)).read_text(encoding="utf-8"))
SAMPLES = (
    Sample(Path("crops/1.jpg"), "anna", "door", split="query", time=datetime(2024, 5, 31, 16, 20), track="t1"),
    Sample(Path("crops/2.jpg"), "007", "yard", "infrared", "vehicle", "train"),
)


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def names_for_type_checkers() -> set[str]:
    """Return what the block under ``if TYPE_CHECKING`` defines in public."""
    (block,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    imported = {
        alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname
    }
    assigned = {target.id for node in block.body if isinstance(node, ast.Assign) for target in node.targets}
    return imported | assigned


def test_importing_reid_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "pydantic", "reid.records")
    assert in_a_new_process(f"import reid, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    names = set(dir(reid))
    assert names == names_for_type_checkers() | {"__version__"} == set(reid.__all__)
    assert {
        "Checkpoint", "Embeddings", "Gallery", "Given", "Profiles", "Sample", "calibrate", "camera_batchnorm",
        "convert_norm", "domain_batchnorm", "embed", "evaluate", "load_checkpoint", "modality_batchnorm",
        "read_manifest", "read_samples",
    } <= names  # fmt: skip
    for name in names - {"__version__"}:
        assert getattr(reid, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'embedd'"):
        _ = reid.embedd


def test_ten_lines_from_crops_to_a_gallery(tiny_street: Path, plain_weights: Path, tmp_path: Path) -> None:
    samples = reid.read_samples(str(tiny_street / "street-a" / "manifest.csv"))
    checkpoint = reid.load_checkpoint(str(plain_weights))
    checkpoint = checkpoint.with_profiles(reid.calibrate(checkpoint, samples))
    embeddings = reid.embed(checkpoint, samples)
    report = reid.evaluate(embeddings)
    reid.Gallery.build(embeddings).save(str(tmp_path / "gallery"))
    assert "visible->infrared" in str(report)
    gallery = reid.Gallery.open(str(tmp_path / "gallery"))
    ranking = gallery.search(embeddings.vectors[:1], 1, fingerprint=checkpoint.fingerprint)
    assert ranking.answers(0)[0][1] == pytest.approx(1, abs=1e-5)


def test_the_shipped_weights_need_no_path() -> None:
    assert reid.load_checkpoint().source.endswith("street.safetensors")


def test_several_sources_are_read_one_after_the_other(tiny_street: Path) -> None:
    folders = [tiny_street / name for name in ("street-a", "street-b")]
    both = reid.read_samples(*folders)
    assert both == reid.read_samples(folders[0]) + reid.read_manifest(str(folders[1] / "manifest.csv"))


def test_samples_go_through_a_frame_unchanged() -> None:
    frame = reid.samples_to_frame(SAMPLES)
    assert list(frame.columns) == ["path", "identity", "camera", "modality", "category", "split", "time", "track"]
    assert reid.samples_from_frame(frame) == SAMPLES


def test_missing_cells_and_old_columns_of_a_frame() -> None:
    frame = pd.DataFrame(
        {"path": ["1.jpg", "2.jpg"], "identity": [7.0, np.nan], "split": "train", "domain": ["vehicle", None]}
    )
    frame["time"] = pd.to_datetime(["2024-05-31T16:20:00", None])
    first, second = reid.samples_from_frame(frame, "crops")
    assert (first.path, first.identity, first.category, first.time) == (
        Path("crops/1.jpg"), "7", "vehicle", datetime(2024, 5, 31, 16, 20),
    )  # fmt: skip
    assert (second.identity, second.category, second.time) == ("", "person", None)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"split": "tset"}, '"tset"'), ({"path": ""}, "row 2"), ({"time": "noon"}, '"noon"')],
)
def test_a_wrong_row_of_a_frame_is_named(change: dict[str, str], word: str) -> None:
    rows = [{"path": f"{number}.jpg", "identity": "a", "split": "query", "time": ""} for number in range(2)]
    with pytest.raises(DataError) as caught:
        reid.samples_from_frame(pd.DataFrame([rows[0], rows[1] | change]))
    assert word in str(caught.value)
    assert "row 2" in str(caught.value)


def test_a_frame_needs_the_required_columns() -> None:
    with pytest.raises(DataError, match="identity"):
        reid.samples_from_frame(pd.DataFrame({"path": ["1.jpg"], "split": ["query"]}))


def test_embeddings_become_a_frame() -> None:
    vectors = np.eye(2, 3, dtype=np.float32)
    frame = Embeddings(SAMPLES, vectors, "0123").to_frame()
    assert list(frame["camera"]) == ["door", "yard"]
    np.testing.assert_array_equal(np.stack(list(frame["vector"])), vectors)


def test_a_sample_takes_plain_words_and_refuses_wrong_ones() -> None:
    sample = Sample("1.jpg", modality="infrared", split="train")
    assert sample == Sample(Path("1.jpg"), modality=reid.Modality.INFRARED, split=reid.Split.TRAIN)
    with pytest.raises(DataError, match="gallery"):
        Sample("1.jpg", split="galery")
