"""Training from given weights: every domain gets all of them, with their image preparation, and the run records them.

Wrong variants that these tests refuse: statistics of a new network; weights that are loaded after the domains exist
(one domain has them, or none); a mixture of variances without the variance between the means; the image preparation of
random weights; a name recorded without a fingerprint, so that another file of that name continues the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from reid.config import Experiment, load_config, parse_config
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, ReidError, WeightsError
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.weights.tensor_tables import table_of
from reid.norm import DomainBatchNorm, DomainPolicy, Given, convert_norm, domains_of
from reid.training.initial_weights import load_initial_weights
from reid.training.loop import Learner
from reid.training.training_data import TrainingRows, choose_domain_fields, training_samples
from reid.training.training_run import build_learner, train

SMALL = "resnet18_x0_25"
CAMERAS = ("a", "b", "c")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make crops of two people, two of each in each of three cameras."""
    root = tmp_path_factory.mktemp("crops")
    rows = ["path,identity,camera,split"]
    for identity in range(2):
        for number, camera in enumerate(CAMERAS):
            for shot in range(2):
                name = f"{identity}_{camera}_{shot}.png"
                Image.new("RGB", (16, 32), (90 * identity, 60 * number, 100 * shot)).save(root / name)
                rows.append(f"{name},{identity},{camera},train")
    path = root / "manifest.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def experiment(manifest: Path, weights: object, axis: str = "camera", **network: Any) -> Experiment:
    return parse_config(
        {
            "data": {"manifests": [str(manifest)], "size": [32, 16]},
            "network": {"backbone": SMALL, "weights": str(weights), **network},
            "norm": {"axis": axis},
            "train": {
                "epochs": 1,
                "identities_per_batch": 2,
                "images_per_identity": 6,
                "visits": 1,
                "warmup_epochs": 0,
                "learning_rate": 1e-12,  # changes nothing
                "threads": 1,
            },
        },
        "test",
    )


def learner_of(given: Experiment) -> Learner:
    samples = training_samples(given)
    resolved = choose_domain_fields(given, samples)
    return build_learner(
        resolved, TrainingRows(samples, resolved.norm.domain_fields), load_initial_weights(given.network)
    )


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """Change statistics, scales and shifts as a training does: none of them stays 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim < 3 and not name.endswith("neck.bias"):
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.3)
    return network.eval()


def save_own(path: Path, names: tuple[str, ...] = (), neck: str = "bnneck", system: str = "batch") -> nn.Module:
    """Save a network with an image preparation of its own, and return it."""
    torch.manual_seed(3)
    spec = NetworkSpec(SMALL, "average", neck)
    network: nn.Module = Embedder(spec)
    if names:
        network = convert_norm(network, DomainPolicy("camera", names, system=system))
    shaken(network)
    transform = EvaluationTransform(64, 32, mean=HALF, interpolation="bicubic")
    save_checkpoint(path, network, spec, transform, ("camera",) if names else (), names, {})
    return network


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    save_own(path)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A torchvision file with its classifier, and the network from which it was saved."""
    torch.manual_seed(1)
    network = shaken(models.mobilenet_v2(weights=None))
    path = tmp_path_factory.mktemp("published") / "mobilenet.pth"
    torch.save(network.state_dict(), path)
    return path, network


def features_of(learner: Learner, images: Tensor, domain: int) -> Tensor:
    """Compute the features before the neck in evaluation mode, with the statistics of one domain."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedder = learner.embedder

        def forward(self, x: Tensor) -> Tensor:
            return self.embedder.features(x)

    with torch.no_grad():
        answer: Tensor = Given(Features().eval())(images, domain)
    return answer


def test_every_domain_starts_as_the_published_network(manifest: Path, published: tuple[Path, Any]) -> None:
    path, network = published
    learner = learner_of(experiment(manifest, path, backbone="mobilenet_v2"))
    images = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = network.features(images).mean((2, 3))
    for domain in range(len(CAMERAS)):
        torch.testing.assert_close(features_of(learner, images, domain), right, rtol=1e-4, atol=1e-5)
    norms = [module for module in learner.modules() if isinstance(module, DomainBatchNorm)]
    with torch.no_grad():  # a wrong variant: one domain has the statistics of a new network
        for norm in norms:
            norm.running_mean[1], norm.running_var[1] = 0, 1
    with pytest.raises(AssertionError):
        torch.testing.assert_close(features_of(learner, images, 1), right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features_of(learner, images, 2), right, rtol=1e-4, atol=1e-5)


def test_parts_that_the_weights_lack_are_those_of_a_new_network(manifest: Path, published: tuple[Path, Any]) -> None:
    """Neck and classifier have the same random numbers as without weights."""
    path, _ = published
    filled = table_of(learner_of(experiment(manifest, path, backbone="mobilenet_v2")))
    fresh = table_of(learner_of(experiment(manifest, "", backbone="mobilenet_v2")))
    trunk = [key for key in fresh if key.startswith("embedder.backbone.") and fresh[key].ndim == 4]
    rest = [key for key in fresh if not key.startswith("embedder.backbone.")]
    assert not any(torch.equal(fresh[key], filled[key]) for key in trunk)
    assert all(torch.equal(fresh[key], filled[key]) for key in rest)
    assert {"classifier.weight", "embedder.neck.weight", "embedder.neck.running_var"} <= set(rest)


def mixture(means: Tensor, variances: Tensor) -> tuple[list[float], list[float]]:
    """Mix the rows of (G, C) with equal weight, slowly: number by number."""
    mixed: tuple[list[float], list[float]] = ([], [])
    for column in range(means.shape[1]):
        values = [float(row[column]) for row in means]
        mean = sum(values) / len(values)
        spread = [float(v[column]) + (m - mean) ** 2 for v, m in zip(variances, values, strict=True)]
        mixed[0].append(mean)
        mixed[1].append(sum(spread) / len(spread))
    return mixed


def test_weights_with_domains_give_the_mixture_of_all_domains(manifest: Path, tmp_path: Path) -> None:
    path = tmp_path / "cameras.safetensors"
    source = save_own(path, ("north", "south"))
    learner = learner_of(experiment(manifest, path))
    assert domains_of(learner) == CAMERAS
    old, new = table_of(source), table_of(learner.embedder)
    for name in ("backbone.bn1", "backbone.layer3.1.bn2", "neck"):
        mean, variance = mixture(old[f"{name}.running_mean"], old[f"{name}.running_var"])
        mean_of_variances = old[f"{name}.running_var"].mean(0)
        assert mean_of_variances.sub(torch.tensor(variance)).abs().max() > 1e-3
        for row in range(len(CAMERAS)):
            torch.testing.assert_close(new[f"{name}.running_mean"][row], torch.tensor(mean))
            torch.testing.assert_close(new[f"{name}.running_var"][row], torch.tensor(variance))
        assert torch.equal(new[f"{name}.weight"], old[f"{name}.weight"])


def test_pooling_and_neck_are_copied_where_they_are_the_same(manifest: Path, own: Path) -> None:
    right = table_of(load_checkpoint(own).network)
    same = table_of(learner_of(experiment(manifest, own, "batch")).embedder)
    assert all(torch.equal(same[key], right[key]) for key in right)
    other = table_of(learner_of(experiment(manifest, own, "batch", neck="fc", pooling="gem")).embedder)
    assert all(torch.equal(other[key], right[key]) for key in right if key.startswith("backbone."))
    assert other["pooling.power"] == 3


def test_a_training_starts_from_the_weights_and_their_image_preparation(
    manifest: Path, own: Path, tmp_path: Path
) -> None:
    started = load_checkpoint(train(experiment(manifest, own), tmp_path / "run"))
    assert started.transform == EvaluationTransform(32, 16, mean=HALF, interpolation="bicubic")
    right = table_of(load_checkpoint(own).network)
    found = table_of(started.network)
    kernels = [key for key, tensor in right.items() if tensor.ndim == 4]
    assert max(float((found[key] - right[key]).abs().max()) for key in kernels) < 1e-6
    random = load_checkpoint(train(experiment(manifest, ""), tmp_path / "random"))
    assert random.transform == EvaluationTransform(32, 16)
    others = table_of(random.network)
    assert min(float((others[key] - right[key]).abs().max()) for key in kernels) > 1e-3


def test_a_run_records_the_fingerprint_and_refuses_another_file(manifest: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "start.safetensors", tmp_path / "run"
    save_own(weights)
    given = experiment(manifest, weights)
    train(given, out)
    recorded = load_config(out / "experiment.toml")
    assert recorded.network.weights == f"{weights}#{load_checkpoint(weights).fingerprint}"
    assert train(given, out) == train(recorded, out)  # finished already, under both names

    save_own(weights, neck="none")
    with pytest.raises(ConfigError, match=r"network\.weights: .*#[0-9a-f]{16}\", now .*#") as caught:
        train(given, out)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"start\.safetensors: .*[0-9a-f]{16}"):
        train(recorded, out)


def test_weights_that_cannot_be_trained_are_refused_in_one_line(manifest: Path, own: Path, tmp_path: Path) -> None:
    def refused(message: str, weights: object, **network: Any) -> None:
        with pytest.raises(ReidError, match=message) as caught:
            train(experiment(manifest, weights, **network), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    refused("nowhere.pth", tmp_path / "nowhere.pth")
    refused('"resnet18_x0_25".*"resnet50"', own, backbone="resnet50")
    narrow = tmp_path / "narrow.pth"
    torch.save({"conv1.weight": torch.zeros(16, 3, 7, 7)}, narrow)
    refused(r"narrow\.pth", narrow)
    torch.save([1, 2], tmp_path / "list.pth")
    refused("list.pth", tmp_path / "list.pth")
    whitened = tmp_path / "dwt.safetensors"
    save_own(whitened, ("day", "night"), system="dwt")
    refused('dwt.safetensors: .*"dwt"', whitened)


def test_camera_names_of_the_weights_do_not_matter(manifest: Path, tmp_path: Path) -> None:
    """A domain of the weights may have the name of a new one; the new one starts like all others."""
    path = tmp_path / "same.safetensors"
    save_own(path, CAMERAS)
    state = table_of(learner_of(experiment(manifest, path)).embedder)
    rows = state["backbone.bn1.running_mean"]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])


def test_the_saved_network_differs_between_cameras(tmp_path: Path) -> None:
    """Otherwise a mixture would equal each of its parts."""
    rows = table_of(save_own(tmp_path / "one.safetensors", CAMERAS))["backbone.bn1.running_mean"]
    assert not torch.equal(rows[0], rows[1])
