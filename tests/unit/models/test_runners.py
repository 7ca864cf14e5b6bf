"""Every runtime gives the embeddings of the eager network, camera by camera, and is refused where it does not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.small_checkpoints import CAMERAS, DOMAIN, IMAGES, camera_network, plain_network, save_network
from reid.errors import ConditionError, ConfigError, WeightsError
from reid.models import runners
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.execution import Execution, executed_as
from reid.models.runners import COMPARED, as_eager, describe_execution
from reid.models.weights.tensor_tables import digest
from reid.pipeline import load_checkpoint as load

RUNTIMES = ("folded", "onnx", "openvino")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path_factory.mktemp("plain"), plain_network()))


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("cameras")
    return load_checkpoint(save_network(folder, camera_network(), ("camera",), CAMERAS))


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    """Networks with the same numbers are exported once, which takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        kept: dict[str, bytes] = {}
        export = runners.export_graph

        def export_once(network: nn.Module, height: int, width: int) -> bytes:
            key = f"{digest(dict(network.state_dict()))} {height} {width}"
            if key not in kept:
                kept[key] = export(network, height, width)
            return kept[key]

        patch.setattr(runners, "export_graph", export_once)
        yield


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_gives_the_embeddings_of_the_eager_network(runtime: str, cameras: Checkpoint) -> None:
    """The cameras of a runtime differ: a graph whose numbers were not replaced would give both the first's."""
    moved = cameras.with_execution(Execution(runtime=runtime))
    for domain in (DOMAIN, 1):
        assert torch.allclose(moved.embed(IMAGES, domain), cameras.embed(IMAGES, domain), atol=2e-5)
    assert functional.cosine_similarity(cameras.embed(IMAGES, 0), cameras.embed(IMAGES, 1)).max() < 0.9999
    assert moved.fingerprint == cameras.fingerprint
    assert "cosine to eager 1.000000" in describe_execution(moved)


@pytest.mark.parametrize("runtime", ["eager", *RUNTIMES])
def test_images_may_be_only_resized(runtime: str, cameras: Checkpoint) -> None:
    pixels = torch.randint(0, 256, (19, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    domain = torch.arange(19) % 2
    expected = cameras.embed(cameras.transform.normalise(pixels), domain)
    moved = cameras.with_execution(Execution(runtime=runtime))
    assert torch.allclose(moved.embed(pixels, domain), expected, atol=2e-5)
    assert not torch.allclose(moved.embed(pixels.float(), domain), expected, atol=1e-2)  # float32 counts as prepared


def test_a_network_without_cameras(plain: Checkpoint) -> None:
    moved = plain.with_execution(Execution(runtime="folded"))
    assert torch.allclose(moved.embed(IMAGES), plain.embed(IMAGES), atol=2e-5)


def test_flip_and_single_images(plain: Checkpoint) -> None:
    flipped = plain.with_flip()
    moved = flipped.with_execution(Execution(runtime="folded"))
    assert torch.allclose(moved.embed(IMAGES[:1]), flipped.embed(IMAGES[:1]), atol=2e-5)


def test_other_embeddings_are_refused(plain: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(runners.FoldedEmbedder):
        def finish(self, features: torch.Tensor) -> torch.Tensor:
            return functional.normalize(super().finish(features) + 0.05)

    monkeypatch.setattr(runners, "FoldedEmbedder", Wrong)
    with pytest.raises(WeightsError, match="other embeddings"):
        plain.with_execution(Execution(runtime="folded")).embed(IMAGES)


def test_not_a_number_is_refused(plain: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(runners.FoldedEmbedder):
        def finish(self, features: torch.Tensor) -> torch.Tensor:
            return super().finish(features) * float("nan")

    monkeypatch.setattr(runners, "FoldedEmbedder", Broken)
    with pytest.raises(WeightsError, match="other embeddings"):
        plain.with_execution(Execution(runtime="folded")).embed(IMAGES)


def test_unknown_cameras_go_to_the_eager_network(cameras: Checkpoint) -> None:
    moved = cameras.with_execution(Execution(runtime="folded"))
    with pytest.raises(ConditionError):
        moved.embed(IMAGES, torch.tensor([0, 1, -1, 0]))
    mixing = cameras.with_unseen_camera_policy("mixture")
    domain = torch.tensor([0, -1, 1, -1])
    found = mixing.with_execution(Execution(runtime="folded")).embed(IMAGES, domain)
    assert torch.allclose(found, mixing.embed(IMAGES, domain), atol=2e-5)


def test_few_folded_networks_are_kept(cameras: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "KEPT", 2)
    many = cameras.with_domains([f"new-{number}" for number in range(3)])
    moved = many.with_execution(Execution(runtime="folded"))
    for domain in range(len(many.domains)):
        moved.embed(IMAGES[:1], domain)
    assert len(moved.runner.get(moved)._bodies) == 2  # type: ignore[attr-defined]
    assert torch.allclose(moved.embed(IMAGES, 0), many.embed(IMAGES, 0), atol=2e-5)


def test_precision_is_part_of_the_fingerprint_and_of_nothing_else(cameras: Checkpoint, tmp_path: Path) -> None:
    moved = cameras.with_execution(Execution(precision="bfloat16"))
    assert moved.fingerprint != cameras.fingerprint
    assert moved.weights == cameras.weights  # so profiles fit both
    assert moved.with_execution(Execution()).fingerprint == cameras.fingerprint
    assert moved.with_flip().fingerprint != cameras.with_flip().fingerprint
    cosine = functional.cosine_similarity(moved.embed(IMAGES, DOMAIN), cameras.embed(IMAGES, DOMAIN))
    assert 0.98 < cosine.min() < 1 - 1e-6
    moved.save(tmp_path / "w.safetensors")
    again = load_checkpoint(tmp_path / "w.safetensors")
    assert again.fingerprint == cameras.fingerprint
    assert again.extra["execution"] == "bfloat16 pillow"


def test_layers_are_watched_in_the_eager_network(plain: Checkpoint) -> None:
    moved = as_eager(plain.with_execution(Execution(runtime="folded")))
    calls: list[nn.Module] = []
    handle = moved.network.neck.register_forward_hook(lambda layer, *_: calls.append(layer))  # type: ignore[union-attr]
    moved.embed(IMAGES)
    handle.remove()
    assert len(calls) == 1


def test_a_checkpoint_can_be_copied_and_sent(plain: Checkpoint) -> None:
    moved = plain.with_execution(Execution(runtime="folded"))
    expected = moved.embed(IMAGES)
    for copied in (copy.deepcopy(moved), pickle.loads(pickle.dumps(moved))):  # noqa: S301
        assert torch.equal(copied.embed(IMAGES), expected)


def test_the_execution_of_a_block_holds_for_what_is_loaded_in_it(tmp_path: Path) -> None:
    path = save_network(tmp_path, plain_network())
    with executed_as(Execution(device="auto", runtime="folded")):
        loaded = load(path)
        assert loaded.execution == replace(Execution(runtime="folded"), device=loaded.execution.device)
        assert load(path, runtime="eager", device="cpu").execution == Execution()
    assert load(path).execution == Execution()
    assert load(path, precision="bfloat16").execution.precision == "bfloat16"


def test_a_device_that_is_not_there_is_one_line(plain: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"device cuda:99: not there; this machine has cpu"):
        plain.with_execution(Execution("cuda:99"))
    with pytest.raises(ConfigError, match="float16: cpu computes in float32 and bfloat16"):
        plain.with_execution(Execution(precision="float16"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"device": "gpu"}, "unknown device"),
        ({"device": "cuda:x"}, "unknown device"),
        ({"precision": "int8"}, "unknown precision"),
        ({"runtime": "tensorrt"}, "unknown runtime"),
        ({"decoder": "opencv"}, "unknown decoder"),
        ({"runtime": "onnx", "precision": "bfloat16"}, "computes in float32"),
        ({"runtime": "openvino", "device": "cuda"}, "runs on the CPU"),
    ],
)
def test_values_that_do_not_exist_or_do_not_go_together(values: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Execution(**values)


def test_the_comparison_takes_few_images() -> None:
    assert COMPARED <= 16
