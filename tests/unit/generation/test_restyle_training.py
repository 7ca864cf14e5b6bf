"""A restyler learns in a tiny training, continues to the same bits, and reads back from its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.data.loading import load_crops
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError, WeightsError
from reid.generation import restyle_training
from reid.generation.camera_style import style_distance
from reid.generation.restyle_plan import style_name
from reid.generation.restyle_training import RestyleRecipe, camera_classes, train_restyler
from reid.generation.restyler import Restyler, gram_restyler, load_restyler, measure_maps
from reid.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Profiles
from reid.records import Sample

GAINS = {"bright": (1.0, 0.9, 0.8), "dark": (0.4, 0.3, 0.5), "blue": (0.3, 0.5, 1.0)}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eight crops of each of three cameras, which differ in the gains of their channels."""
    folder, random, found = tmp_path_factory.mktemp("cameras"), np.random.default_rng(0), []
    for camera, gains in GAINS.items():
        for number in range(8):
            blocks = random.integers(60, 256, (4, 2, 3)).repeat(8, 0).repeat(8, 1)
            path = folder / f"{camera}-{number}.png"
            Image.fromarray((blocks * np.array(gains)).astype(np.uint8)).save(path)
            found.append(Sample(path, camera=camera, split="train"))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(0)
    spec, path = NetworkSpec("resnet18_x0_25"), tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_checkpoint(path, Embedder(spec).eval(), spec, EvaluationTransform(32, 16), (), (), {})
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def trained(checkpoint: Checkpoint, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("adain", "wct", "conditional", "dynamic"):
        train_restyler(checkpoint, samples, RestyleRecipe(method, epochs=5), folder / method)
    return folder


def distances(restyler: Restyler, samples: list[Sample], source: str, target: str) -> tuple[float, float]:
    """The mean distance of crops from the style of the target, before and after."""
    crops, others = (
        load_crops([s for s in samples if s.camera == camera], restyler.transform) for camera in (source, target)
    )
    style = measure_maps(restyler.network, others, restyler.transform)
    pairs = (crops, restyler.restyle(crops, f"person/visible/{target}"))
    found = [style_distance(restyler.network.encode(restyler.transform.normalise(one)), style).mean() for one in pairs]
    return float(found[0]), float(found[1])


@pytest.mark.parametrize("method", ["adain", "wct", "conditional", "dynamic"])
@torch.no_grad()
def test_a_restyled_crop_is_nearer_to_the_target_camera(method: str, trained: Path, samples: list[Sample]) -> None:
    lines = [json.loads(line) for line in (trained / method / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["reconstruction_loss"] < 0.35
    restyler = load_restyler(trained / method / "weights.safetensors")
    for source, target in (("bright", "dark"), ("blue", "bright")):
        before, after = distances(restyler, samples, source, target)
        assert after < 0.5 * before
    if method != "wct":
        assert lines[-1]["accuracy"] > 0.9


@torch.no_grad()
def test_the_gram_matrices_need_no_training(checkpoint: Checkpoint, samples: list[Sample]) -> None:
    of_camera = {name: [sample for sample in samples if sample.camera == name] for name in GAINS}
    crops = [(f"person/visible/{name}", load_crops(own, checkpoint.transform)) for name, own in of_camera.items()]
    before, after = distances(gram_restyler(checkpoint, crops), samples, "bright", "dark")
    assert after < 0.5 * before


def test_the_file_is_small_and_gives_the_same_pixels(trained: Path, samples: list[Sample], tmp_path: Path) -> None:
    path = trained / "adain" / "weights.safetensors"
    assert path.stat().st_size < 2**20
    restyler = load_restyler(path)
    restyler.save(tmp_path / "copy.safetensors")
    crops = load_crops(samples[:3], restyler.transform)
    again = load_restyler(tmp_path / "copy.safetensors").restyle(crops, "person/visible/dark")
    assert torch.equal(restyler.restyle(crops, "person/visible/dark"), again)
    assert torch.equal(restyler.restyle(crops[:1], "person/visible/dark"), again[:1])  # whatever else is in the batch
    with pytest.raises(DataError):
        restyler.restyle(crops, "person/visible/nowhere")


class Stop(Exception):  # noqa: N818 - it stands for a kill
    """The training is killed."""


def test_an_interrupted_training_continues_to_the_same_bits(
    checkpoint: Checkpoint, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RestyleRecipe("conditional", epochs=2, seed=3)
    whole = train_restyler(checkpoint, samples, recipe, tmp_path / "whole")
    step = restyle_training.StyleLoop._step
    count = [0]

    def killed(*arguments: object) -> object:
        count[0] += 1
        if count[0] == 25:  # in the second epoch
            raise Stop
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(restyle_training.StyleLoop, "_step", killed)
    with pytest.raises(Stop):
        train_restyler(checkpoint, samples, recipe, tmp_path / "killed")
    monkeypatch.undo()
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 1
    continued = train_restyler(checkpoint, samples, recipe, tmp_path / "killed")
    pairs = zip(whole.network.state_dict().values(), continued.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(ConfigError):  # the folder of another method, and of another recipe
        train_restyler(checkpoint, samples, RestyleRecipe("adain", epochs=2, seed=3), tmp_path / "killed")
    with pytest.raises(ConfigError):
        train_restyler(checkpoint, samples, RestyleRecipe("conditional", epochs=3, seed=3), tmp_path / "killed")


def test_profiles_lend_their_moments(trained: Path, samples: list[Sample]) -> None:
    restyler = load_restyler(trained / "adain" / "weights.safetensors")
    channels = restyler.network.known.mean.shape[1]
    profiles = Profiles(
        ("dark",), (9,), {"norm": torch.full((1, channels), 0.25)}, {"norm": torch.full((1, channels), 4.0)}
    )
    other = restyler.with_profile(profiles, "dark", "person/visible/dark", "norm")
    images = restyler.transform.normalise(load_crops(samples[:2], restyler.transform))
    index = torch.full((2,), restyler.styles.index("person/visible/dark"))
    with torch.no_grad():
        _, changed = other.network(images, index)
        _, before = restyler.network(images, index)
    np.testing.assert_allclose(changed.mean((2, 3)), np.full((2, channels), 0.25), atol=1e-4)
    np.testing.assert_allclose(changed.std((2, 3), correction=0), np.full((2, channels), 2.0), rtol=1e-3)
    assert not torch.allclose(changed, before)
    assert other.with_profile(profiles, "dark", "person/visible/new", "norm").styles == (
        *restyler.styles,
        "person/visible/new",
    )


def test_cameras_take_the_place_of_identities(samples: list[Sample]) -> None:
    vehicle = Sample("v.png", camera="dark", category="vehicle")
    unknown = Sample("u.png")
    generated = Sample("g.png", camera="dark", split="train", generated=True)
    found = camera_classes([*samples, vehicle, unknown, generated])
    assert [style_name(sample) for sample in found] == [f"person/{sample.identity}" for sample in found]
    assert len(found) == len(samples)
    for wrong in (samples[:8], [], [unknown, unknown], [*samples[:8], samples[8]]):
        with pytest.raises(DataError):
            camera_classes(wrong)


def test_other_files_are_refused(checkpoint: Checkpoint, trained: Path, tmp_path: Path) -> None:
    for path in (Path(checkpoint.source), tmp_path / "missing.safetensors"):
        with pytest.raises(WeightsError):
            load_restyler(path)
    content = (trained / "adain" / "weights.safetensors").read_bytes()
    for number, damaged in enumerate((content[: len(content) // 2], content.replace(b"kernel_size", b"kernel_xxxx"))):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(WeightsError):
            load_restyler(path)
