"""Make a network smaller on unlabelled crops: choose channels, remove them, measure statistics again, distil.

Two ways to choose the channels:

* "search" draws candidates that all keep the same share of the multiply-adds, measures the statistics of their norms
  again on crops (for each camera where the network has cameras), and takes the one whose nearest neighbours are most
  like those of the whole network (after Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
  Pruning", ECCV 2020, who rank by accuracy on labelled images).
* "slimming" trains the network with a penalty on the scales of its norms, and removes the channels below one threshold
  (Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reid.adaptation.adaptation_state import run_key
from reid.adaptation.site_crops import SiteCrops, arrange, read_site
from reid.adaptation.site_network import SiteNetwork
from reid.data.loading import Progress
from reid.edge.channel_choice import (
    channel_importance,
    channels_to_keep,
    check_target,
    counts_above_threshold,
    draw_candidates,
    scale_importance,
    weight_importance,
)
from reid.edge.distillation import Distillation
from reid.edge.neighbour_overlap import neighbour_overlap
from reid.edge.slim_state import StateFile
from reid.edge.slimming_inputs import chosen_crops, domain_fields_of, embedded, groups_of, judged_rows
from reid.errors import ConfigError, unknown_name
from reid.models.checkpoint import Checkpoint
from reid.models.networks.channel_removal import keep_channels, narrow_to
from reid.models.networks.multiply_adds import ShareOfMultiplyAdds, count_multiply_adds
from reid.models.networks.tied_channels import TiedChannels
from reid.records import Sample

RECIPE = "slimming"  # key of the free text of a checkpoint: how it was made smaller, as JSON
SCALE_PENALTY = 1e-4
METHODS = ("search", "slimming")
SCALES, DISTILLATION = "scales", "distillation"
TITLES = {SCALES: "training scales", DISTILLATION: "distilling"}  # of progress bars

Bar = Callable[[str, int], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class SlimmingPlan:
    """What is asked for.

    Attributes:
        target: The share of the multiply-adds that remains.
        method: A name of ``METHODS``.
        candidates: How many choices of channels a search compares.
        epochs: How often each crop is shown in a training.
        crops: How many crops are used at most, as many of each camera as there are.
        seed: Seed of the random numbers.
        scores_stale: Whether a search also scores each candidate before its statistics are measured again.
    """

    target: float
    method: str = "search"
    candidates: int = 60
    epochs: int = 8
    crops: int = 2000
    seed: int = 0
    scores_stale: bool = False


@dataclass(frozen=True, eq=False)
class SlimNetwork:
    """The result.

    Attributes:
        checkpoint: The smaller network.
        multiply_adds: Of the whole and of the smaller network, for one image.
        parameters: Numbers of parameters of both.
        overlap: How many nearest neighbours are the same in both, before and after the distillation.
        cosine: The mean cosine of the embeddings of both, before and after.
        scores: The score of every candidate of a search; () otherwise.
        stale_scores: The same before their statistics were measured again; () where these are not wanted.
    """

    checkpoint: Checkpoint
    multiply_adds: tuple[int, int]
    parameters: tuple[int, int]
    overlap: tuple[float, float]
    cosine: tuple[float, float]
    scores: tuple[float, ...] = ()
    stale_scores: tuple[float, ...] = ()

    def save(self, path: Path) -> None:
        """Write the smaller network to a weights file."""
        self.checkpoint.save(path)

    def lines(self) -> list[str]:
        """Say what remains, in one line."""
        (before, after), (whole, small) = self.multiply_adds, self.parameters
        return [
            f"{after:,} multiply-adds of {before:,} remain ({after / before:.1%}), {small:,} parameters of {whole:,};"
            f" {self.overlap[1]:.1%} of the nearest neighbours are the same, cosine {self.cosine[1]:.4f}"
        ]

    def to_json(self) -> dict[str, object]:
        """Return figures that JSON can hold."""
        figures = {name: value for name, value in vars(self).items() if name != "checkpoint" and value != ()}
        return {"fingerprint": self.checkpoint.fingerprint, "source": self.checkpoint.source, **figures}


def slim_network(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    plan: SlimmingPlan,
    bar: Bar,
    *,
    workers: int = 0,
    state: Path | None = None,
) -> SlimNetwork:
    """Make a network smaller.

    Args:
        checkpoint: The network; it stays as it is.
        samples: Crops; their identities are not looked at.
        plan: What is asked for.
        bar: Opens a progress bar with a title and a number of images, such as :func:`reid.pipeline.progress_bar`.
        workers: Threads that decode images.
        state: File that keeps the state; the caller deletes it when the result is saved.

    Returns:
        The smaller network with the statistics of the cameras of the crops, and figures.

    Raises:
        ConfigError: The target cannot be reached, or the network has no channels to remove.
        DataError: There are too few crops, or an image cannot be read.
        WeightsError: The state is damaged.
    """
    if plan.method not in METHODS:
        raise ConfigError(unknown_name("--method", plan.method, METHODS))
    groups, share = groups_of(checkpoint)
    check_target(groups, share, plan.target)
    rows = chosen_crops(checkpoint, samples, plan.crops)
    kept = StateFile(state, run_key(checkpoint.fingerprint, rows, asdict(plan)))
    with bar("reading", len(rows)) as progress:
        crops = read_site(rows, checkpoint.transform, domain_fields_of(checkpoint), workers=workers, progress=progress)
    return _Slimming(checkpoint, crops, plan, bar, kept, groups, share).run()


class _Slimming:
    """The steps of one run, each of which goes on from the state where that has it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        crops: SiteCrops,
        plan: SlimmingPlan,
        bar: Bar,
        kept: StateFile,
        groups: tuple[TiedChannels, ...],
        share: ShareOfMultiplyAdds,
    ) -> None:
        self._checkpoint, self._crops, self._plan, self._bar, self._kept = checkpoint, crops, plan, bar, kept
        self._groups, self._share = groups, share
        self._teacher = self._site(checkpoint.network, crops)
        if set(crops.domains) - set(checkpoint.domains):
            self._teacher.measure(plan.seed)
        self._judged, self._shown = judged_rows(crops)
        self._wanted = embedded(self._teacher, self._judged)

    def run(self) -> SlimNetwork:
        """Choose the channels, remove them, and distil."""
        student = self._cut()
        self._train(DISTILLATION, student)
        student.measure(self._plan.seed)
        before, after = self._kept.state.before, self._compare(student)
        checkpoint = self._finished(student, self._kept.state.counts)
        networks = (self._checkpoint.network, checkpoint.network)
        transform = checkpoint.transform
        state = self._kept.state
        return SlimNetwork(
            checkpoint,
            multiply_adds=_pair(networks, lambda one: count_multiply_adds(one, transform.height, transform.width)),
            parameters=_pair(networks, lambda one: sum(p.numel() for p in one.parameters())),
            overlap=(before[0], after[0]),
            cosine=(before[1], after[1]),
            scores=tuple(state.scores),
            stale_scores=tuple(state.stale_scores),
        )

    def _cut(self) -> SiteNetwork:
        """Make the smaller network before its distillation, or one that the state of the distillation fits into."""
        if self._kept.state.stage == DISTILLATION:
            sizes = zip((group.name for group in self._groups), self._kept.state.counts, strict=True)
            return self._site(narrow_to(self._teacher.network, tuple(sizes)), self._crops)
        source, importance = self._choose()
        counts = self._kept.state.counts
        student = self._site(
            keep_channels(source.network, channels_to_keep(self._groups, importance, counts)), self._crops
        )
        student.measure(self._plan.seed)
        before = self._compare(student)
        self._kept.save(stage=DISTILLATION, epoch=0, network=student.network.state_dict(), optimizer={}, before=before)
        return student

    def _choose(self) -> tuple[SiteNetwork, Mapping[str, Tensor]]:
        """Decide how many channels each group keeps; return the network to cut, and what its channels are worth."""
        if self._plan.method == "slimming":
            trained = self._site(self._checkpoint.network, self._crops)
            self._train(SCALES, trained, SCALE_PENALTY)
            importance = scale_importance(trained.network, self._groups)
            counts = counts_above_threshold(self._groups, self._share, self._plan.target, importance)
            self._kept.save(counts=counts.tolist())
            return trained, {**weight_importance(trained.network, self._groups), **importance}
        importance = channel_importance(self._teacher.network, self._groups)
        if not self._kept.state.counts:
            self._search(importance)
        return self._teacher, importance

    def _search(self, importance: Mapping[str, Tensor]) -> None:
        """Score all candidates, and keep the counts of the best."""
        random, plan = np.random.default_rng(self._plan.seed), self._plan
        drawn = draw_candidates(self._groups, self._share, plan.target, plan.candidates, random)
        rows = [self._crops.samples[row] for row in self._judged]
        pixels = self._crops.pixels[torch.from_numpy(self._judged)]
        judged = arrange(rows, pixels, self._crops.domain_fields)
        state, everything = self._kept.state, np.arange(len(rows))
        with self._bar("comparing candidates", len(drawn) * len(rows)) as progress:
            progress(len(state.scores) * len(rows))
            for counts in drawn[len(state.scores) :]:
                small = keep_channels(self._teacher.network, channels_to_keep(self._groups, importance, counts))
                site = self._site(small, judged)
                stale = []
                if plan.scores_stale:
                    stale = [neighbour_overlap(self._wanted, embedded(site, everything))]
                site.measure(plan.seed)
                score = neighbour_overlap(self._wanted, embedded(site, everything))
                state = self._kept.state
                self._kept.save(scores=[*state.scores, score], stale_scores=[*state.stale_scores, *stale])
                progress(len(rows))
        best = int(np.argmax(self._kept.state.scores))
        self._kept.save(counts=drawn[best].tolist())

    def _train(self, stage: str, student: SiteNetwork, penalty: float = 0.0) -> None:
        """Train all epochs that the state does not have yet."""
        plan, state = self._plan, self._kept.state
        training = Distillation(self._teacher, student, self._shown, plan.epochs, plan.seed, penalty)
        done = 0
        if state.stage == stage:
            student.network.load_state_dict(state.network)
            if state.optimizer:
                training.optimizer.load_state_dict(state.optimizer)
            done = state.epoch
        with self._bar(TITLES[stage], plan.epochs * len(self._shown)) as progress:
            progress(done * len(self._shown))
            for epoch in range(done, plan.epochs):
                training.run_epoch(epoch, progress)
                self._kept.save(
                    stage=stage,
                    epoch=epoch + 1,
                    network=student.network.state_dict(),
                    optimizer=training.optimizer.state_dict(),
                )

    def _compare(self, student: SiteNetwork) -> tuple[float, float]:
        """How many nearest neighbours are those of the whole network, and the mean cosine to its embeddings."""
        found = embedded(student, self._judged)
        return neighbour_overlap(self._wanted, found), float((found * self._wanted).sum(1).mean())

    def _site(self, network: nn.Module, crops: SiteCrops) -> SiteNetwork:
        return SiteNetwork(replace(self._checkpoint, network=network), crops)

    def _finished(self, student: SiteNetwork, counts: Sequence[int]) -> Checkpoint:
        """The smaller network with a description that it is built from again."""
        old = self._checkpoint
        channels = dict(old.spec.channels)
        for group, count in zip(self._groups, counts, strict=True):
            if count < group.size:
                channels[group.name] = count
        spec = replace(old.spec, channels=tuple(channels.items()))
        recipe = json.dumps({**asdict(self._plan), "weights": old.fingerprint})
        extra = {key: text for key, text in old.extra.items() if key in ("family", "colours")}
        return student.to_checkpoint(replace(old, spec=spec, centers=None), {**extra, RECIPE: recipe})


def _pair(networks: tuple[nn.Module, nn.Module], count: Callable[[nn.Module], int]) -> tuple[int, int]:
    return count(networks[0]), count(networks[1])
