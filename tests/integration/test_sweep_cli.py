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
from reid.training.domain_training import DomainAddition, add_trainable_domain, train_added_domain
from reid.training.sweep import _Run, _trained_network, run_sweep
from reid.training.sweep_file import load_sweep

FILE = """
title = "Two categories"
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
add_domain = {{base = "people"}}
data.categories = ["vehicle"]
norm = {{axis = "category", affine = "domain"}}

[[variation]]
name = "series"
add_domain = {{base = "people", adapters = "series"}}
data.categories = ["vehicle"]
norm = {{axis = "category", affine = "domain"}}

[[variation]]
name = "low rank"
add_domain = {{base = "series", compress = true}}
data.categories = ["vehicle"]
norm = {{axis = "category", affine = "domain"}}
train.learning_rate = 1e-5
"""


SIZE = (32, 16)
SHOTS = {"person": 3, "vehicle": 70}  # CovNorm needs more positions than the last layer has channels (512)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make crops of two people and two vehicles in two visible cameras, and of others to test.

    Each identity has a coarse colour pattern of its own.
    """
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
    """A folder of runs that the tests share, as interrupted and repeated commands do."""
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
        "# Two categories",
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
    assert scores["people", "person"] == scores["series", "person"]  # people keep their scores
    small, large = found["costs"]
    assert large["parameters"] == small["parameters"] + sum(large["of_domains"].values()) - own_norms(out)


def own_norms(out: Path) -> int:
    """Count the parameters in the norms of the plain network; each domain has as many of its own afterwards."""
    network = load_checkpoint(out / "people-0" / "weights.safetensors").network
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    return sum(p.numel() for m in norms for p in m.parameters())


def main_ok(*arguments: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code in (None, 0)


@pytest.mark.parametrize("adapters", ["none", "series", "parallel"])
def test_an_added_domain_leaves_the_others_equal_bit_for_bit(
    file: Path, runs: Path, tmp_path: Path, adapters: str
) -> None:
    sweep, out = load_sweep(file), tmp_path
    people = sweep.variations[0]
    base = _trained_network(_Run(people, 0), runs, False)
    images = torch.randn(5, 3, 32, 16)
    before = base.embed(images)

    addition = DomainAddition(base="people", adapters=adapters)
    experiment = sweep.variations[1].of_seed(0)
    new = train_added_domain(base, people.categories[0], addition, experiment, out / "new", False)
    assert new.domains == ("person", "vehicle")
    assert torch.equal(new.embed(images, 0), before)
    assert torch.equal(new.embed(images, torch.tensor([1, 0, 1, 0, 0]))[[1, 3, 4]], before[[1, 3, 4]])
    start = add_trainable_domain(base.network, "person", "vehicle", adapters)
    first = new.embed(images, 1)
    assert not torch.equal(first, before)  # it was trained; at its start the domain computes what the base does
    with torch.inference_mode():
        torch.testing.assert_close(Given(start.eval())(images, 1), before)

    again = train_added_domain(base, "person", addition, experiment, out / "new", False)
    assert again.fingerprint == new.fingerprint
    assert torch.equal(again.embed(images, 1), first)
    other = DomainAddition(base="others", adapters=adapters)
    with pytest.raises(ConfigError, match="now others"):
        train_added_domain(base, "person", other, experiment, out / "new", False)


def test_training_what_is_shared_changes_the_other_domains(file: Path, runs: Path) -> None:
    """A wrong variant: a network whose shared part trains on vehicles computes something else for people."""
    base = _trained_network(_Run(load_sweep(file).variations[0], 0), runs, False)
    images, before = torch.randn(4, 3, 32, 16), base.embed(torch.ones(4, 3, 32, 16))
    base.network.train()
    base.network(images)  # one batch of others moves the shared statistics
    base.network.eval()
    assert not torch.equal(base.embed(torch.ones(4, 3, 32, 16)), before)


def test_compressed_adapters_train_further_and_are_read_again(file: Path, runs: Path) -> None:
    sweep = load_sweep(file).only(["low rank"])
    first = run_sweep(sweep, runs)
    assert not first.missing
    assert {score.row for score in first.scores} == {"low rank"}
    assert {score.category for score in first.scores} == {"person", "vehicle"}
    assert not first.missing
    assert run_sweep(sweep, runs) == first
    network = _trained_network(_Run(sweep.variations[0], 0), runs, False).network
    low_rank = [
        [type(layer.adapter(row)) is LowRankAdapter for row in (0, 1)] for layer in adapted_layers(network).values()
    ]
    assert low_rank
    assert all(pair == [False, True] for pair in low_rank)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('base = "people", adapters', 'base = "peopel", adapters', '"peopel"'),
        ('data.categories = ["person"]', "", "data.categories"),
        ('affine = "domain"', 'affine = "shared"', "norm.affine"),
        ('adapters = "series"', 'adapters = "serial"', "variation.2.add_domain.adapters"),
        ('data.categories = ["vehicle"]', 'data.categories = ["boat"]', "boat"),
    ],
)
def test_the_command_refuses_a_wrong_file_in_one_line(
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


def test_a_run_of_another_experiment_is_not_used(file: Path, runs: Path) -> None:
    sweep = load_sweep(file).only(["people"])
    run_sweep(sweep, runs)
    table = sweep.variations[0].experiment.model_dump(mode="json")
    table["train"]["epochs"] = 2
    assert parse_config(table, "test") != sweep.variations[0].experiment
    file.write_text(file.read_text(encoding="utf-8").replace("epochs = 1\n", "epochs = 2\n", 1), encoding="utf-8")
    found = run_sweep(load_sweep(file).only(["people"]), runs)
    assert not found.scores
    assert "train.epochs: 1, now 2" in found.missing[0]
