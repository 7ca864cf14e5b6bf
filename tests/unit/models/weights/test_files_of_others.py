"""Weights of other people: written by Python 2, wrapped, linked, pickled in another way, or made to fill the memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers import transformer_tables as tables
from helpers.python2_pickles import compress_entry, huge_storage, write_python2
from helpers.small_checkpoints import plain_network
from reid.errors import WeightsError
from reid.models.checkpoint import load_checkpoint
from reid.models.embedder import Embedder
from reid.models.weights.tensor_tables import read_table, table_of
from reid.models.weights.transformer_families import recognise_transformer

TABLE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}
PYTHON2 = Path(__file__).parents[5] / "shared" / "faults" / "checkpoints" / "py2_rank1.pth.tar"


def same(got: dict[str, Tensor]) -> bool:
    return got.keys() == TABLE.keys() and all(torch.equal(got[key], tensor) for key, tensor in TABLE.items())


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "weights_only" not in message
    return message


def osnet() -> dict[str, Tensor]:
    """The table of a whole network as torchreid publishes it."""
    table = {key.removeprefix("backbone."): tensor for key, tensor in table_of(plain_network()).items()}
    trunk = {key: tensor for key, tensor in table.items() if not key.startswith(("neck.", "pooling."))}
    neck = torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.BatchNorm1d(512))
    return trunk | {f"fc.{key}": tensor for key, tensor in table_of(neck).items()} | {"classifier.bias": torch.ones(3)}


# Python 2


@pytest.mark.parametrize("number", [np.float64(0.915), np.float32(0.7), np.int64(200), np.float64(-1e300)])
def test_numbers_that_python_2_saved_beside_the_weights_do_no_harm(tmp_path: Path, number: object) -> None:
    write_python2(tmp_path / "w.pth.tar", {"state_dict": TABLE, "rank1": number, "epoch": 60, "arch": "osnet"})
    content = (tmp_path / "w.pth.tar").read_bytes()
    assert b"U\x0anum" not in content
    assert b"U\x08a.weight" in content  # a byte string, which Python 3 does not write
    assert b"_codecs" not in content
    assert same(read_table(tmp_path / "w.pth.tar")[0])


@pytest.mark.skipif(not PYTHON2.exists(), reason="the inputs of other people are not here")
def test_a_checkpoint_of_torchreid_from_python_2_loads() -> None:
    assert load_checkpoint(PYTHON2, "osnet_x0_25").fingerprint == "a28af8ba34a7ad27"


def test_what_a_number_is_made_of_is_checked(tmp_path: Path) -> None:
    """A type of 2 GB would allocate them."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": TABLE, "x": np.bytes_(b"abc")}, path, _use_new_zipfile_serialization=False)
    assert "cannot read" in refusal(path) or "refused" in refusal(path)


# prefixes


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "module.module.",
        "_orig_mod.module._orig_mod.module.", "model.module.", "module.model.", "model.model.", "backbone.backbone.",
        "module.backbone._orig_mod.", "model.backbone.module.", "_orig_mod.model.backbone.backbone.",
        "backbone.model.", "backbone.model.backbone.module.model.",
    ],
)  # fmt: skip
def test_prefixes_of_wrappers_may_stand_in_any_order_and_repeat(tmp_path: Path, prefix: str) -> None:
    torch.save(osnet(), tmp_path / "plain.pth")
    torch.save({prefix + key: tensor for key, tensor in osnet().items()}, tmp_path / "wrapped.pth")
    plain, wrapped = (load_checkpoint(tmp_path / name, "osnet_x0_25") for name in ("plain.pth", "wrapped.pth"))
    assert wrapped.fingerprint == plain.fingerprint


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.", "module.model.backbone."])
def test_the_trunk_of_another_project_keeps_its_name(tmp_path: Path, prefix: str) -> None:
    """FastReID calls its trunk "backbone" and its neck "heads"; a wrapper around both is removed."""
    table = {"backbone.conv1.weight": torch.ones(1), "heads.bottleneck.0.weight": torch.ones(1)}
    torch.save({prefix + key: tensor for key, tensor in table.items()}, tmp_path / "w.pth")
    assert read_table(tmp_path / "w.pth")[0].keys() == table.keys()


@pytest.mark.parametrize("inner", ["_orig_mod.", "module.", "backbone.", "model."])
def test_a_wrapper_around_the_trunk_only_is_removed(tmp_path: Path, inner: str) -> None:
    torch.save({f"backbone.{inner}conv1.weight": torch.ones(1), "heads.weight": torch.ones(1)}, tmp_path / "w.pth")
    assert set(read_table(tmp_path / "w.pth")[0]) == {"backbone.conv1.weight", "heads.weight"}


def test_two_tensors_that_get_one_name_are_refused(tmp_path: Path) -> None:
    torch.save({"module.a.weight": torch.ones(1), "a.weight": torch.zeros(1)}, tmp_path / "w.pth")
    assert "a.weight" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("nests", [["model", "state_dict"], ["state_dict", "model", "state_dict"], ["model", "model"]])
def test_tables_inside_tables(tmp_path: Path, nests: list[str]) -> None:
    content: object = TABLE
    for nest in nests:
        content = {nest: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    assert same(read_table(tmp_path / "w.pth")[0])


# pickles


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_another_protocol_is_named_with_the_remedy(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    content = {"state_dict": TABLE, "raw": b"1"}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert f"protocol {protocol}" in message
    assert "torch.save(" in message


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_python_is_named(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"conv1.weight": np.ones((2, 2), np.float32)}, protocol=protocol))
    message = refusal(path)
    assert "pickle" in message
    assert "torch.save(" in message


# names and links


@pytest.mark.parametrize(
    "name", ["W.SAFETENSORS", "w.SafeTensors", "w.safetensors", "w.bin", "w", "w.SAFETENSORS.part"]
)
def test_safetensors_are_recognised_under_any_name(tmp_path: Path, name: str) -> None:
    save_file(TABLE, tmp_path / name)
    assert same(read_table(tmp_path / name)[0])


def test_links_are_followed_and_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    save_file(TABLE, tmp_path / "blobs" / "0a1b")
    torch.save(TABLE, tmp_path / "blobs" / "2c3d")
    (tmp_path / "w.safetensors").symlink_to(Path("blobs") / "0a1b")
    (tmp_path / "current").symlink_to("w.safetensors")
    (tmp_path / "w.PTH.TAR").symlink_to(tmp_path / "blobs" / "2c3d")
    os.link(tmp_path / "blobs" / "0a1b", tmp_path / "hard.pth")
    for name in ("w.safetensors", "current", "w.PTH.TAR", "hard.pth"):
        assert same(read_table(tmp_path / name)[0])
    (tmp_path / "gone.pth").symlink_to("nowhere.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    assert "nowhere.pth" in refusal(tmp_path / "gone.pth")
    assert "link" in refusal(tmp_path / "loop.pth")


# memory

BOUNDED = """
import resource, sys
from pathlib import Path
import torch
from reid.errors import ReidError
from reid.models.checkpoint import load_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_checkpoint(Path(sys.argv[1]), sys.argv[2] or None)
except ReidError as error:
    print(error)
else:
    print("loaded")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def refused_in_little_memory(path: Path, backbone: str = "") -> str:
    """The one line that loading a file gives in a process of its own, which may not need 300 MB for it."""
    found = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(path), backbone], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    message, megabytes = found.stdout.splitlines()
    assert str(path) in message
    assert int(megabytes) < 300
    return message


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2**28 // 4)}, path)
    compress_entry(path, "data/0", 2**28)
    assert path.stat().st_size < 2**20
    assert "compressed" in refused_in_little_memory(path, "osnet_x0_25")


def test_sizes_that_the_file_does_not_hold_are_refused(tmp_path: Path) -> None:
    for numbers in (2**40, 2**62, -1):
        huge_storage(tmp_path / "w.pth", numbers)
        assert "cannot read" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**10),
        torch.empty(10**6, 10**6, device="meta"),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (10**10,), check_invariants=False),
        torch.zeros(2, dtype=torch.complex64),
    ],
)
def test_tensors_that_are_larger_than_their_memory_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"state_dict": {**TABLE, "pixel_mean": tensor}}, tmp_path / "w.pth")
    assert "pixel_mean" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_pretrained_files_of_solider_have_other_prefixes(prefix: str, tmp_path: Path) -> None:
    """They hold the table under "teacher", with a head of the pre-training."""
    shapes = tables.solider(prefix) | ({"head.mlp.0.weight": (5, 768)} if prefix else {})
    small = {f"module.{key}": torch.zeros(1) for key in shapes}
    torch.save({"teacher": small, "epoch": 3}, tmp_path / "w.pth")
    read, _ = read_table(tmp_path / "w.pth")
    origin = recognise_transformer(read, "solider_swin_tiny")
    with torch.device("meta"):
        network = Embedder(origin.spec)
    ours, left_out = origin.tensors_for(network.backbone, read)
    assert set(ours) == set(network.state_dict())
    assert ("head.mlp.0.weight" in left_out) == bool(prefix)
