"""Compiled and exported networks, and those in ONNX, are compared with the plain eager network.

The wrong variants that these tests catch: a condition that the compiler cannot guard; a graph for each batch of domain
indices, or one that holds the indices or the size of the batch as constants; a factorization in the exported graph.
"""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from helpers.ddp_worker import (
    WEIGHTS,
    images,
    small_network,
)
from helpers.deployment import BATCHES, close, domain_indices, gradients, same_statistics
from reid.norm import Given

# torch.compile


@pytest.fixture(autouse=True)
def _quiet_compiler(monkeypatch) -> None:
    """Switch off the trace of the compiler, which pytest would collect; this makes it twice as fast."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])


def compiled(network: nn.Module) -> tuple[Any, CompileCounterWithBackend]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(Given(network), fullgraph=True, backend=counter), counter


@pytest.mark.parametrize(
    ("system", "training"),
    [(system, True) for system in ("batch", "dial", "dson", "bin", "transnorm", "gated", "dwt")]
    + [(system, False) for system in ("batch", "dson", "dwt")],
)
def test_one_compiled_graph_for_all_batches_of_domains(system: str, training: bool) -> None:
    """Outputs, running statistics and gradients of three batches are those of the eager network."""
    network = small_network(system).train(training)
    network = network if system == "batch" else network[:3]  # one layer of the system shows it
    eager, x = copy.deepcopy(network), images(6)
    run, counter = compiled(network)
    for values in BATCHES:
        found, expected = run(x, domain_indices(values, system)), Given(eager)(x, domain_indices(values, system))
        close(found, expected, 1e-3)
        found.square().mean().backward()
        expected.square().mean().backward()
    assert counter.frame_count == 1
    same_statistics(network, eager)
    theirs = gradients(eager)
    assert theirs.keys() == gradients(network).keys()
    for key, gradient in gradients(network).items():
        close(gradient, theirs[key], 1e-3)


@pytest.mark.parametrize("system", ["batch", "wbn", "gated"])
def test_one_compiled_graph_for_weights(system: str) -> None:
    """The weights over domains are given, or predicted by the network."""
    network = small_network(system)[:3]
    eager = copy.deepcopy(network)
    run, counter = compiled(network)
    for start in (0, 3, 6):
        x, weights = images()[start : start + 6], WEIGHTS[start : start + 6] if system == "batch" else None
        close(run(x, weights), Given(eager)(x, weights), 1e-3)
    assert counter.frame_count == 1
    same_statistics(network, eager)


def test_a_compiled_network_takes_int_domains() -> None:
    """The first int is a constant of its graph; the second int makes one graph for all others."""
    network = small_network().eval()
    run, counter = compiled(network)
    for domain in (0, 1, 2, 1, 0):
        close(run(images(4), domain), Given(network)(images(4), domain))
    assert counter.frame_count == 2


def test_a_network_compiles_in_a_thread_without_an_earlier_condition() -> None:
    """The compiler guards the stored condition, so it must be the same before the first pass and after it."""
    network = small_network().eval()
    run, counter = compiled(network)
    with ThreadPoolExecutor(1) as thread:
        found = [thread.submit(run, images(6), domain_indices(values)).result() for values in BATCHES]
    assert counter.frame_count == 1
    for vectors, values in zip(found, BATCHES, strict=True):
        close(vectors, Given(network)(images(6), domain_indices(values)))


def test_a_loop_over_the_labels_present_does_not_compile() -> None:
    """This is the wrong layer that the tests above refuse."""

    def loop(x: Tensor, domain: Tensor) -> Tensor:
        return torch.stack([x[domain == g].mean() for g in domain.unique().tolist()])

    with pytest.raises(RuntimeError, match="data-dependent"):
        torch.compile(loop, fullgraph=True, backend="eager")(images(4), domain_indices((2, 0, 1, 1)))


# torch.export and ONNX


BATCH = {0: torch.export.Dim("batch", min=2)}

ONNX_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*The axis name. batch will not be used"
)


def served(system: str) -> nn.Module:
    return Given(small_network(system)).eval()


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # the store, which is restored
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("system", ["batch", "bin"])
def test_the_domain_is_an_input_of_the_exported_network(system: str, strict: bool) -> None:
    """One program serves other domains and other sizes of the batch."""
    network, x = served(system), images(6)
    shapes = {"images": BATCH, "domain": BATCH}
    program = torch.export.export(
        network, (x, domain_indices(BATCHES[0])), dynamic_shapes=shapes, strict=strict
    ).module()
    for rows, values in ((6, BATCHES[1]), (2, BATCHES[0]), (5, BATCHES[0])):
        domain = domain_indices(values)[:rows]
        close(program(x[:rows], domain), network(x[:rows], domain))
    assert not torch.allclose(program(x, domain_indices(BATCHES[0])), program(x, domain_indices(BATCHES[2])), atol=1e-2)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # the store, which is restored
@pytest.mark.parametrize("strict", [True, False])
def test_an_int_domain_is_part_of_the_exported_network(strict: bool) -> None:
    network, x = served("batch"), images(6)
    shapes = {"images": BATCH, "domain": None}
    program = torch.export.export(network, (x, 1), dynamic_shapes=shapes, strict=strict).module()
    close(program(x[:3], 1), network(x[:3], 1))


def onnx_session(network: nn.Module, arguments: tuple[Tensor, ...], path: Path) -> tuple[Any, set[str]]:
    """Open the network in onnxruntime; return the session and the names of its operators."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    names = ["images", "domain"][: len(arguments)]
    program = torch.onnx.export(
        network,
        arguments,
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=["vectors"],
        dynamic_shapes=dict.fromkeys(names, BATCH),
    )
    program.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == names
    return session, {node.op_type for node in program.model.graph}


@ONNX_WARNINGS
@pytest.mark.parametrize("system", ["batch", "dwt"])
def test_the_domain_is_an_input_of_the_onnx_network(system: str, tmp_path: Path) -> None:
    """Onnxruntime agrees for other domains and sizes; whitening needs no operator that ONNX lacks."""
    network, x = served(system), images(6)
    session, operators = onnx_session(network, (x, domain_indices(BATCHES[0])), tmp_path / "network.onnx")
    assert not any(word in name.lower() for name in operators for word in ("cholesky", "triangular", "inverse", "loop"))
    for rows, values in ((6, BATCHES[1]), (2, BATCHES[0]), (5, BATCHES[2])):
        domain = domain_indices(values)[:rows]
        found = session.run(None, {"images": x[:rows].numpy(), "domain": domain.numpy()})[0]
        close(torch.from_numpy(found), network(x[:rows], domain).detach())


@ONNX_WARNINGS
def test_onnx_of_a_network_that_guesses_its_domains(tmp_path: Path) -> None:
    """WBN needs only images, since its branch is in the graph."""
    network, x = served("wbn"), images(6)
    session, _ = onnx_session(network, (x,), tmp_path / "network.onnx")
    for rows in (6, 3):
        close(torch.from_numpy(session.run(None, {"images": x[:rows].numpy()})[0]), network(x[:rows]).detach())
