"""Training for an unlabelled site, end to end: from two manifests to a score there.

Wrong variants that these tests refuse: identities of the unlabelled site that change a bit of the weights; test images
of the unlabelled site that are normalized with the statistics of the labelled one; a resumed training that draws other
unlabelled crops.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from reid.cli import main
from reid.config import Experiment, parse_config
from reid.data.loading import load_crops
from reid.data.manifest import read_manifest
from reid.models.checkpoint import load_checkpoint
from reid.norm import DomainBatchNorm, Given
from reid.records import Split
from reid.training.training_run import train

IDENTITIES, SIZE = 4, (32, 16)


class Interrupted(BaseException):
    """Stands for anything that may stop a process."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def site(root: Path, cast: float, splits: tuple[str, ...]) -> Path:
    """Make crops of people in two cameras with the colour cast of the site; the three shots have these splits."""
    root.mkdir()
    rng, rows = np.random.default_rng(int(100 * cast)), ["path,identity,camera,modality,domain,split"]
    for identity in range(IDENTITIES):
        pattern = np.kron(rng.integers(0, 255, (4, 2, 3)), np.ones((8, 8, 1))) * [1.0, cast, cast]
        for camera in ("c1", "c2"):  # both sites have the same camera names
            for shot, split in enumerate(splits):
                pixels = np.clip(pattern + rng.normal(0, 10, (*SIZE, 3)), 0, 255).astype(np.uint8)
                name = f"{identity}_{camera}_{shot}.png"
                Image.fromarray(pixels).save(root / name)
                rows.append(f"{name},{identity},{camera},visible,person,{split}")
    path = root / "manifest.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The manifest of a labelled site, and that of another site, which also has queries and a gallery."""
    root = tmp_path_factory.mktemp("sites")
    return site(root / "a", 1.0, ("train",) * 3), site(root / "b", 0.4, ("train", "query", "gallery"))


def experiment(sites: tuple[Path, Path], system: str, axis: str = "category", **recipe: Any) -> Experiment:
    settings = {"epochs": 2, "identities_per_batch": IDENTITIES, "visits": 1, "warmup_epochs": 0, "threads": 1}
    table = {
        "data": {"manifests": [str(sites[0])], "unlabelled": [str(sites[1])], "size": SIZE},
        "network": {"backbone": "resnet18_x0_25"},
        "norm": {"axis": axis, "system": system},
        "train": {**settings, "images_per_identity": 6, **recipe},
    }
    return parse_config(table, "test")


def content(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("system", "axis", "names"),
    [
        ("batch", "batch", ()),
        ("batch", "camera", ("c1", "c2", "source/c1", "source/c2")),
        ("batch+entropy", "category", ("person", "source/person")),
        ("dial", "category", ("person", "source/person")),
        ("transnorm", "category", ("person", "source/person")),
        ("dwt+mec", "category", ("person", "source/person")),
        ("wbn", "batch", ("latent-0", "latent-1", "latent-2")),
    ],
)
def test_a_training_resumes_to_the_same_bits_and_scores_at_the_unlabelled_site(
    sites: tuple[Path, Path], tmp_path: Path, system: str, axis: str, names: tuple[str, ...]
) -> None:
    given = experiment(sites, system, axis)

    def interrupt(_: Any) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(given, tmp_path / "a", on_epoch=interrupt)
    weights = [train(given, tmp_path / name) for name in ("a", "b")]
    assert content(weights[0]) == content(weights[1])
    assert load_checkpoint(weights[0]).domains == names
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["target_loss"] > 0 for line in lines] == ["+" in system] * 2
    report = tmp_path / "report.json"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--weights", str(weights[0]), "--data", str(sites[1]), "--json", str(report)])
    assert ended.value.code in (0, None)
    found = {entry["direction"]: entry for entry in json.loads(report.read_text())["results"]}
    assert next(iter(found.values()))["queries"] == 2 * IDENTITIES


def test_no_bit_of_the_weights_depends_on_the_identities_of_the_unlabelled_site(
    sites: tuple[Path, Path], tmp_path: Path
) -> None:
    known = train(experiment(sites, "dwt+mec", epochs=1), tmp_path / "known")
    lines = [line.split(",") for line in sites[1].read_text(encoding="utf-8").splitlines()]
    unknown = sites[1].with_name("unknown.csv")
    text = [lines[0], *([path, "", *rest] for path, _, *rest in lines[1:] if rest[-1] == "train")]
    unknown.write_text("\n".join(",".join(line) for line in text) + "\n", encoding="utf-8")
    other = train(experiment((sites[0], unknown), "dwt+mec", epochs=1), tmp_path / "unknown")
    assert content(known) == content(other)


def test_the_unlabelled_site_has_the_statistics_of_its_own_crops(sites: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = load_checkpoint(train(experiment(sites, "batch"), tmp_path))
    first, inputs = next(m for m in checkpoint.network.modules() if isinstance(m, DomainBatchNorm)), []
    first.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    for domain, manifest in enumerate((sites[1], sites[0])):
        samples = [sample for sample in read_manifest(manifest) if sample.split is Split.TRAIN]
        images = checkpoint.transform.normalise(load_crops(samples, checkpoint.transform))
        with torch.no_grad():
            Given(checkpoint.network)(images, domain)
        torch.testing.assert_close(first.running_mean[domain], inputs.pop().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first.running_mean[0], first.running_mean[1], rtol=1e-2)
