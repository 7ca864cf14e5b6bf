"""The state of a whitening layer loads by name; its errors; the operators of its exported graph."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from helpers.whitening_oracles import (
    NAMES,
    SIZE,
    C,
    close,
    images,
    make_layer,
)
from reid.errors import ConditionError, ConfigError, WeightsError
from reid.norm import Condition, DomainBatchNorm, Given, given
from reid.norm.covariance import covariances
from reid.norm.domain_whitening import DomainWhitening

# State.


def test_a_plain_batchnorm_state_loads() -> None:
    x, plain = images(8), nn.BatchNorm2d(C, eps=1e-3)
    plain(x)
    for module in (plain, nn.Sequential(plain)):
        module.eval()
    for names in (NAMES, ("only",)):
        layer = DomainWhitening(C, names, block_size=SIZE)
        layer.load_state_dict(plain.state_dict())
        close(layer.running.diagonal().var, plain.running_var.expand(len(names), -1))
        y = Given(layer.eval())(x, 0)
        shrunk = (1 - 1e-3) * plain.running_var + 1e-3
        expected = (x - plain.running_mean[:, None, None]) / shrunk.sqrt()[:, None, None]
        close(y, expected, 1e-5)
        close(y, plain(x), 1e-2)


def test_a_domain_state_loads_row_by_name() -> None:
    x = images(8, dtype=torch.float64)
    for state in (make_layer().state_dict(), _trained_batchnorm().state_dict()):
        ordered, swapped = (DomainWhitening(C, names, block_size=SIZE).double() for names in (NAMES, ("c", "a", "b")))
        ordered.load_state_dict(state)
        swapped.load_state_dict(state)
        for name in NAMES:
            outputs = [Given(layer.eval())(x, layer.domains.index(name)) for layer in (ordered, swapped)]
            assert torch.equal(*outputs)
        assert (ordered.running.mean[0] - ordered.running.mean[1]).abs().max() > 1e-3


def _trained_batchnorm() -> DomainBatchNorm:
    layer = DomainBatchNorm(C, NAMES).double()
    Given(layer)(images(9, dtype=torch.float64), torch.tensor([0, 1, 2] * 3))
    return layer


def test_states_round_trip_with_one_domain() -> None:
    x = images(8)
    layer = DomainWhitening(C, ("only",), block_size=2)
    layer(x)
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items() if isinstance(value, Tensor)} == {
        "weight": (C,),
        "bias": (C,),
        "running_mean": (C,),
        "running_cov": (3, 2, 2),
        "num_batches_tracked": (),
    }
    other = DomainWhitening(C, ("only",), block_size=2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x), layer.eval()(x))


def test_errors_name_cause_and_remedy() -> None:
    with pytest.raises(ConfigError, match="block_size = 3"):
        DomainWhitening(9, NAMES, block_size=4)
    with pytest.raises(ConfigError, match='"cholesky"'):
        DomainWhitening(8, NAMES, method="choleski")
    with pytest.raises(ConfigError, match="shared"):
        DomainWhitening(8, NAMES, affine="domain")
    layer = make_layer()
    with pytest.raises(ConditionError, match="a, b, c"):
        layer(images(2, dtype=torch.float64))
    with pytest.raises(ConditionError, match=r"domain 3 .* 3$"):
        Given(layer)(images(2, dtype=torch.float64), 3)
    with pytest.raises(ConditionError, match=r"\(B, 3\)"):
        Given(layer)(images(2, dtype=torch.float64), torch.full((2, 2), 0.5))
    with pytest.raises(WeightsError, match=re.escape(str((1, C // SIZE, SIZE, SIZE)))):
        layer.set_statistics(0, covariances(images(2, dtype=torch.float64), torch.tensor([0, 1]), 2, 1), 0)
    with pytest.raises(RuntimeError, match="running_mean"):
        layer.load_state_dict(nn.BatchNorm2d(C + 1).state_dict())
    with pytest.raises(RuntimeError, match="'x', 'y', 'z'"):
        layer.load_state_dict(DomainWhitening(C, ("x", "y", "z"), block_size=SIZE).state_dict())


# Export: what the graph of evaluation holds.


class Under(nn.Module):
    """The layer under a condition that is an input of the graph."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, domain: int | Tensor) -> Tensor:
        with given(Condition(domain)):
            return self.layer(x)


@pytest.mark.parametrize("domain", [1, torch.tensor([0, 2, 1, 1])])
def test_the_exported_graph_has_no_factorization(domain: int | Tensor) -> None:
    x, layer = images(4), make_layer().float()
    Given(layer)(x, domain)  # one step of training: the matrices must be those after it
    layer.eval()
    batch = {0: torch.export.Dim("batch", min=2)}
    shapes = (batch, batch if isinstance(domain, Tensor) else None)
    program = torch.export.export(Under(layer), (x, domain), dynamic_shapes=shapes)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if "linalg" in name or "cholesky" in name]
    other = domain.flip(0)[:3] if isinstance(domain, Tensor) else domain
    close(program.module()(x[:3], other), Given(layer)(x[:3], other), 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_one_compiled_graph_for_all_domains(training: bool) -> None:
    torch._dynamo.reset()
    x, layer = images(4), make_layer().float().train(training)
    plain = copy.deepcopy(layer)
    compiled = torch.compile(Given(layer), fullgraph=True, backend=(counter := CompileCounter()))
    for domain in (torch.tensor([0, 2, 1, 1]), torch.tensor([2, 2, 2, 0])):
        close(compiled(x, domain), Given(plain)(x, domain), 1e-5)
    assert counter.frame_count == 1
    assert torch.equal(layer.running_cov, plain.running_cov)
