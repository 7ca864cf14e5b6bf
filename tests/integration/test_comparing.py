"""``reid sweep`` from the command line, and domains added to a finished network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.cli import main
from reid.config import parse_config
from reid.errors import ConfigError
from reid.models.checkpoint import load_checkpoint
from reid.norm import Given
from reid.norm.specialised.adapters import LowRankAdapter, adapted_layers
from reid.training.domain_training import Apart, train_apart, with_new_domain
from reid.training.sweep import _network, run_sweep
from reid.training.sweep_file import load_sweep

FILE = """
title = "Two kinds"
seeds = 1
statistics = ["kept"]

[experiment.data]
manifests = ["{street}/street-a/manifest.csv"]
size = [32, 16]

[experiment.network]
backbone = "resnet18"

[experiment.train]
epochs = 1
identities_per_batch = 2
images_per_identity = 6
warmup_epochs = 0
threads = 1

[[evaluation]]
name = "seen"
manifest = "{street}/street-a/manifest.csv"

[[variation]]
name = "people"
data.categories = ["person"]

[[variation]]
name = "norms"
apart = {{base = "people"}}
data.categories = ["vehicle"]
norm = {{axis = "category", affine = "domain"}}

[[variation]]
name = "series"
apart = {{base = "people", adapters = "series"}}
data.categories = ["vehicle"]
norm = {{axis = "category", affine = "domain"}}

[[variation]]
name = "low rank"
apart = {{base = "series", compress = true}}
data.categories = ["vehicle"]
norm = {{axis = "category", affine = "domain"}}
train.learning_rate = 1e-5
"""


SIZE = (32, 16)
SHOTS = {"person": 3, "vehicle": 70}  # CovNorm wants more places than the 512 channels of the last layer


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people and two vehicles, a coarse colour pattern each, in two visible cameras; others to test."""
    root, rng = tmp_path_factory.mktemp("two"), np.random.default_rng(0)
    (root / "street-a").mkdir()
    rows = ["path,identity,camera,modality,domain,split"]
    for domain, shots in SHOTS.items():
        for identity in range(4):
            pattern = np.kron(rng.integers(0, 255, (4, 2, 3)), np.ones((8, 8, 1)))
            for camera in ("a1", "a2"):
                splits = ["train"] * shots if identity < 2 else ["query", "gallery"]
                for shot, split in enumerate(splits):
                    pixels = np.clip(pattern + rng.normal(0, 15, (*SIZE, 3)), 0, 255).astype(np.uint8)
                    name = f"{domain}_{identity}_{camera}_{shot}.png"
                    Image.fromarray(pixels).save(root / "street-a" / name)
                    rows.append(f"{name},{identity},{camera},visible,{domain},{split}")
    (root / "street-a" / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def file(street: Path, tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(FILE.format(street=street.as_posix()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that the tests share, as interrupted and repeated commands would."""
    return tmp_path_factory.mktemp("runs")


def test_the_command_trains_scores_and_reports(
    file: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = runs, tmp_path / "results" / "two.md"
    main_ok("sweep", file, "--out", out, "--report", report, "--only", "people", "--only", "series")
    shown = capsys.readouterr()
    assert "series, seed 0 (2 of 2)" in shown.err
    page = report.read_text(encoding="utf-8")
    assert shown.out.strip() in page
    for part in (
        "# Two kinds",
        "person visible->visible",
        "vehicle visible->visible",
        "- command: `reid",
        "- date: 20",
    ):
        assert part in page
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1] for line in shown.out.splitlines() if line.startswith("|")
    }
    assert rows["series"][0].strip().replace(",", "").isdigit()  # the table of costs comes last

    main_ok("sweep", file, "--out", out, "--only", "people", "--only", "series", "--json")
    found = json.loads(capsys.readouterr().out)
    scores = {(e["row"], e["domain"]): (e["rank1"], e["mAP"]) for e in found["results"]}
    assert set(scores) == {("people", "person"), ("series", "person"), ("series", "vehicle")}
    assert scores["people", "person"] == scores["series", "person"]  # people stay as they were
    small, large = found["costs"]
    assert large["parameters"] == small["parameters"] + sum(large["of_domains"].values()) - own_norms(out)


def own_norms(out: Path) -> int:
    """Numbers that the plain network has in its norms, and that each domain has for itself afterwards."""
    network = load_checkpoint(out / "people-0" / "weights.safetensors").network
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    return sum(p.numel() for m in norms for p in m.parameters())


def main_ok(*arguments: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code in (None, 0)


@pytest.mark.parametrize("adapters", ["none", "series", "parallel"])
def test_an_added_domain_leaves_the_others_bit_equal(file: Path, runs: Path, tmp_path: Path, adapters: str) -> None:
    comparison, out = load_sweep(file), tmp_path
    people = comparison.variations[0]
    base = _network(people, 0, runs, False)
    images = torch.randn(5, 3, 32, 16)
    before = base.embed(images)

    how = Apart(base="people", adapters=adapters)
    experiment = comparison.variations[1].of_seed(0)
    new = train_apart(base, people.domains[0], how, experiment, out / "new", False)
    assert new.domains == ("person", "vehicle")
    assert torch.equal(new.embed(images, 0), before)
    assert torch.equal(new.embed(images, torch.tensor([1, 0, 1, 0, 0]))[[1, 3, 4]], before[[1, 3, 4]])
    start = with_new_domain(base.network, "person", "vehicle", adapters)
    first = new.embed(images, 1)
    assert not torch.equal(first, before)  # it was trained: the start is the base itself
    with torch.inference_mode():
        torch.testing.assert_close(Given(start.eval())(images, 1), before)

    again = train_apart(base, "person", how, experiment, out / "new", False)
    assert again.fingerprint == new.fingerprint
    assert torch.equal(again.embed(images, 1), first)
    with pytest.raises(ConfigError, match="holds a domain trained on another network"):
        train_apart(base, "person", Apart(base="others", adapters=adapters), experiment, out / "new", False)


def test_training_what_is_shared_would_change_the_others(file: Path, runs: Path) -> None:
    """The wrong variant: a network that goes on training on vehicles is another network for people."""
    base = _network(load_sweep(file).variations[0], 0, runs, False)
    images, before = torch.randn(4, 3, 32, 16), base.embed(torch.ones(4, 3, 32, 16))
    base.network.train()
    base.network(images)  # one batch of others moves the shared statistics
    base.network.eval()
    assert not torch.equal(base.embed(torch.ones(4, 3, 32, 16)), before)


def test_compressed_adapters_are_trained_on_and_read_again(file: Path, runs: Path) -> None:
    comparison = load_sweep(file).only(["low rank"])
    first = run_sweep(comparison, runs)
    assert not first.missing
    assert {score.row for score in first.scores} == {"low rank"}
    assert {score.category for score in first.scores} == {"person", "vehicle"}
    assert not first.missing
    assert run_sweep(comparison, runs) == first
    network = _network(comparison.variations[0], 0, runs, False).network
    kinds = [
        [type(layer.adapter(row)) is LowRankAdapter for row in (0, 1)] for layer in adapted_layers(network).values()
    ]
    assert kinds
    assert all(kind == [False, True] for kind in kinds)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('base = "people", adapters', 'base = "peopel", adapters', 'unknown apart.base above it "peopel"'),
        ('data.categories = ["person"]', "", "apart adds one domain"),
        ('affine = "domain"', 'affine = "shared"', "apart needs norm.axis"),
        ('adapters = "series"', 'adapters = "serial"', "variation.2.apart.adapters"),
        ('data.categories = ["vehicle"]', 'data.categories = ["boat"]', "boat"),
    ],
)
def test_the_command_refuses_in_one_line(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str
) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["sweep", str(file), "--out", str(tmp_path / "runs")])
    output = capsys.readouterr()
    assert caught.value.code == 1
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("error: ")
    assert line in output.err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_run_of_other_keys_is_not_taken(file: Path, runs: Path) -> None:
    comparison = load_sweep(file).only(["people"])
    run_sweep(comparison, runs)
    table = comparison.variations[0].experiment.model_dump(mode="json")
    table["train"]["epochs"] = 2
    assert parse_config(table, "test") != comparison.variations[0].experiment
    file.write_text(file.read_text(encoding="utf-8").replace("epochs = 1\n", "epochs = 2\n", 1), encoding="utf-8")
    found = run_sweep(load_sweep(file).only(["people"]), runs)
    assert not found.scores
    assert "another experiment (train.epochs: 1, now 2)" in found.missing[0]
