"""Models run by ONNX Runtime and OpenVINO are networks like any other: same vectors as plain torch, one fingerprint.

The networks are tiny and have random weights.  Caught: bfloat16, OpenVINO's own choice where the processor
has it; colours or a layout that are not converted; images of a batch that change order or are left out where a model
takes one; a request that threads share; a fingerprint of the graph only; a gallery's copy without the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.tiny_models import INTEL, Sizes, Tiny
from reid.errors import ConfigError, ReidError, WeightsError
from reid.models.calibration import calibrate_checkpoint, can_be_calibrated
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.runtime import RuntimeNetwork
from reid.norm import Profiles, camera_batchnorm, convert_norm
from reid.records import Sample, Split

pytest.importorskip("onnx", reason="pip install onnx, to make the models of these tests")
pytest.importorskip("onnxruntime", reason='pip install "reid-multidomain[onnx]"')
pytest.importorskip("openvino", reason='pip install "reid-multidomain[openvino]"')

BOTH = pytest.mark.parametrize("name", ["model.onnx", "model.xml"])


def images(count: int = 5, height: int = 64, width: int = 32) -> Tensor:
    """0..255, red first."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255


def blue_first(rgb: Tensor) -> Tensor:
    return rgb.flip(1)


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


@BOTH
@pytest.mark.parametrize("shape", [(1, 3, 64, 32), ("batch", 3, 64, 32), (1, 64, 32, 3), ("batch", "h", "w", 3)])
def test_vectors_are_those_of_the_network_in_torch(tmp_path: Path, name: str, shape: Sizes) -> None:
    last = shape[3] == 3
    sides = "height = 64\nwidth = 32\n" if "h" in shape else ""
    checkpoint = load_checkpoint(Tiny().write(tmp_path / name, shape, INTEL + sides, last=last))
    vectors = checkpoint.embed(images())
    assert vectors.dtype == torch.float32
    assert difference(vectors.norm(dim=1), torch.ones(5)) < 1e-6
    assert difference(vectors, Tiny()(blue_first(images()))) < 1e-5
    # the oracle refuses colours that are not converted, images in another order, another network
    assert difference(vectors, Tiny()(images())) > 1e-3
    assert difference(vectors, Tiny()(blue_first(images()))[[1, 0, 2, 3, 4]]) > 1e-3
    assert difference(vectors, Tiny(1)(blue_first(images()))) > 1e-3


@BOTH
def test_an_image_has_the_same_vector_in_any_batch(tmp_path: Path, name: str) -> None:
    fixed, free = (
        load_checkpoint(Tiny().write(tmp_path / str(shape[0]) / name, shape))
        for shape in ((1, 3, 64, 32), ("batch", 3, 64, 32))
        if (tmp_path / str(shape[0])).mkdir() is None
    )
    for checkpoint in (fixed, free):
        single = torch.cat([checkpoint.embed(image[None]) for image in images()])
        assert difference(checkpoint.embed(images()), single) < 1e-6
    assert difference(fixed.embed(images()), free.embed(images())) < 1e-6


@BOTH
def test_threads_may_call_at_the_same_time(tmp_path: Path, name: str) -> None:
    checkpoint = load_checkpoint(Tiny().write(tmp_path / name, ("batch", 3, 64, 32)))
    parts = [images()[[row]].repeat(40, 1, 1, 1) for row in range(5)]
    expected = Tiny()(blue_first(images()))
    with ThreadPoolExecutor(5) as pool:
        for found, row in zip(pool.map(checkpoint.embed, parts * 4), expected.repeat(4, 1), strict=True):
            assert difference(found, row.expand(40, -1)) < 1e-5


def test_openvino_computes_in_float32_and_reports_it(tmp_path: Path) -> None:
    from openvino import Core

    path = Tiny().write(tmp_path / "model.xml")
    checkpoint = load_checkpoint(path)
    assert checkpoint.runtime.startswith("OpenVINO ")
    assert checkpoint.runtime.endswith(" float32")
    core = Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16, so OpenVINO has no other choice")
    image = blue_first(images(1))
    its_own_choice = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    answer = torch.nn.functional.normalize(torch.from_numpy(its_own_choice([image.numpy()])[0]))
    assert difference(answer, Tiny()(image)) > 1e-4  # more than the tolerance above


def test_onnx_runtime_reports_its_version(tmp_path: Path) -> None:
    runtime = load_checkpoint(Tiny().write(tmp_path / "model.onnx")).runtime
    assert runtime.startswith("ONNX Runtime ")
    assert runtime.endswith(" float32")


def test_a_network_of_torch_names_no_runtime(plain_weights: Path) -> None:
    assert load_checkpoint(plain_weights).runtime == ""


# the fingerprint and the copy that a gallery keeps


def test_the_fingerprint_is_of_both_files_and_of_the_card(tmp_path: Path) -> None:
    path = Tiny().write(tmp_path / "model.xml")
    first = load_checkpoint(path).fingerprint
    assert load_checkpoint(path).fingerprint == first
    weights = path.with_suffix(".bin")  # other weights, which a hash of the graph only would not notice
    weights.write_bytes((np.fromfile(weights, np.float32) * np.float32(1.01)).tobytes())
    second = load_checkpoint(path).fingerprint
    path.with_suffix(".toml").write_text(INTEL.replace("BGR", "RGB"))
    third = load_checkpoint(path).fingerprint
    path.with_suffix(".toml").write_text(INTEL.replace("scale = 1", "scale = 255"))
    assert len({first, second, third, load_checkpoint(path).fingerprint}) == 4


@BOTH
def test_a_saved_checkpoint_does_not_need_the_files_of_the_model(tmp_path: Path, name: str) -> None:
    path = Tiny().write(tmp_path / name)
    checkpoint = load_checkpoint(path)
    checkpoint.save(tmp_path / "network.safetensors")
    for file in tmp_path.glob("model.*"):
        file.unlink()
    copy = load_checkpoint(tmp_path / "network.safetensors")
    assert copy.fingerprint == checkpoint.fingerprint == copy.weights
    assert (copy.transform, copy.runtime, copy.spec) == (checkpoint.transform, checkpoint.runtime, checkpoint.spec)
    assert torch.equal(copy.embed(images()), checkpoint.embed(images()))


# no BatchNorm left


def crops(tmp_path: Path) -> list[Sample]:
    return [Sample(tmp_path / f"{n}.png", "", f"c{n % 2}", split=Split.TRAIN) for n in range(4)]


@BOTH
def test_there_is_nothing_to_calibrate_and_the_error_names_the_remedy(tmp_path: Path, name: str) -> None:
    checkpoint = load_checkpoint(Tiny().write(tmp_path / name))
    tables = {"bn": torch.zeros(1, 2)}, {"bn": torch.ones(1, 2)}
    profiles = Profiles(("c0",), (2,), *tables, weights=checkpoint.weights)
    assert not can_be_calibrated(checkpoint)
    refused: list[Callable[[], object]] = [
        lambda: calibrate_checkpoint(checkpoint, crops(tmp_path)),
        lambda: checkpoint.with_profiles(profiles),
    ]
    for attempt in refused:
        with pytest.raises(ReidError, match="reid calibrate --normalize centering") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="BatchNorm"):
        convert_norm(checkpoint.network, camera_batchnorm(["c0"]))


# what is refused


def refusal(path: Path, attempt: Callable[[Path], object] = load_checkpoint) -> str:
    with pytest.raises(ReidError) as caught:
        attempt(path)
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)
    return str(caught.value)


def embedded(path: Path) -> Tensor:
    return load_checkpoint(path).embed(images())


@BOTH
@pytest.mark.parametrize(
    ("shape", "changes", "expected"),
    [
        ((1, 3, 64, 32), {"pooled": False}, "(B, D), got (1, 8, 1, 1)"),
        ((1, 3, 64, 32), {"outputs": 2}, "got 1 and 2"),
        ((1, 3, 64, 32), {"kind": "INT8"}, "float32, got int8"),
        ((1, 3, 64, 32), {"kind": "UINT8"}, "float32, got uint8"),
        ((4, 3, 64, 32), {}, "takes 4 images"),
        ((1, 3, "h", 32), {}, "height: "),
        ((1, "c", 64, 32), {}, "got (1, ?, 64, 32)"),
        ((1, 3, 64, 32), {"card": None}, ".toml"),
        ((1, 3, 64, 32), {"card": INTEL + "width = 64"}, "width: the model takes 32 pixels"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, shape: Sizes, changes: dict[str, object], expected: str
) -> None:
    assert expected in refusal(Tiny().write(tmp_path / name, shape, **changes))  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, name: str, poison: float) -> None:
    path = Tiny(poison=poison).write(tmp_path / name)
    assert "not finite" in refusal(path, embedded)


@BOTH
def test_a_size_is_taken_where_the_model_takes_any_and_must_fit_otherwise(tmp_path: Path, name: str) -> None:
    fixed = Tiny().write(tmp_path / name)
    assert "--size says 128" in refusal(fixed, lambda path: load_checkpoint(path, size=(128, 32)))
    assert "64 x 32 pixels, got 48 x 32" in refusal(fixed, lambda path: load_checkpoint(path).embed(images(2, 48)))
    free = load_checkpoint(Tiny().write(tmp_path / name, ("batch", 3, "h", "w")), size=(48, 40))
    assert (free.transform.height, free.transform.width) == (48, 40)
    found = free.embed(images(2, 48, 40))
    assert difference(found, Tiny()(blue_first(images(2, 48, 40)))) < 1e-5


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    path = Tiny().write(tmp_path / "model.xml")
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").unlink()
    assert "model.bin: no such file" in refusal(path)
    path.with_suffix(".bin").write_bytes(weights[: len(weights) // 2])
    cut = refusal(path)
    assert "OpenVINO" in cut
    assert ".cpp" not in cut
    path.with_suffix(".bin").write_bytes(b"")
    assert "OpenVINO" in refusal(path)
    path.with_suffix(".bin").write_bytes(weights)
    path.write_text("<net", encoding="utf-8")
    assert "OpenVINO" in refusal(path)
    graph = Tiny().write(tmp_path / "model.onnx")
    graph.write_bytes(graph.read_bytes()[:200])
    assert "ONNX Runtime" in refusal(graph)
    assert "no such file" in refusal(tmp_path / "other.onnx")


def test_a_copy_without_its_model_is_refused() -> None:
    with pytest.raises(WeightsError, match="got graph"):
        RuntimeNetwork("openvino", {"graph": torch.zeros(1, dtype=torch.uint8)}, "network.safetensors")


@BOTH
def test_the_backbone_is_in_the_file(tmp_path: Path, name: str) -> None:
    path = Tiny().write(tmp_path / name)
    program = "onnx" if name.endswith("onnx") else "openvino"
    assert load_checkpoint(path, program).fingerprint == load_checkpoint(path).fingerprint
    assert '"osnet_x0_25"' in refusal(path, lambda file: load_checkpoint(file, "osnet_x0_25"))


@pytest.mark.parametrize(("name", "package"), [("model.onnx", "onnxruntime"), ("model.xml", "openvino")])
def test_a_missing_package_is_named_with_the_command(
    tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Tiny().write(tmp_path / name)
    monkeypatch.setitem(sys.modules, package, None)
    assert f'pip install "{package}"' in refusal(path)


def with_node(path: Path, node: object) -> Path:
    """Put another operator in front of an ONNX model's nodes."""
    import onnx

    model = onnx.load(path)
    model.graph.node.insert(0, node)
    onnx.save(model, path)
    return path


def endless(name: str) -> object:
    """A Loop whose condition stays true, with the longest trip count."""
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("still_on", TensorProto.BOOL, [])],
    )
    loop = helper.make_node("Loop", ["", ""], [], body=body)
    if name == "Loop":
        return loop
    inner = helper.make_graph([loop], "branch", [], [])
    return helper.make_node("If", ["condition"], [], then_branch=inner, else_branch=inner)


@pytest.mark.parametrize("name", ["Loop", "If"])
def test_a_graph_that_may_never_end_is_refused_before_it_runs(tmp_path: Path, name: str) -> None:
    assert "Loop" in refusal(with_node(Tiny().write(tmp_path / "model.onnx"), endless(name)))


def test_a_loop_of_openvino_and_one_in_a_copy_are_refused(tmp_path: Path) -> None:
    path = Tiny().write(tmp_path / "model.xml")
    path.write_text(path.read_text(encoding="utf-8").replace('type="ReLU"', 'type="TensorIterator"'), encoding="utf-8")
    assert "TensorIterator" in refusal(path)
    graph = with_node(Tiny().write(tmp_path / "model.onnx"), endless("Loop")).read_bytes()
    tables = {"graph": torch.frombuffer(bytearray(graph), dtype=torch.uint8), "channels": torch.tensor([0, 1, 2])}
    with pytest.raises(WeightsError, match="Loop"):
        RuntimeNetwork("onnx", tables, "network.safetensors")


@BOTH
def test_capitals_and_links_of_a_model_are_read(tmp_path: Path, name: str) -> None:
    path = Tiny().write(tmp_path / name)
    expected = load_checkpoint(path).fingerprint
    for file in tmp_path.iterdir():
        file.rename(tmp_path / file.name.upper())
    upper = tmp_path / name.upper()
    assert load_checkpoint(upper).fingerprint == expected
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "current").symlink_to(upper)
    assert load_checkpoint(tmp_path / "links" / "current").fingerprint == expected


def test_both_programs_agree(tmp_path: Path) -> None:
    checkpoints: list[Checkpoint] = [load_checkpoint(Tiny().write(tmp_path / f"model{s}")) for s in (".onnx", ".xml")]
    assert difference(*(checkpoint.embed(images()) for checkpoint in checkpoints)) < 1e-6
    assert checkpoints[0].fingerprint != checkpoints[1].fingerprint


def test_openvino_makes_no_room_for_a_tensor_of_absurd_size(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13

    given = opset13.parameter([1, 3, 64, 32], np.float32, name="images")
    huge = opset13.broadcast(opset13.constant(np.float32(1)), opset13.constant(np.array([2**20, 2**20], np.int64)))
    means = opset13.reduce_mean(given, opset13.constant(np.array([2, 3])), keep_dims=False)
    total = opset13.reduce_sum(huge, opset13.constant(np.array([0, 1])), keep_dims=False)
    model = openvino.Model([opset13.add(means, total)], [given], "bomb")
    openvino.save_model(model, tmp_path / "bomb.xml", compress_to_fp16=False)
    Tiny().write(tmp_path / "tiny.xml")
    (tmp_path / "bomb.toml").write_bytes((tmp_path / "tiny.toml").read_bytes())
    with pytest.raises(WeightsError, match="bytes") as caught:
        load_checkpoint(tmp_path / "bomb.xml")
    assert "\n" not in str(caught.value)
