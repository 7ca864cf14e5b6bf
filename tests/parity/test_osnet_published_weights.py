"""Published OSNet weights on real vehicles reach the figures that the original implementation reaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.data.loading import load_batches
from reid.data.manifest import read_manifest
from reid.evaluation import Metrics, market_metrics
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.records import Split

SHARED = Path(__file__).resolve().parents[3] / "shared"
MANIFEST = SHARED / "data" / "vehicles" / "manifest.csv"
WEIGHTS = SHARED / "weights"


@dataclass(frozen=True)
class Figures:
    """Percent, on 60 vehicles: queries of camera c1, gallery of camera c2."""

    file: str
    rank1: float
    mean_ap: float


PUBLISHED = (
    Figures("osnet_x0_25_msmt17.pth", 71.7, 81.8),
    Figures("osnet_x0_25_market1501.pth", 55.0, 66.5),
)


def loaded(file: str) -> Checkpoint:
    for path in (MANIFEST, WEIGHTS / file):
        if not path.is_file():
            pytest.skip(f"needs {path.relative_to(SHARED.parent)} beside the project's folder, and it is not there")
    return load_checkpoint(WEIGHTS / file, "osnet_x0_25")


def measured(checkpoint: Checkpoint) -> Metrics:
    samples = [sample for sample in read_manifest(MANIFEST) if sample.split is not Split.TRAIN]
    batches = load_batches(samples, checkpoint.transform)
    vectors = torch.cat([checkpoint.embed(batch.images) for batch in batches]).numpy()
    rows = {split: [i for i, s in enumerate(samples) if s.split is split] for split in (Split.QUERY, Split.GALLERY)}
    query, gallery = rows[Split.QUERY], rows[Split.GALLERY]
    identities = np.array([sample.identity for sample in samples])
    cameras = np.array([sample.camera for sample in samples])
    return market_metrics(
        vectors[query],
        vectors[gallery],
        query_identities=identities[query],
        gallery_identities=identities[gallery],
        query_cameras=cameras[query],
        gallery_cameras=cameras[gallery],
    )


@pytest.mark.parametrize("figures", PUBLISHED, ids=lambda figures: figures.file)
def test_the_published_figures_are_reached(figures: Figures) -> None:
    metrics = measured(loaded(figures.file))
    assert (metrics.queries, metrics.gallery, metrics.queries_without_match) == (60, 60, 0)
    assert round(100 * metrics.cmc[0], 1) == figures.rank1
    assert round(100 * metrics.mAP, 1) == figures.mean_ap
