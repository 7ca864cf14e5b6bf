"""Absurd and mistyped headers of weights files: one line each, and no memory for what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.small_checkpoints import CAMERAS, camera_network, load_error, plain_network, save_network
from reid.models.checkpoint import load_checkpoint
from reid.models.weights.tensor_tables import digest, read_table

BOUNDED = """
import resource, sys
from pathlib import Path
import torch
from reid.errors import WeightsError
from reid.models.checkpoint import load_checkpoint
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_checkpoint(Path(path))
    except WeightsError as error:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("cameras"), camera_network(), ("camera",), CAMERAS)


def with_header(source: Path, path: Path, change: dict[str, Any], extra: object = None) -> Path:
    """Copy a file with another header; a dotted key is a key inside a table."""
    tensors, metadata = read_table(source)
    header = json.loads(metadata["network"])
    for key, value in change.items():
        outer, _, inner = key.partition(".")
        if inner:
            header[outer][inner] = value
        else:
            header[key] = value
    metadata.pop("check", None)  # whoever wants to harm writes the right checksum too
    text = metadata["extra"] if extra is None else json.dumps(extra)
    save_file(tensors, path, metadata={**metadata, "network": json.dumps(header), "extra": text})
    return path


@pytest.mark.parametrize("value", [5, None, "camera", [5], ["camera", None], {"a": 1}, 1e300, True, [[[["a"]]]]])
@pytest.mark.parametrize("key", ["by", "spec", "transform", "affine", "digest", "system", "names"])
def test_a_value_of_another_type_is_one_line(tmp_path: Path, cameras: Path, key: str, value: object) -> None:
    message = load_error(with_header(cameras, tmp_path / "w.safetensors", {key: value}))
    assert len(message) - len(str(tmp_path)) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transform.height", 60000), ("transform.height", -1), ("transform.width", 10**400), ("transform.width", 64.5),
        ("transform.width", "64"), ("transform.height", True), ("transform.mean", [0, 0]), ("transform.mean", "abc"),
        ("transform.mean", [1e300, 0, 0]), ("transform.std", [0, 1, 1]), ("transform.std", [1, None, 1]),
        ("transform.interpolation", ["bilinear"]), ("transform.flip", "no"), ("transform.flip", 7),
        ("spec.backbone", 3), ("spec.backbone", ["resnet18"]), ("spec.backbone", "x" * 10**6), ("spec.neck", {}),
        ("spec.backbone", "../../etc/passwd"), ("spec.backbone", "resnet50" + "+nonlocal" * 20),
        ("spec.pooling", "no such"), ("system", "no such"), ("names", ["a", "a"]), ("names", ["a", 7]), ("names", []),
        ("names", {"a": 1}), ("by", ["path"]), ("digest", "x" * 10**6),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_one_line(tmp_path: Path, cameras: Path, key: str, value: object) -> None:
    message = load_error(with_header(cameras, tmp_path / "w.safetensors", {key: value}))
    assert len(message) - len(str(tmp_path)) < 600


@pytest.mark.parametrize("extra", [5, [], "text", {"a": 1}, {"unseen": "sometimes"}, {"unseen": ["error"]}])
def test_free_text_of_another_type_is_one_line(tmp_path: Path, cameras: Path, extra: object) -> None:
    load_error(with_header(cameras, tmp_path / "w.safetensors", {}, extra))


@pytest.mark.parametrize("key", ["network", "extra"])
def test_a_header_that_is_nested_deep_is_one_line(tmp_path: Path, cameras: Path, key: str) -> None:
    tensors, metadata = read_table(cameras)
    metadata.pop("check", None)
    save_file(tensors, tmp_path / "w.safetensors", metadata={**metadata, key: "[" * 10**5})
    assert "header" in load_error(tmp_path / "w.safetensors")


def test_names_without_statistics_and_a_network_without_weights_take_no_memory(tmp_path: Path, cameras: Path) -> None:
    tensors = {"one": torch.zeros(1)}
    _, metadata = read_table(cameras)
    save_file(tensors, tmp_path / "empty.safetensors", metadata=metadata)
    names = with_header(cameras, tmp_path / "names.safetensors", {"names": [f"camera {n}" for n in range(200_000)]})
    huge = with_header(
        tmp_path / "empty.safetensors",
        tmp_path / "huge.safetensors",
        {"spec.backbone": "timm:convnext_xxlarge", "digest": digest(tensors), "names": [], "by": []},
    )
    found = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(names), str(huge)], capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    assert "200000 domains" in lines[0]
    for line, path in zip(lines, (names, huge), strict=True):
        assert str(path) in line
        assert int(line.split()[0]) < 300  # MB


def test_a_header_that_is_right_still_loads(tmp_path: Path, cameras: Path) -> None:
    copy = with_header(cameras, tmp_path / "w.safetensors", {"transform.mean": [0, 0, 0], "more": "of a later version"})
    assert load_checkpoint(copy).transform.mean == (0, 0, 0)
    plain = save_network(tmp_path, plain_network())
    assert load_checkpoint(plain).domains == ()
