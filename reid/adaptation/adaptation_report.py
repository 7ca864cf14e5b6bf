"""The page of an adaptation: what changed, with and without labels, and what the clusters look like.

Labels serve the table of scores only, after the adaptation is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.adaptation.agreement import share_in_site
from reid.adaptation.clusters import Clustering, cluster_site, share_of_repeats
from reid.adaptation.site_adaptation import Adaptation, embed_site
from reid.adaptation.site_crops import SiteCrops
from reid.evaluation.analysis.query_examples import thumbnail
from reid.evaluation.metrics import market_metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.reports.charts import escape, histogram
from reid.evaluation.reports.html_page import page_head, table
from reid.evaluation.reports.text_file import write_text
from reid.models.checkpoint import Checkpoint
from reid.records import FloatArray, IntArray, Sample

MARK = '<meta name="generator" content="reid adapt">'  # by which files.check_output_file recognizes such a page
SAMPLE_CLUSTERS, SAMPLE_CROPS = 12, 10
BINS = np.linspace(-1, 1, 81)
ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Side:
    """What the crops look like to one network, before or after the adaptation.

    Attributes:
        name: "calibrated" or "adapted".
        clustering: The clusters of its embeddings.
        agreement: Share of crops that are mutual nearest neighbours across cameras, 0..1.
        repeated: Share of the crops whose most similar crop, by normalized score, is of the own camera, by group.
        own, other: (B,) int64, how many pairs of crops of one camera, and of two, have a score in each bin.
        scores: rank-1 and mAP, 0..1; None without labels.
    """

    name: str
    clustering: Clustering
    agreement: float
    repeated: tuple[float, ...]
    own: IntArray
    other: IntArray
    scores: tuple[float, float] | None


def write_report(path: Path, found: Adaptation, before: Checkpoint, samples: Sequence[Sample]) -> None:
    """Write a self-contained HTML page about an adaptation.

    Args:
        path: The file.
        found: What the adaptation gave.
        before: The network that it started from.
        samples: The samples of the site, with identities if they are known.

    Raises:
        DataError: The file cannot be written, or a crop cannot be read any more.
    """
    identities = [sample.identity for sample in samples]
    sides = [
        _side(name, embed_site(checkpoint, found.crops, calibrated=name == "calibrated"), found.crops, identities)
        for name, checkpoint in (("calibrated", before), ("adapted", found.checkpoint))
    ]
    write_text(report_page(found, sides), path, "page", private=True)


def _side(name: str, vectors: FloatArray, crops: SiteCrops, identities: Sequence[str]) -> Side:
    groups = np.unique(crops.groups).tolist()
    clustering = cluster_site(vectors, crops, groups)
    rows = [crops.groups == group for group in groups]
    repeated = tuple(share_of_repeats(clustering.vectors[part], crops.cameras[part]) for part in rows)
    own, other = _score_counts(vectors, crops)
    return Side(
        name, clustering, share_in_site(vectors, crops), repeated, own, other, _scores(vectors, crops, identities)
    )


def _score_counts(vectors: FloatArray, crops: SiteCrops) -> tuple[IntArray, IntArray]:
    """Count the scores of all pairs of crops of a group, by bin: pairs of one camera, and of two."""
    own, other = np.zeros(len(BINS) - 1, np.int64), np.zeros(len(BINS) - 1, np.int64)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(vectors)))
        scores = vectors[rows] @ vectors.T
        later = (rows[:, None] < np.arange(len(vectors))) & (crops.groups[rows][:, None] == crops.groups)
        same = crops.cameras[rows][:, None] == crops.cameras
        own += np.histogram(scores[later & same], BINS)[0]
        other += np.histogram(scores[later & ~same], BINS)[0]
    return own, other


def _scores(vectors: FloatArray, crops: SiteCrops, identities: Sequence[str]) -> tuple[float, float] | None:
    """Rank-1 and mAP where every crop is a query and in the gallery; None where an identity is missing."""
    if not all(identities) or not crops.has_cameras:
        return None
    cameras = [crops.camera_names[camera] for camera in crops.cameras]
    metrics = market_metrics(
        vectors, vectors, query_identities=identities, gallery_identities=identities, query_cameras=cameras,
        gallery_cameras=cameras,
    )  # fmt: skip
    return (float(metrics.rank(1)), float(metrics.mAP)) if metrics.queries else None


def report_page(found: Adaptation, sides: Sequence[Side]) -> str:
    """Write the page.

    Args:
        found: What the adaptation gave.
        sides: The calibrated and the adapted network.
    """
    pieces = [_summary_table(sides), _epoch_table(found), _camera_table(sides, found.crops)]
    charts = "".join(_histograms(side) for side in sides)
    recipe = escape(found.checkpoint.extra.get("adaptation", ""))
    return (
        f"{page_head('Adaptation report', MARK)}<header><h1>Adaptation report</h1></header>\n<main>"
        f'<section class="report"><h2>{escape(found.verdict)}</h2><div class="row">{"".join(pieces)}</div>'
        f'<div class="row">{charts}</div>{_sample_clusters(sides[-1].clustering, found.crops)}'
        f"<footer><h3>How it was adapted</h3><pre>{recipe}</pre></footer></section></main></body></html>\n"
    )


def _summary_table(sides: Sequence[Side]) -> str:
    rows = []
    for side in sides:
        scores = side.scores or (float("nan"), float("nan"))
        cells = [side.agreement, *scores, float(np.mean(side.repeated))]
        rows.append(([side.name], [_share(value) for value in cells]))
    heads = ["network", "mutual neighbours across cameras", "rank-1", "mAP", "nearest crop of the own camera"]
    return table("Crops of the site, in percent; rank-1 and mAP where identities are known", heads, rows)


def _epoch_table(found: Adaptation) -> str:
    rows = []
    for epoch in found.history:
        for figures in epoch.groups:
            kept = " (kept)" if epoch.epoch == found.kept_epoch else ""
            shares = (figures.clustered, figures.spanning, figures.coverage)
            cells = [str(figures.clusters), *map(_share, shares), f"{figures.crops_a_camera:g}", f"{epoch.loss:.3f}"]
            rows.append(([f"{epoch.epoch}{kept}", figures.group], cells))
    heads = ["epoch", "group", "clusters", "clustered", "span two cameras", "cameras held", "crops a camera", "loss"]
    return table("Clusters of every epoch, shares in percent", heads, rows) if rows else ""


def _camera_table(sides: Sequence[Side], crops: SiteCrops) -> str:
    """Count the clusters by the number of cameras that they hold."""
    most = len(crops.camera_names)
    rows = []
    for side in sides:
        held = cameras_of_clusters(side.clustering.labels, crops.cameras)
        rows.append(([side.name], [str(int((held == count).sum())) for count in range(1, most + 1)]))
    return table("Clusters by the number of cameras", ["network", *map(str, range(1, most + 1))], rows)


def cameras_of_clusters(labels: IntArray, cameras: IntArray) -> IntArray:
    """Count the cameras of each cluster, (K,) int64.

    Example:
        >>> cameras_of_clusters(np.array([0, 0, 1, -1]), np.array([0, 1, 1, 0])).tolist()
        [2, 1]
    """
    pairs = np.unique(np.stack([labels, cameras], 1)[labels >= 0], axis=0)
    return np.bincount(pairs[:, 0], minlength=int(labels.max(initial=-1)) + 1)


def _histograms(side: Side) -> str:
    shares: list[tuple[str, Float64Array]] = [
        (f"{name} ({counts.sum():,} pairs)", counts / max(counts.sum(), 1))
        for name, counts in (("one camera", side.own), ("two cameras", side.other))
    ]
    return histogram(f"Scores of all pairs, {side.name}", BINS, shares)


def _sample_clusters(clustering: Clustering, crops: SiteCrops) -> str:
    """Show the largest clusters, a row of crops for each."""
    sizes = np.bincount(clustering.labels[clustering.labels >= 0])
    rows_of_crops = []
    for cluster in np.argsort(-sizes, kind="stable")[:SAMPLE_CLUSTERS].tolist():
        rows = np.flatnonzero(clustering.labels == cluster)
        chosen = rows[np.linspace(0, len(rows) - 1, min(SAMPLE_CROPS, len(rows))).astype(int)]
        figures = "".join(_crop_figure(crops.samples[row]) for row in chosen.tolist())
        rows_of_crops.append(f'<div class="example">{figures}</div>')
    if not rows_of_crops:
        return "<p>No clusters to show.</p>"
    return f'<h3>Largest clusters</h3><div class="examples">{"".join(rows_of_crops)}</div>'


def _crop_figure(sample: Sample) -> str:
    camera = escape(sample.camera or "?")
    return (
        f'<figure><img src="{thumbnail(sample.path)}" alt="crop of camera {camera}">'
        f"<figcaption>{camera}</figcaption></figure>"
    )


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"
