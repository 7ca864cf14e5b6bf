"""Where converted networks run: compiled, exported, in ONNX, on several processes, checkpointed, in half precision,
channels last, as an average, as a copy, in several threads.  Each is compared with the plain eager network.

The wrong variants these tests catch: statistics pooled in the half precision of autocast; a store of the
condition that threads share, or that the compiler cannot guard; a graph for each batch of labels, or one that
holds the labels or the size of the batch as constants; a factorization in the exported graph; statistics of one
process alone, DIAL's mixed before they are summed; running statistics moved again by recomputation.
"""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from helpers.ddp_worker import (
    CASES,
    EVERYWHERE,
    LACKING,
    PROCESSES,
    ROWS,
    WEIGHTS,
    domains,
    images,
    small_network,
    step,
)
from reid.errors import ConditionError
from reid.norm import Condition, DomainPolicy, Given, convert_norm, domains_of, given, recomputing
from reid.norm import condition as condition_module
from reid.norm.condition import current_condition
from reid.norm.convert import norm_layers
from reid.norm.statistics import pool

STATISTICS = ("running_mean", "running_var", "running_cov", "num_batches_tracked")
BATCHES = [(0, 1, 2, 2, 1, 0), (2, 0, 0, 0, 1, 0), (1, 1, 1, 1, 1, 1)]


def labels(values: tuple[int, ...], system: str = "batch") -> Tensor:
    return torch.tensor(values) % len(domains(system))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def same_statistics(network: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    theirs = dict(other.named_buffers())
    kept = {key: value for key, value in network.named_buffers() if key.endswith(STATISTICS)}
    assert kept
    for key, value in kept.items():
        close(value, theirs[key], tolerance)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.grad for key, value in network.named_parameters() if value.grad is not None}


# torch.compile (T20)


@pytest.fixture(autouse=True)
def _quiet_compiler(monkeypatch) -> None:
    """Without its trace, which pytest would collect, the compiler is twice as fast."""
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
def test_one_compiled_graph_for_all_batches_of_labels(system: str, training: bool) -> None:
    """T20: outputs, running statistics and gradients of three batches are those of the eager network."""
    network = small_network(system).train(training)
    network = network if system == "batch" else network[:3]  # one layer of the system shows it
    eager, x = copy.deepcopy(network), images(6)
    run, counter = compiled(network)
    for values in BATCHES:
        found, expected = run(x, labels(values, system)), Given(eager)(x, labels(values, system))
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
    """T20: weights over domains, given or guessed by the network itself."""
    network = small_network(system)[:3]
    eager = copy.deepcopy(network)
    run, counter = compiled(network)
    for start in (0, 3, 6):
        x, weights = images()[start : start + 6], WEIGHTS[start : start + 6] if system == "batch" else None
        close(run(x, weights), Given(eager)(x, weights), 1e-3)
    assert counter.frame_count == 1
    same_statistics(network, eager)


def test_a_compiled_network_takes_int_domains() -> None:
    """The first int is a constant of its graph, the second makes a graph for every other."""
    network = small_network().eval()
    run, counter = compiled(network)
    for domain in (0, 1, 2, 1, 0):
        close(run(images(4), domain), Given(network)(images(4), domain))
    assert counter.frame_count == 2


def test_a_network_compiles_in_a_thread_that_has_seen_no_condition() -> None:
    """The compiler guards what the store holds, so it holds the same before the first pass and after it."""
    network = small_network().eval()
    run, counter = compiled(network)
    with ThreadPoolExecutor(1) as thread:
        found = [thread.submit(run, images(6), labels(values)).result() for values in BATCHES]
    assert counter.frame_count == 1
    for vectors, values in zip(found, BATCHES, strict=True):
        close(vectors, Given(network)(images(6), labels(values)))


def test_a_loop_over_the_labels_present_does_not_compile() -> None:
    """The wrong layer that the tests above are for."""

    def loop(x: Tensor, domain: Tensor) -> Tensor:
        return torch.stack([x[domain == g].mean() for g in domain.unique().tolist()])

    with pytest.raises(RuntimeError, match="data-dependent"):
        torch.compile(loop, fullgraph=True, backend="eager")(images(4), labels((2, 0, 1, 1)))


# torch.export and ONNX (T20)

BATCH = {0: torch.export.Dim("batch", min=2)}
ONNX_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*The axis name. batch will not be used"
)


def served(system: str) -> nn.Module:
    return Given(small_network(system)).eval()


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # the store, which is restored
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("system", ["batch", "bin"])
def test_labels_are_a_live_input_of_the_exported_network(system: str, strict: bool) -> None:
    """T20: one program for other labels and other sizes of the batch."""
    network, x = served(system), images(6)
    shapes = {"images": BATCH, "domain": BATCH}
    program = torch.export.export(network, (x, labels(BATCHES[0])), dynamic_shapes=shapes, strict=strict).module()
    for rows, values in ((6, BATCHES[1]), (2, BATCHES[0]), (5, BATCHES[0])):
        domain = labels(values)[:rows]
        close(program(x[:rows], domain), network(x[:rows], domain))
    assert not torch.allclose(program(x, labels(BATCHES[0])), program(x, labels(BATCHES[2])), atol=1e-2)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # the store, which is restored
@pytest.mark.parametrize("strict", [True, False])
def test_an_int_domain_is_part_of_the_exported_network(strict: bool) -> None:
    network, x = served("batch"), images(6)
    shapes = {"images": BATCH, "domain": None}
    program = torch.export.export(network, (x, 1), dynamic_shapes=shapes, strict=strict).module()
    close(program(x[:3], 1), network(x[:3], 1))


def onnx_session(network: nn.Module, arguments: tuple[Tensor, ...], path: Path) -> tuple[Any, set[str]]:
    """The network in onnxruntime, and the names of its operators."""
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
def test_onnx_with_labels_as_a_live_input(system: str, tmp_path: Path) -> None:
    """T20: onnxruntime agrees for other labels and sizes; whitening needs no operator that ONNX lacks."""
    network, x = served(system), images(6)
    session, operators = onnx_session(network, (x, labels(BATCHES[0])), tmp_path / "network.onnx")
    assert not any(word in name.lower() for name in operators for word in ("cholesky", "triangular", "inverse", "loop"))
    for rows, values in ((6, BATCHES[1]), (2, BATCHES[0]), (5, BATCHES[2])):
        domain = labels(values)[:rows]
        found = session.run(None, {"images": x[:rows].numpy(), "domain": domain.numpy()})[0]
        close(torch.from_numpy(found), network(x[:rows], domain).detach())


@ONNX_WARNINGS
def test_onnx_of_a_network_that_guesses_its_domains(tmp_path: Path) -> None:
    """T20: WBN needs images only; its branch is in the graph."""
    network, x = served("wbn"), images(6)
    session, _ = onnx_session(network, (x,), tmp_path / "network.onnx")
    for rows in (6, 3):
        close(torch.from_numpy(session.run(None, {"images": x[:rows].numpy()})[0]), network(x[:rows]).detach())


# Two processes (T21)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found in every case."""
    folder = tmp_path_factory.mktemp("processes")
    worker = Path(__file__).parents[2] / "helpers" / "ddp_worker.py"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    outs = [folder / f"{rank}.pt" for rank in range(PROCESSES)]
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(folder / "store"), str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * PROCESSES, said
    return [torch.load(out, weights_only=True) for out in outs]


def compare(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """Outputs, gradients and buffers of all processes against those of one process on the whole batch."""
    close(torch.cat([part["output"] for part in parts]), whole["output"], 1e-3)
    for part in parts:
        for key, expected in whole["gradients"].items():
            if expected is not None:  # DDP gives the mean over processes
                scale = float(expected.abs().max()) + 1
                close(part["gradients"][key] * PROCESSES / scale, expected / scale, 1e-3)
        for key, expected in whole["buffers"].items():
            if key.endswith(STATISTICS):
                close(part["buffers"][key], expected, 1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sync])
def test_two_processes_are_one(name: str, found: list[dict[str, Any]]) -> None:
    """T21, with exactly one all-reduce a layer."""
    whole = step(CASES[name], slice(None))
    compare([part[name] for part in found], whole)
    layers = len(norm_layers(small_network(CASES[name].system)))
    if not CASES[name].compiled:
        assert [part[name]["calls"] for part in found] == [layers] * PROCESSES
    assert whole["calls"] == 0


def test_processes_that_do_not_synchronize_are_found(found: list[dict[str, Any]]) -> None:
    name = "each process for itself"
    assert [part[name]["calls"] for part in found] == [0] * PROCESSES
    with pytest.raises(AssertionError):
        compare([part[name] for part in found], step(CASES[name], slice(None)))


# Gradient checkpointing (T23)


class Checkpointed(nn.Module):
    """Computes every child again in the backward pass."""

    def __init__(self, network: nn.Module, context_fn: Any) -> None:
        super().__init__()
        self.network, self.context_fn = network, context_fn

    def forward(self, x: Tensor) -> Tensor:
        for child in self.network.children():
            x = checkpoint(child, x, use_reentrant=False, **self.context_fn())
        return x


def train_step(model: nn.Module, domain: int | Tensor) -> None:
    direction = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(3))
    (Given(model)(images(), domain) * direction).sum().backward()


def again_in_full() -> dict[str, Any]:
    """Wrong: the second computation moves the running statistics too."""
    condition = current_condition()
    return {"context_fn": lambda: (given(condition), given(condition))}


DOMAINS = {"int": 1, "labels": torch.tensor(EVERYWHERE), "weights": WEIGHTS}


@pytest.mark.parametrize(
    ("system", "kind"),
    [("batch", kind) for kind in DOMAINS] + [(system, "labels") for system in ("dial", "bin", "dson", "dwt")],
)
def test_gradient_checkpointing_is_exact_and_counts_a_batch_once(system: str, kind: str) -> None:
    """T23."""
    plain = small_network(system)
    again = copy.deepcopy(plain)
    train_step(plain, DOMAINS[kind])
    train_step(Checkpointed(again, lambda: {"context_fn": recomputing()}), DOMAINS[kind])
    assert gradients(plain).keys() == gradients(again).keys()
    assert all(torch.equal(gradients(again)[key], value) for key, value in gradients(plain).items())
    theirs = dict(again.named_buffers())
    assert all(torch.equal(theirs[key], value) for key, value in plain.named_buffers())
    assert all(int(layer.num_batches_tracked.max()) == 1 for layer in norm_layers(again).values())


def test_recomputation_without_the_condition_raises() -> None:
    with pytest.raises(ConditionError, match="Given"):
        train_step(Checkpointed(small_network(), dict), DOMAINS["labels"])


def test_recomputation_with_the_condition_alone_moves_the_statistics_twice() -> None:
    network = small_network()
    train_step(Checkpointed(network, again_in_full), DOMAINS["labels"])
    assert all(int(layer.num_batches_tracked.max()) == 2 for layer in norm_layers(network).values())


# Half precision and channels last


@pytest.mark.parametrize("kind", DOMAINS)
@pytest.mark.parametrize("system", ["batch", "ibn", "bin", "dson", "dial", "gated", "dwt"])
def test_statistics_are_float32_under_autocast(system: str, kind: str) -> None:
    """A layer fed bfloat16 under autocast keeps what it would keep of the same values in float32, to rounding."""
    layer = convert_norm(nn.Sequential(nn.BatchNorm2d(8)), DomainPolicy("camera", domains(system), system=system))
    exact = copy.deepcopy(layer)
    x = (torch.randn(ROWS, 8, 5, 4, generator=torch.Generator().manual_seed(0)) + 10).bfloat16()
    for labels_in_any_order in (False, True):
        run, run_exact = (given_any(m) if labels_in_any_order else Given(m) for m in (layer, exact))
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x, DOMAINS[kind])
        assert y.dtype == torch.bfloat16
        close(y.float(), run_exact(x.float(), DOMAINS[kind]), 0.1)
    assert {value.dtype for value in layer.buffers()} <= {torch.float32, torch.int64}
    same_statistics(layer, exact, 2e-5)


def given_any(model: nn.Module) -> Any:
    """The layers see the rows in the order that they came in."""

    def run(x: Tensor, domain: Any) -> Tensor:
        with given(Condition(domain)):
            return model(x)

    return run


def test_autocast_would_pool_in_half_precision() -> None:
    """The wrong layer that the test above is for."""
    mean = torch.randn(ROWS, 8) + 10
    exact = pool(mean, torch.ones_like(mean), torch.tensor(EVERYWHERE), 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = pool(mean, torch.ones_like(mean), torch.tensor(EVERYWHERE), 3)
    assert not torch.allclose(half.mean.float(), exact.mean, atol=1e-3)


@pytest.mark.parametrize("system", ["batch", "dial", "dwt"])
def test_a_training_step_in_bfloat16_is_near_float32(system: str) -> None:
    network = small_network(system)
    half = copy.deepcopy(network)
    train_step(network, DOMAINS["labels"])
    with torch.autocast("cpu", torch.bfloat16):
        train_step(half, DOMAINS["labels"])
    same_statistics(half, network, 2e-2)
    theirs = gradients(half)
    for key, gradient in gradients(network).items():
        if gradient.numel() > 1:
            assert theirs[key].dtype == torch.float32
            assert torch.cosine_similarity(theirs[key].flatten(), gradient.flatten(), 0) > 0.9, key


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("system", ["batch", "ibn", "bin", "dson", "dial", "transnorm", "gated", "snr", "domainnorm"])
def test_channels_last_is_the_same_and_stays(system: str, training: bool) -> None:
    policy = DomainPolicy("camera", domains(system), system=system)
    layer = convert_norm(nn.Sequential(nn.BatchNorm2d(8)), policy).train(training)
    x = torch.randn(6, 8, 5, 4).to(memory_format=torch.channels_last)
    for domain in (1, labels((0, 0, 1, 1, 1, 1)), labels(BATCHES[1], system)):
        for run in (Given(copy.deepcopy(layer)), given_any(copy.deepcopy(layer))):
            y, expected = run(x, domain), run(x.contiguous(), domain)
            assert y.is_contiguous(memory_format=torch.channels_last)
            close(y, expected, 1e-5)


# Averages, copies and threads


@pytest.mark.parametrize("system", ["batch", "dwt"])
def test_an_average_keeps_every_domain(system: str) -> None:
    """T22 for an exponential average: each domain's statistics are averaged, and the rows keep their names."""
    network = small_network(system)
    average = AveragedModel(Given(network), multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    states = []
    for values in (EVERYWHERE, LACKING):
        Given(network)(images(), labels(values))
        states.append({key: value.clone() for key, value in network.named_buffers()})
        average.update_parameters(Given(network))
    kept: nn.Module = average.module.model
    assert domains_of(kept) == domains(system)
    for key, value in kept.named_buffers():
        if key.endswith(STATISTICS[:3]):
            assert len(value) == 3
            close(value, 0.75 * states[0][key] + 0.25 * states[1][key], 1e-6)
    fresh = small_network(system, seed=5).eval()
    fresh.load_state_dict(kept.state_dict())
    close(Given(fresh)(images(), labels(LACKING)), average.eval()(images(), labels(LACKING)), 1e-6)


@pytest.mark.parametrize("system", ["batch", "dial", "gated", "wbn", "dwt"])
def test_a_deep_copy_is_equal_and_apart(system: str) -> None:
    network = small_network(system)
    twin = copy.deepcopy(network)
    assert domains_of(twin) == domains_of(network)
    before = {key: value.clone() for key, value in network.named_buffers()}
    Given(twin)(images(), labels(EVERYWHERE))
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())
    assert any(not torch.equal(value, before[key]) for key, value in twin.named_buffers())
    Given(network)(images(), labels(EVERYWHERE))
    same_statistics(twin, network, 0)
    close(Given(twin.eval())(images(), 2), Given(network.eval())(images(), 2), 0)


@pytest.mark.parametrize("system", ["batch", "dson", "gated", "dwt"])
def test_four_threads_with_different_conditions(system: str) -> None:
    """T19: a camera, labels, weights and other labels at the same time, each as if alone."""
    network = Given(small_network(system).eval())
    conditions: list[Any] = [1, torch.tensor(EVERYWHERE), WEIGHTS, torch.tensor(LACKING)]

    def serve(domain: Any) -> list[Tensor]:
        with torch.inference_mode():
            return [network(images(), domain) for _ in range(8)]

    serial = [serve(domain)[0] for domain in conditions]
    with ThreadPoolExecutor(4) as threads:
        for expected, answers in zip(serial, threads.map(serve, conditions), strict=True):
            assert all(torch.equal(answer, expected) for answer in answers)


def seen_by_threads() -> list[Any]:
    """The domain that each of four threads sees when all four are inside a pass."""
    barrier = Barrier(4, timeout=30)

    class Meeting(nn.Module):
        def forward(self, x: Tensor) -> Any:
            barrier.wait()
            condition = current_condition()
            barrier.wait()
            return condition

    network = Given(Meeting())
    with ThreadPoolExecutor(4) as threads:
        return [c and c.domain for c in threads.map(lambda camera: network(images(2), camera), range(4))]


def test_the_condition_belongs_to_its_thread(monkeypatch) -> None:
    """T19 without chance: every thread is inside its pass; a store shared by threads is found out."""
    assert seen_by_threads() == [0, 1, 2, 3]
    monkeypatch.setattr(condition_module, "_STATE", SimpleNamespace(condition=None))
    assert seen_by_threads() != [0, 1, 2, 3]
