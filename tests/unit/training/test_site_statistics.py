"""The statistics that a network uses at a site.

A wrong variant that these tests refuse: a mixture of domains that looks at labels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from reid.data.manifest import read_manifest
from reid.models.checkpoint import load_checkpoint
from reid.records import Embeddings, Split
from reid.retrieval.embed import embed
from reid.training.site_statistics import STATISTICS, evaluate_site


def embedded(checkpoint_file: Path, name: str, street: Path) -> Embeddings:
    samples = [s for s in read_manifest(street / "street-a" / "manifest.csv") if s.split is Split.QUERY][:8]
    return embed(STATISTICS[name](load_checkpoint(checkpoint_file), []), samples)


def test_a_mixture_of_domains_needs_no_labels(camera_weights: Path, tiny_street: Path) -> None:
    with torch.no_grad():
        checkpoint = load_checkpoint(camera_weights)
    found = {name: embedded(camera_weights, name, tiny_street) for name in ("kept", "mixture", "ensemble")}
    for name in ("mixture", "ensemble"):
        unlabelled = [replace(s, camera="") for s in found[name].samples]
        again = embed(STATISTICS[name](checkpoint, []), unlabelled)
        assert (again.vectors == found[name].vectors).all()  # a policy that looks at labels would fail: there are none
        assert again.fingerprint == found[name].fingerprint != found["kept"].fingerprint
    # before training all domains are equal, so all give the same embedding
    assert abs(found["ensemble"].vectors - found["kept"].vectors).max() < 1e-5


def test_measured_statistics_are_those_of_the_training_crops_of_the_site(
    camera_weights: Path, plain_weights: Path, tiny_street: Path
) -> None:
    samples = read_manifest(tiny_street / "street-b" / "manifest.csv")
    for weights, domain_fields in ((camera_weights, ("category", "camera")), (plain_weights, ("category",))):
        checkpoint = load_checkpoint(weights)
        pool = [s for s in samples if s.split is Split.TRAIN]
        ready = STATISTICS["measured"](checkpoint, pool)
        assert ready.domain_fields == domain_fields
        assert ready.weights == checkpoint.weights
        assert ready.fingerprint != checkpoint.fingerprint
        report = evaluate_site(checkpoint, STATISTICS["measured"], samples)
        assert report.fingerprint == ready.fingerprint  # only rows of split train were measured
