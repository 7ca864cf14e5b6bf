"""A tiny network as an ONNX file and as an OpenVINO IR, and the same network in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Sizes = Sequence[int | str]
INTEL = 'colours = "BGR"\nscale = 1\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n'
DIMENSION = 16


@dataclass(frozen=True)
class Tiny:
    """Convolution, ReLU, average, linear: weights drawn from ``seed``, ``poison`` added to the bias."""

    seed: int = 0
    poison: float = 0.0

    def weights(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(self.seed)
        shapes = {"kernel": (8, 3, 3, 3), "matrix": (8, DIMENSION), "bias": (DIMENSION,)}
        drawn = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        kernel = drawn["kernel"] - drawn["kernel"].mean((2, 3), keepdims=True)  # edges count, brightness does not
        return {"kernel": kernel, "matrix": drawn["matrix"], "bias": drawn["bias"] + np.float32(self.poison)}

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the unit vectors that the exported network gives for images (B, 3, H, W) in its own channel order."""
        kernel, matrix, bias = (torch.from_numpy(value) for value in self.weights().values())
        features = F.relu(F.conv2d(images, kernel, stride=2)).mean((2, 3))
        return F.normalize(features @ matrix + bias)

    def onnx(
        self,
        path: Path,
        shape: Sizes = (1, 3, 64, 32),
        *,
        last: bool = False,
        kind: str = "FLOAT",
        pooled: bool = True,
        outputs: int = 1,
    ) -> Path:
        """Write it: ``shape`` and ``kind`` of the input, channels ``last``; unless ``pooled`` its output is a map."""
        from onnx import TensorProto, checker, helper, numpy_helper, save

        steps = [helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT)]
        steps.append(helper.make_node("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]))
        steps.append(helper.make_node("Conv", ["first", "kernel"], ["map"], strides=[2, 2]))
        steps.append(helper.make_node("Relu", ["map"], ["positive"]))
        steps.append(helper.make_node("GlobalAveragePool", ["positive"], ["average"]))
        if pooled:
            steps.append(helper.make_node("Flatten", ["average"], ["flat"]))
            steps.append(helper.make_node("Gemm", ["flat", "matrix", "bias"], ["vectors"]))
        else:
            steps.append(helper.make_node("Identity", ["average"], ["vectors"]))
        answer = [shape[0], DIMENSION] if pooled else [shape[0], 8, 1, 1]
        given = [helper.make_tensor_value_info("images", getattr(TensorProto, kind), list(shape))]
        found = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, answer)]
        if outputs > 1:
            found.append(helper.make_tensor_value_info("average", TensorProto.FLOAT, [shape[0], 8, 1, 1]))
        tables = [numpy_helper.from_array(value, name) for name, value in self.weights().items()]
        graph = helper.make_graph(steps, "tiny", given, found, tables if pooled else tables[:1])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        checker.check_model(model)
        save(model, path)
        return path

    def openvino(self, path: Path, shape: Sizes = (1, 3, 64, 32), **changes: object) -> Path:
        """The same as an IR: ``path`` (.xml) and its .bin."""
        from openvino import Core, save_model

        source = self.onnx(path.with_name("source.onnx"), shape, **changes)  # type: ignore[arg-type]
        save_model(Core().read_model(source), path, compress_to_fp16=False)
        source.unlink()
        return path

    def write(self, path: Path, shape: Sizes = (1, 3, 64, 32), card: str | None = INTEL, **changes: object) -> Path:
        """Write either, by the suffix, with a card beside it unless ``card`` is None."""
        if card is not None:
            path.with_suffix(".toml").write_text(card, encoding="utf-8")
        return (self.onnx if path.suffix == ".onnx" else self.openvino)(path, shape, **changes)  # type: ignore[arg-type]
