"""``reid slim``: one file that works everywhere, one line where it cannot work, and nothing lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from helpers.drawn_sites import draw_site
from helpers.small_checkpoints import TRANSFORM, randomize_norms
from reid.cli.slim import METHODS
from reid.data.manifest import write_manifest
from reid.edge import pruning
from reid.edge.slim_state import StateFile, slim_state_file
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.records import Sample, Split
from reid.retrieval.gallery import Gallery

for needed in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(needed, reason='pip install "reid-multidomain[onnx,openvino]"')

FEW = ("--candidates", 2, "--epochs", 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_manifest(draw_site(folder, people=6), folder / "manifest.csv")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, spec = tmp_path_factory.mktemp("weights") / "w.safetensors", NetworkSpec("resnet18_x0_25")
    torch.manual_seed(0)
    save_checkpoint(path, randomize_norms(Embedder(spec)), spec, TRANSFORM, (), (), {})
    return path


def test_the_small_weights_work_in_every_command(reid, fails, site: Path, weights: Path, tmp_path: Path) -> None:
    out, gallery = tmp_path / "small.safetensors", tmp_path / "gallery"
    code, text, _ = reid("slim", "--data", site, "--weights", weights, "--out", out, *FEW, "--json")
    assert code == 0
    found = json.loads(text)
    assert found["fingerprint"] == load_checkpoint(out).fingerprint
    assert found["multiply_adds"][1] / found["multiply_adds"][0] == pytest.approx(0.5, abs=0.01)
    assert {path.name for path in tmp_path.iterdir()} == {out.name}
    assert out.stat().st_mode & 0o777 == 0o600
    image = next(site.parent.glob("*door*.png"))
    commands = (
        ("embed", "--data", site, "--out", tmp_path / "e.safetensors"),
        ("index", "build", "--data", site, "--out", gallery),
        ("calibrate", "--data", site, "--out", tmp_path / "p.safetensors"),
        ("export", "--out", tmp_path / "small.onnx"),
        ("slim", "--data", site, "--out", tmp_path / "smaller.safetensors", "--epochs", 0, "--candidates", 1),
        ("adapt", "--data", site, "--method", "statistics", "--out", tmp_path / "site.safetensors"),
    )
    for command in commands:
        assert reid(*command, "--weights", out)[0] == 0, command
    assert reid("search", image, "--gallery", gallery)[0] == 0
    assert (
        reid("embed", "--data", site, "--weights", tmp_path / "small.onnx", "--out", tmp_path / "o.safetensors")[0] == 0
    )
    assert (
        reid("embed", "--data", site, "--weights", out, "--runtime", "folded", "--out", tmp_path / "f.safetensors")[0]
        == 0
    )
    assert "osnet_x1_0" in fails("embed", "--data", site, "--weights", out, "--backbone", "osnet_x1_0",
                                 "--out", tmp_path / "x.safetensors")  # fmt: skip


def test_one_file_runs_at_several_widths(reid, fails, site: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "widths.safetensors"
    code, text, _ = reid("slim", "--data", site, "--weights", weights, "--out", out, "--widths", "1,0.5", "--epochs", 1)
    assert code == 0
    assert [line.split("\t")[2].split(":")[0] for line in text.splitlines()] == ["width 1", "width 0.5"]
    fingerprints = set()
    for width in ((), ("--width", 1), ("--width", 0.5)):
        gallery = tmp_path / f"gallery{len(fingerprints)}"
        assert reid("index", "build", "--data", site, "--weights", out, *width, "--out", gallery)[0] == 0
        fingerprints.add(Gallery.open(gallery).embeddings.fingerprint)
        assert reid("search", next(site.parent.glob("*door*.png")), "--gallery", gallery)[0] == 0
    assert len(fingerprints) == 2
    assert reid("export", "--weights", out, "--width", 0.5, "--out", tmp_path / "half.onnx")[0] == 0
    budget = ("export", "--weights", out, "--data", site, "--out", tmp_path / "best.xml", "--budget")
    code, text, err = reid(*budget, "60 s")
    assert code == 0, err
    listed = json.loads((tmp_path / "best.json").read_text())["exports"]
    assert {(row["width"], row["precision"], row["program"]) for row in listed} == {
        (width, precision, program)
        for width in (1.0, 0.5)
        for precision in ("float32", "int8")
        for program in ("ONNX Runtime", "OpenVINO")
    }
    (written,) = [row for row in listed if row["is_written"]]
    assert (written["width"], written["program"]) == (1.0, "OpenVINO")
    assert written["overlap"] > 0.9
    assert load_checkpoint(tmp_path / "best.xml").fingerprint in text
    assert "--budget" in fails(*budget, "soon")
    assert "--budget" in fails(*budget, "5 ms", "--int8")
    assert "--data" in fails("export", "--weights", out, "--out", tmp_path / "best.xml", "--budget", "5 ms")
    common = ("embed", "--data", site, "--out", tmp_path / "e.safetensors")
    assert "0.5" in fails(*common, "--weights", out, "--width", 0.3)
    assert "--width" in fails(*common, "--weights", weights, "--width", 0.5)
    assert "--width" in fails(*common, "--weights", tmp_path / "half.onnx", "--width", 0.5)
    for wrong in ("1", "0.5,x", "2", "0.5,0.5"):
        assert "--widths" in fails("slim", "--data", site, "--weights", weights, "--out", tmp_path / "w.safetensors",
                                   "--widths", wrong)  # fmt: skip


def test_a_training_starts_from_the_small_weights(reid, weights: Path, tmp_path: Path) -> None:
    samples = [
        Sample(one.path, one.identity, one.camera, split=Split.TRAIN) for one in draw_site(tmp_path / "site", people=6)
    ]
    write_manifest(samples, tmp_path / "site" / "manifest.csv")
    small = tmp_path / "small.safetensors"
    assert reid("slim", "--data", tmp_path / "site", "--weights", weights, "--out", small, *FEW)[0] == 0
    experiment = tmp_path / "run.toml"
    experiment.write_text(
        f'[data]\nmanifests = ["{tmp_path}/site/manifest.csv"]\nsize = [64, 32]\n'
        f'[network]\nbackbone = "resnet18_x0_25"\nweights = "{small}"\n'
        "[train]\nepochs = 1\nidentities_per_batch = 3\nvisits = 1\nthreads = 1\n"
    )
    code, _, err = reid("train", experiment, "--out", tmp_path / "run")
    assert code == 0, err
    trained = load_checkpoint(tmp_path / "run" / "weights.safetensors")
    assert trained.spec.channels == load_checkpoint(small).spec.channels != ()


def test_the_command_knows_the_methods() -> None:
    assert pruning.METHODS == METHODS  # it names them without importing torch


def test_an_interrupted_run_goes_on(reid, site: Path, weights: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "small.safetensors"
    common, save = ("slim", "--data", site, "--weights", weights, "--out", out, *FEW), StateFile.save

    def interrupt(self: StateFile, **changes: object) -> None:
        save(self, **changes)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "save", interrupt)
        code, _, err = reid(*common)
        assert code == 130
        assert "same command continues" in err
    assert slim_state_file(out).exists()
    assert not out.exists()
    assert reid(*common)[0] == 0
    assert not slim_state_file(out).exists()


def test_a_full_disk_is_one_line_and_the_old_file_stays(
    fails, reid, site: Path, weights: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "small.safetensors"
    common = ("slim", "--data", site, "--weights", weights, "--out", out)
    assert reid(*common, "--epochs", 0, "--candidates", 1)[0] == 0
    before = out.read_bytes()

    def full(self: StateFile, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    monkeypatch.setattr(StateFile, "save", full)
    assert "No space left" in fails(*common, *FEW)
    assert out.read_bytes() == before


def test_mistakes_are_one_line(fails, reid, site: Path, weights: Path, tmp_path: Path) -> None:
    common, out = ("slim", "--data", site, "--weights", weights), tmp_path / "w.safetensors"
    assert "known: search" in fails(*common, "--out", out, "--method", "searching")
    assert "--target" in fails(*common, "--out", out, "--target", "0.001")
    assert "--target" in fails(*common, "--out", out, "--target", "1")
    assert "--target" in fails(*common, "--out", out, "--target", "nan")
    assert "--data" in fails("slim", "--weights", weights, "--out", out)
    assert "something else" in fails(*common, "--out", site)
    assert weights.name in fails(*common, "--out", weights)
    assert "16 crops" in fails(*common, "--out", out, "--crops", 5)
    assert "osnet_x1_0" in fails(*common, "--out", out, "--backbone", "osnet_x1_0")
    assert reid("export", "--weights", weights, "--out", tmp_path / "m.onnx")[0] == 0
    assert "cannot be pruned" in fails("slim", "--data", site, "--weights", tmp_path / "m.onnx", "--out", out)
    assert not out.exists()
