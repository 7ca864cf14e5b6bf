"""Files of tensors: what is read, what is refused, and that nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reid.errors import WeightsError
from reid.models.weights.tensor_tables import digest, load_strictly, packed, read_table, table_of, unpacked
from reid.norm.tensor_file import write_table

TABLE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


class Touch:
    """A pickle of this makes a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def same(got: dict[str, torch.Tensor]) -> bool:
    return got.keys() == TABLE.keys() and all(
        torch.equal(got[k], t) and got[k].dtype == t.dtype for k, t in TABLE.items()
    )


@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar", "w.pt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_training_programs_save_is_read(
    tmp_path: Path, name: str, zipped: bool, nest: str | None, prefix: str
) -> None:
    table: dict[str, object] = {prefix + key: tensor for key, tensor in TABLE.items()}
    content = table if nest is None else {nest: table, "epoch": 3, "optimizer": {"lr": 0.1, "state": [1, None]}}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    table_read, metadata = read_table(tmp_path / name)
    assert same(table_read)
    assert metadata == {}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("number", [np.float64(0.915), np.float32(0.915), np.int64(7)])
def test_numbers_of_numpy_beside_the_weights_do_no_harm(tmp_path: Path, number: object, zipped: bool) -> None:
    """torchreid saves the rank-1 it reached so."""
    content = {"state_dict": TABLE, "rank1": number}
    torch.save(content, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=zipped)
    assert same(read_table(tmp_path / "w.pth.tar")[0])


def test_numbers_under_the_name_that_numpy_1_gave_them(tmp_path: Path) -> None:
    path = tmp_path / "w.pth.tar"
    torch.save({"state_dict": TABLE, "rank1": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old, new = b"cnumpy.core.multiarray\nscalar", b"cnumpy._core.multiarray\nscalar"
    assert new in content
    path.write_bytes(content.replace(new, old))
    assert same(read_table(path)[0])


def test_arrays_of_numpy_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": TABLE, "history": np.ones(3)}, tmp_path / "w.pth")
    assert "_reconstruct" in refusal(tmp_path / "w.pth")


def test_the_prefix_of_a_compiled_network_is_removed(tmp_path: Path) -> None:
    torch.save({f"module._orig_mod.{key}": tensor for key, tensor in TABLE.items()}, tmp_path / "w.pth")
    assert same(read_table(tmp_path / "w.pth")[0])


def test_an_unfinished_download_is_read_by_its_final_suffix(tmp_path: Path) -> None:
    write_table(tmp_path / "w.safetensors", TABLE, {})
    (tmp_path / "w.safetensors").rename(tmp_path / "w.safetensors.part")
    assert same(read_table(tmp_path / "w.safetensors.part")[0])


def test_safetensors_are_read_and_written_with_their_metadata(tmp_path: Path) -> None:
    write_table(tmp_path / "new" / "w.safetensors", TABLE, {"who": "me"})
    table, metadata = read_table(tmp_path / "new" / "w.safetensors")
    assert same(table)
    assert metadata == {"who": "me"}
    save_file(TABLE, tmp_path / "bare.safetensors")
    assert read_table(tmp_path / "bare.safetensors")[1] == {}


def test_packing_loses_nothing_and_halves_what_float16_holds_exactly() -> None:
    exact = torch.randn(4, 3).half().float()
    table = {
        "exact": exact,
        "third": exact / 3,
        "huge": torch.full((2, 2), 1e6),
        "vector": torch.ones(5),
        "count": torch.tensor(3),
    }
    room = packed(table)
    assert {key: t.dtype for key, t in room.items() if t.dtype != table[key].dtype} == {"exact": torch.float16}
    assert digest(unpacked(room)) == digest(table)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_table(path, TABLE, {})

    def full_disk(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("reid.norm.tensor_file.save_file", full_disk)
    with pytest.raises(WeightsError, match="No space"):
        write_table(path, {"other": torch.ones(1)}, {})
    assert same(read_table(path)[0])


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "trap"
    torch.save({"state_dict": TABLE, "x": Touch(trap)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "w.pth")
    assert "refused" in message
    assert "mkdir" in message
    assert not trap.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Touch(trap), protocol=protocol))
    message = refusal(tmp_path / "w.pth")
    assert "weights_only" not in message  # no advice to switch the safeguard off
    assert not trap.exists()


def test_a_network_in_a_pickle_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    assert "torch.save(" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "got Tensor"),
        ({}, "an empty one"),
        ({"state_dict": {}}, "an empty one"),
        ({"a": 1, "b": "text"}, ": a, b"),
    ],
)
def test_a_file_without_a_table_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert message in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all, only text", b"\x80\x02", b"PK\x03\x04" + bytes(60)])
def test_a_file_of_another_format_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert "cannot read this" in refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(TABLE, path)
    else:
        write_table(path, TABLE, {"who": "me"})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "cannot read this" in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no such weights file" in refusal(tmp_path / "w.pth")
    assert "no such weights file" in refusal(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_changed_bytes_never_end_in_a_traceback(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": TABLE, "more": [1, "a", None]}, path, _use_new_zipfile_serialization=zipped)
    whole, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        try:
            read_table(path)
        except WeightsError:
            refused += 1
    assert refused > 200


class TestLoadStrictly:
    """Every key used, none missing, all sizes right."""

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def test_it_fills_the_network(self) -> None:
        source, target = self.network(), self.network()
        load_strictly(target, table_of(source), "here")
        assert digest(table_of(source)) == digest(table_of(target))

    def test_the_counters_of_old_files_may_be_missing(self) -> None:
        table = {k: v for k, v in table_of(self.network()).items() if "num_batches" not in k}
        target = self.network()
        load_strictly(target, table, "here")
        assert torch.equal(target[0].weight, table["0.weight"])

    def test_all_problems_are_named_at_once_and_nothing_is_loaded(self) -> None:
        table = table_of(self.network()) | {"0.weight": torch.zeros(2, 4)}
        table |= {f"extra{i}": torch.zeros(1) for i in range(5)}
        del table["1.running_mean"]
        target = self.network()
        before = digest(table_of(target))
        with pytest.raises(WeightsError) as caught:
            load_strictly(target, table, "w.pth into net")
        message = str(caught.value)
        assert message.startswith("w.pth into net: the weights do not fit, of 7 tensors ")
        assert "0.weight (expected (2, 3), got (2, 4))" in message
        assert "1 missing: 1.running_mean;" in message
        assert "5 unexpected: extra0, extra1, extra2, extra3, extra4;" in message
        assert "\n" not in message
        assert digest(table_of(target)) == before

    def test_many_keys_are_named_by_module_and_all_are_in_the_note(self) -> None:
        table = table_of(self.network())
        many = [f"extra.{part}.{i}.weight" for part in "ab" for i in range(20)]
        with pytest.raises(WeightsError) as caught:
            load_strictly(self.network(), table | dict.fromkeys(many, torch.zeros(1)), "here")
        assert "40 unexpected: extra.a.* (20), extra.b.* (20);" in str(caught.value)
        assert caught.value.__notes__ == [f"unexpected: {', '.join(many)}"]

    def test_many_keys_without_modules_are_cut_short(self) -> None:
        table = table_of(self.network()) | {f"extra{i}": torch.zeros(1) for i in range(20)}
        with pytest.raises(WeightsError, match=r"20 unexpected: extra0, .*extra7, \.\.\.;") as caught:
            load_strictly(self.network(), table, "here")
        assert "extra19" in caught.value.__notes__[0]

    def test_many_wrong_sizes_are_told_by_example(self) -> None:
        table = {f"{i}.weight": torch.zeros(2, 4) for i in range(10)} | {f"{i}.bias": torch.zeros(2) for i in range(10)}
        target = nn.Sequential(*(nn.Linear(3, 2) for _ in range(10)))
        with pytest.raises(WeightsError, match=r"10 of another size: 0\.weight \(expected \(2, 3\), got") as caught:
            load_strictly(target, table, "here")
        assert "9.weight (expected" in caught.value.__notes__[0]


class TestDigest:
    """The name of a table's content."""

    def test_it_does_not_depend_on_order_or_counters(self) -> None:
        counted = {**dict(reversed(TABLE.items())), "a.num_batches_tracked": torch.tensor(7)}
        assert digest(counted) == digest(TABLE)

    @pytest.mark.parametrize(
        "change",
        [
            {"a.bias": torch.ones(2)},
            {"a.bias": torch.tensor([1.0, 2.0], dtype=torch.float16)},
            {"a.weight": TABLE["a.weight"].view(3, 2)},
            {"b": torch.ones(1)},
        ],
    )
    def test_it_depends_on_everything_else(self, change: dict[str, torch.Tensor]) -> None:
        assert digest({**TABLE, **change}) != digest(TABLE)

    def test_it_is_the_same_everywhere(self) -> None:
        table = {"x": torch.from_numpy(np.arange(3, dtype=np.float32)), "s": torch.tensor(1.5)}
        assert digest(table) == "ecd5b4998467776b164b798d69bc8af4d52df7cc6951e938bbfd85c202f22fd9"


def test_a_table_is_a_copy_even_of_shared_tensors(tmp_path: Path) -> None:
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    network["b"].weight = network["a"].weight
    table = table_of(network)
    with torch.no_grad():
        network["a"].weight.zero_()
    assert table["a.weight"].abs().sum() > 0
    write_table(tmp_path / "w.safetensors", table, {})
    assert torch.equal(read_table(tmp_path / "w.safetensors")[0]["b.weight"], table["a.weight"])
