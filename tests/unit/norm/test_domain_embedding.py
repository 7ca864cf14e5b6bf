"""A vector for each domain: found by name, whatever the order of a state, and refused where the domain is not known."""

from __future__ import annotations

import pytest
import torch

from reid.errors import ConditionError, ConfigError
from reid.norm import Given, add_domain, camera_batchnorm, convert_norm, domains_of, extract
from reid.norm.convert import domain_layers, norm_layers
from reid.norm.domain_embedding import DomainEmbedding

IMAGES = torch.zeros(3, 2)


def layer(*names: str) -> DomainEmbedding:
    """The vector of a domain is filled with its number."""
    made = DomainEmbedding(4, names)
    made.vectors.data[:] = torch.arange(float(len(made.vectors)))[:, None]
    return made


def numbers(made: torch.nn.Module, domain: object = None) -> list[float]:
    found: torch.Tensor = Given(made)(IMAGES, domain)
    return found[:, 0].tolist()


def test_each_image_gets_the_vector_of_its_domain() -> None:
    made = layer("a", "b", "c")
    assert numbers(made, ["c", "a", "b"]) == [2, 0, 1]
    assert numbers(made, 1) == [1, 1, 1]
    assert numbers(made, torch.tensor([[0.5, 0.0, 0.5]] * 3)) == [1, 1, 1]
    assert numbers(layer()) == [0, 0, 0]


def test_an_unknown_domain_is_refused() -> None:
    for domain in (None, "d", 3, torch.tensor([0, 1, 5])):
        with pytest.raises(ConditionError) as caught:
            numbers(layer("a", "b", "c"), domain)
        assert "\n" not in str(caught.value)


def test_a_state_loads_by_name() -> None:
    other = layer("b", "a")
    other.load_state_dict(layer("a", "b").state_dict())
    assert numbers(other, "b") == [1, 1, 1]
    with pytest.raises(RuntimeError, match="expected domains"):
        layer("a", "c").load_state_dict(layer("a", "b").state_dict())


def test_domains_are_added_and_extracted() -> None:
    made = layer("a", "b", "c")
    assert domains_of(made) == ("a", "b", "c")
    added = add_domain(made, "d")
    assert numbers(added, "d") == [1, 1, 1], "the mean of all"
    assert numbers(add_domain(made, "d", like="c"), "d") == [2, 2, 2]
    assert numbers(extract(made, "c")) == [2, 2, 2]
    assert domains_of(extract(made, "c")) == ()


def test_it_is_no_norm() -> None:
    made = torch.nn.Sequential(layer("a", "b"))
    assert list(domain_layers(made)) == ["0"]
    assert norm_layers(made) == {}
    with pytest.raises(ConfigError, match="no BatchNorm"):
        convert_norm(made, camera_batchnorm(["a", "b"]))
