"""Run a network over crops of cameras, to measure statistics and to embed them without centers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reid.data.loading import Progress
from reid.models.calibration import calibrate_checkpoint, own_profiles
from reid.models.checkpoint import Checkpoint
from reid.norm import Profiles
from reid.records import FloatArray, PriorFrom, Sample
from reid.retrieval.embed import embed

Crops = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, eq=False)
class CameraMeasurement:
    """What all measurements of one network share.

    Args:
        checkpoint: The network.
        domain_fields: The fields of a sample that name its camera or other domain.
        prior: How far statistics are shrunk, see :func:`reid.models.calibration.calibrate_checkpoint`.
        prior_from: Toward what they are shrunk.
        workers: Threads that decode images.
        seed: Decides the order of the images.
        progress: Is called with the number of images done.
    """

    checkpoint: Checkpoint
    domain_fields: tuple[str, ...]
    prior: float = 0.0
    prior_from: PriorFrom = "cameras"
    workers: int = 0
    seed: int = 0
    progress: Progress | None = None

    def statistics(self, crops: Crops, minimum: int = 2) -> Profiles:
        """Measure the statistics of each camera."""
        return calibrate_checkpoint(
            self.checkpoint,
            [sample for rows in crops.values() for sample in rows],
            domain_fields=self.domain_fields,
            minimum=minimum,
            prior=self.prior,
            prior_from=self.prior_from,
            workers=self.workers,
            seed=self.seed,
            progress=self.progress,
        )

    def vectors(self, samples: Sequence[Sample], profiles: Profiles | None) -> FloatArray:
        """Embed crops, (N, D), without centers and with the statistics of profiles, if any."""
        network = replace(self.checkpoint, centers=None) if self.checkpoint.centers is not None else self.checkpoint
        if not network.has_statistics:
            network = replace(network, domain_fields=(), domains=())
        network = network if profiles is None or not profiles.mean else network.with_profiles(profiles)
        return embed(network, samples, workers=self.workers, progress=self.progress).vectors

    def own(self, cameras: Sequence[str]) -> Profiles | None:
        """Return the statistics that the network uses for cameras now; None where it has one set for all."""
        if not self.checkpoint.has_statistics:
            return None
        return own_profiles(self.checkpoint, list(cameras), self.domain_fields)
