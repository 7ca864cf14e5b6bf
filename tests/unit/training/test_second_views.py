"""Second views with exchanged channels: which rows get one, in which domain, and what the final network keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.training_loops import make_loop, train_epochs
from reid.config import Experiment, parse_config
from reid.data.manifest import write_manifest
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError
from reid.models.checkpoint import load_checkpoint
from reid.models.weights.tensor_tables import read_table
from reid.records import Sample
from reid.training.loop import make_optimizer
from reid.training.row_choice import choose_rows
from reid.training.second_views import LearnedView, with_second_views
from reid.training.training_data import TrainingSet, load_training_set, read_training_rows
from reid.training.training_run import final_network, train

SAMPLES = [("v", "visible", False), ("v", "visible", False), ("i", "infrared", False), ("v", "visible", True)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four identities with four crops each: two visible, one infrared, and a generated visible one."""
    folder = tmp_path_factory.mktemp("second-views")
    random, samples = np.random.default_rng(0), []
    for identity in range(4):
        for number, (camera, modality, generated) in enumerate(SAMPLES):
            pixels = random.integers(0, 256, (32, 16, 3), dtype=np.uint8)
            if modality == "infrared":
                pixels = pixels[:, :, :1].repeat(3, 2)
            path = folder / f"{identity}-{number}.png"
            Image.fromarray(pixels).save(path)
            samples.append(Sample(path, str(identity), camera, modality, split="train", generated=generated))
    write_manifest(samples, folder / "manifest.csv")
    return folder / "manifest.csv"


def experiment(manifest: Path, view: str, axis: str = "modality", **more: object) -> Experiment:
    recipe = {"epochs": 1, "identities_per_batch": 2, "images_per_identity": 4, "second_view": view, "threads": 1}
    return parse_config(
        {
            "data": {"manifests": [str(manifest)], "size": [32, 16]},
            "norm": {"axis": axis},
            "train": {**recipe, "triplet_margin": "weighted_squared", "triplet_start": 0, "triplet_ramp": 0, **more},
            "augment": {"erase_area": [0.02, 0.4]},
        },
        "test",
    )


def test_visible_labelled_rows_get_a_second_view() -> None:
    data = TrainingSet(
        crops=torch.zeros(5, 3, 4, 4, dtype=torch.uint8),
        targets=torch.tensor([0, 0, 1, -1, -1]),
        modalities=torch.tensor([0, 1, 0, 0, 1]),
        domains=None,
    )
    rows, is_second = with_second_views(torch.tensor([2, 1, 0, 4, 3]), data)
    assert rows.tolist() == [2, 1, 0, 2, 0, 4, 3]
    assert is_second.tolist() == [False, False, False, True, True, False, False]


@pytest.mark.parametrize("view", ["none", "own", "grey"])
def test_second_views_are_normalized_where_the_recipe_says(view: str) -> None:
    loop = make_loop(cameras=True, second_view=view)
    loop.data = TrainingSet(
        loop.data.crops,
        loop.data.targets,
        loop.data.modalities,
        loop.data.domains,
        torch.tensor([2, 3]) if view == "grey" else None,
    )
    rows = torch.arange(6)
    batch = loop._batch(rows, torch.Generator().manual_seed(0))
    plain = make_loop(cameras=True)._batch(rows, torch.Generator().manual_seed(0))
    assert batch.domain is not None
    assert plain.domain is not None
    first = plain.domain.tolist()
    second = {"none": [], "own": first, "grey": [domain + 2 for domain in first]}[view]
    assert batch.domain.tolist() == first + second
    assert batch.labelled == len(batch.images) == len(first + second)
    assert batch.targets.tolist() == plain.targets.tolist() * (2 if second else 1)
    if second:
        spread = (batch.images - batch.images.mean(1, keepdim=True)).flatten(1).abs().amax(1)
        assert int((spread[6:] < spread[:6]).sum()) >= 4  # most second views lost their colour


def test_without_second_views_a_training_draws_the_same_numbers() -> None:
    one, other = (make_loop(second_view="none") for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    images = one._batch(torch.arange(6), generator).images
    state = generator.get_state()
    generator = torch.Generator().manual_seed(1)
    other.augment.draw((6, 3, 32, 16), generator)
    assert torch.equal(generator.get_state(), state)
    assert images.shape == (6, 3, 32, 16)


@pytest.mark.parametrize("view", ["grey", "learned"])
@pytest.mark.parametrize(("axis", "domains"), [("modality", ("infrared", "visible")), ("camera", ("i", "v"))])
def test_the_final_network_keeps_no_grey_domain(
    axis: str, domains: tuple[str, ...], view: str, manifest: Path, tmp_path: Path
) -> None:
    _, rows = read_training_rows(experiment(manifest, view, axis))
    assert rows.domains == domains
    assert rows.training_domains == (*domains, f"grey/{domains[-1]}")
    checkpoint = load_checkpoint(train(experiment(manifest, view, axis), tmp_path / axis))
    assert checkpoint.domains == domains


def test_grey_domains_need_a_norm_with_domains(manifest: Path) -> None:
    with pytest.raises(ConfigError):
        read_training_rows(experiment(manifest, "grey", "batch"))


def test_statistics_are_those_of_recorded_crops(manifest: Path) -> None:
    """The final statistics do not change with the pixels of generated crops, and do with those of recorded ones."""
    resolved, rows = read_training_rows(experiment(manifest, "none"))
    data = load_training_set(rows, EvaluationTransform(32, 16), threads=1, progress=False)
    assert data.recorded is not None
    assert int((~data.recorded).sum()) == 4
    learner = make_loop().learner
    found = []
    for changed in ([], [3], [0]):
        crops = data.crops.clone()
        crops[changed] = 0
        other = TrainingSet(crops, data.targets, data.modalities, data.domains, None, data.recorded)
        network = final_network(learner.embedder, other, rows, resolved, EvaluationTransform(32, 16))
        found.append({key: value for key, value in network.state_dict().items() if key.endswith("running_mean")})
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert not all(torch.equal(value, found[2][key]) for key, value in found[0].items())


def test_a_learned_view_starts_as_the_mean_of_the_channels_and_is_trained() -> None:
    images = torch.randn(2, 3, 6, 4)
    view = LearnedView()
    expected = images.mean(1, keepdim=True).clamp(min=-1).expand(-1, 3, -1, -1)
    assert torch.allclose(view(images), expected, atol=1e-6)
    assert sum(parameter.numel() for parameter in view.parameters()) == 10
    loop = make_loop(second_view="learned")
    loop.learner.learned_view = view
    loop.optimizer = make_optimizer(loop.learner, loop.recipe)
    before = [parameter.clone() for parameter in view.parameters()]
    train_epochs(loop, 1)
    assert not any(torch.equal(old, new) for old, new in zip(before, view.parameters(), strict=True))


def test_the_final_network_has_no_learned_view(manifest: Path, tmp_path: Path) -> None:
    recipe = experiment(manifest, "learned", "batch")
    weights = train(recipe, tmp_path / "run")
    plain = train(experiment(manifest, "none", "batch"), tmp_path / "plain")
    assert [sorted(read_table(path)[0]) for path in (weights,)] == [sorted(read_table(plain)[0])]


def test_generated_crops_are_never_measured_as_held_out_ones(manifest: Path) -> None:
    table = experiment(manifest, "none").model_dump(mode="json")
    table["data"]["held_out"] = 0.5
    resolved, rows = read_training_rows(parse_config(table, "test"))
    kept, held_out, _ = choose_rows(rows, resolved)
    assert len(held_out) == 6  # two identities, without their generated crops
    assert not any(sample.generated for sample in held_out)
    assert {sample.identity for sample in kept.samples}.isdisjoint({sample.identity for sample in held_out})
