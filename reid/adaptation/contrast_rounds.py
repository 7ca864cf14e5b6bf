"""Rounds of cluster contrast: measure, embed, cluster, train; each epoch with the normalization of each camera.

In training each camera is normalized by its own statistics of the batch, and for clustering and in the result by the
statistics of all its crops, measured again in every epoch (camera-based BN, Zhuang et al., ECCV 2020).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid.adaptation.bridges import join_groups, pairs_across_light
from reid.adaptation.clusters import Clustering, cluster_site
from reid.adaptation.contrast import CROPS_A_STEP, Assignments, Memory, draw_step
from reid.adaptation.site_network import SiteNetwork
from reid.adaptation.stop_rule import BestEpoch, ClusterFigures, impossibility, refusal
from reid.adaptation.watched_crops import WATCHED_EPOCHS, WatchedCrops, choose_watched, viewpoints_of, without_crops
from reid.data.loading import Progress
from reid.data.transforms import TrainTransform
from reid.errors import WeightsError
from reid.records import FloatArray, IntArray

EPOCHS, STEPS = 8, 20
LEARNING_RATE, WEIGHT_DECAY = 3.5e-4, 5e-4
PAD_SHARE = 32  # of the height is how far the crop of a padded image may move: 8 of 256 pixels
UNITS_OF_TRAINING = 3  # the work of forward and backward, where embedding an image is 1
GUARD_EPOCH = 1  # epochs of training after which the clusters must show that the adaptation works


@dataclass(frozen=True)
class EpochFigures:
    """What the clustering after some epochs of training shows.

    Attributes:
        epoch: Epochs of training that the network has; 0 is the calibrated network.
        groups: The clusters of each group that takes part.
        quality: What the choice of the epoch goes by, 0..1.
        bridges: Clusters of infrared crops that are joined to a cluster of visible ones.
        loss: The mean loss of the last epoch of training; NaN for epoch 0.
        returning: The share of walks between cameras that return, from crops that take no part; None where there are
            none any more.
    """

    epoch: int
    groups: tuple[ClusterFigures, ...]
    quality: float
    bridges: int
    loss: float
    returning: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return the figures as plain values; a loss that is not known is None."""
        return {
            "epoch": self.epoch,
            "quality": round(self.quality, 4),
            "bridges": self.bridges,
            "loss": None if math.isnan(self.loss) else round(self.loss, 4),
            "returning": None if self.returning is None else round(self.returning, 4),
            "groups": [figures.to_json() for figures in self.groups],
        }


@dataclass
class RoundsState:
    """What a run needs to go on after a kill with the same numbers.

    Attributes:
        groups: The groups that are clustered; one that fails the guard is left out.
        epoch: Epochs of training that are complete.
        loss: The mean loss of the last one.
        network: The weights of now; empty before the first epoch.
        optimizer: The state of Adam.
        history: The figures of each clustering, first that of epoch 0.
        kept: The weights of the best epoch so far, with the statistics of its domains.
        kept_epoch: The number of this epoch.
        notes: One sentence for each group that was left out, and for an early end.
        is_finished: Whether nothing more is to be done.
        watched: The crops that take no part in the first epochs, see :class:`WatchedCrops`; empty where all do.
    """

    groups: tuple[int, ...]
    epoch: int = 0
    loss: float = math.nan
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    history: list[EpochFigures] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    kept_epoch: int = 0
    notes: list[str] = field(default_factory=list)
    is_finished: bool = False
    watched: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Watch:
    """Whom the rounds keep informed.

    Attributes:
        progress: Is called with units of work done: 1 for an image that is embedded, 3 for one that is trained on.
        on_epoch: Is called with the figures of every clustering.
        save: Is called with the state after every epoch of training.
    """

    progress: Progress | None = None
    on_epoch: Callable[[EpochFigures], object] | None = None
    save: Callable[[RoundsState], object] | None = None


class ContrastRounds:
    """Adapt a network by rounds of cluster contrast.

    Args:
        site: The network and the crops; its network changes.
        epochs: Epochs of training at most.
        steps: Updates in an epoch.
        seed: Decides what is random.
        identities: (N,) int64, the number of the identity of each crop of a labelled site, -1 for the crops of the
            site without labels; None where all crops are without.
    """

    def __init__(
        self,
        site: SiteNetwork,
        *,
        epochs: int = EPOCHS,
        steps: int = STEPS,
        seed: int = 0,
        identities: IntArray | None = None,
    ) -> None:
        self.site, self.crops = site, site.crops
        self.epochs, self.steps, self.seed = epochs, steps, seed
        self.identities = np.full(len(site.crops), -1, np.int64) if identities is None else identities
        self.clustering: Clustering | None = None
        self._returning: float | None = None
        self._start = copy.deepcopy(site.network.state_dict())
        self._augment = TrainTransform(
            pad=max(1, site.transform.height // PAD_SHARE), erase=0.5, erase_area=(0.02, 0.22),
            brightness=0, contrast=0, saturation=0, gain=0, grey=0,
        )  # fmt: skip
        self._optimizer = self._new_optimizer()

    @property
    def units(self) -> int:
        """About how many units of work all epochs take, see :class:`Watch`."""
        measured = (1 + self.site.has_statistics) * len(self.crops) * (self.epochs + 1)
        return measured + UNITS_OF_TRAINING * CROPS_A_STEP * self.steps * self.epochs * len(self.crops.group_names)

    def first_state(self) -> RoundsState:
        """Return the state of a run that has not begun."""
        return RoundsState(tuple(np.unique(self.crops.groups[self.identities < 0]).tolist()))

    def run(self, state: RoundsState, watch: Watch | None = None) -> RoundsState:
        """Run the epochs that a state lacks.

        Args:
            state: :meth:`first_state`, or one that was saved; it changes.
            watch: Whom to keep informed.

        Returns:
            The state at the end.  The site holds the network of the epoch that was kept.
        """
        watch = watch or Watch()
        if state.network:
            self._load(state.network, state.optimizer)
        while not state.is_finished:
            vectors = self._measure_and_embed(state.epoch, watch)
            self.clustering = cluster_site(vectors, self.crops, state.groups)
            if self._drop_groups(state, self.clustering):
                continue
            assigned = self._assign(self.clustering, state.groups)
            held = self._watch_crops(state, vectors, self.clustering, assigned)
            self._judge(state, self.clustering, assigned, watch)
            if not state.is_finished:
                taking_part = assigned if held is None else without_crops(assigned, held.held)
                state.loss = self._train(state.epoch, vectors, taking_part, watch)
                state.epoch += 1
                self._snapshot(state, watch)
        self.site.network.load_state_dict(state.kept)
        return state

    def _measure_and_embed(self, epoch: int, watch: Watch) -> FloatArray:
        self.site.measure(self.seed + epoch, watch.progress)
        return self.site.embed(watch.progress)

    def _drop_groups(self, state: RoundsState, found: Clustering) -> bool:
        """Leave out groups that cannot be adapted to; return whether the clustering has to be repeated without them.

        What is impossible shows before the training, the rest after its first epoch; then it begins again.
        """
        if state.epoch > GUARD_EPOCH:
            return False
        reasons = {}
        for group, figures in zip(state.groups, found.figures, strict=True):
            cameras = len(self.crops.cameras_of(group)) if self.crops.has_cameras else 0
            judge = refusal if state.epoch == GUARD_EPOCH else impossibility
            reasons[group] = judge(figures, cameras)
        refused = {group: reason for group, reason in reasons.items() if reason}
        if not refused:
            return False
        state.notes += [f"{self.crops.group_names[group]}: {reason}" for group, reason in refused.items()]
        state.groups = tuple(group for group in state.groups if group not in refused)
        state.epoch, state.loss, state.history, state.watched = 0, math.nan, [], {}
        self._load(self._start, None)
        if not state.groups:
            self.site.measure(self.seed)
            state.kept, state.kept_epoch = copy.deepcopy(self.site.network.state_dict()), 0
            state.is_finished = True
        return True

    def _assign(self, found: Clustering, clustered: Sequence[int]) -> Assignments:
        """Join the clusters of the site with the identities of a labelled one, and across light where it is safe."""
        labels, known = found.labels.copy(), self.identities >= 0
        count = int(labels.max(initial=-1)) + 1
        pairs = np.stack([self.identities, self.crops.groups], 1)[known]
        distinct, numbers = np.unique(pairs, axis=0, return_inverse=True)
        labels[known] = numbers.reshape(-1) + count
        groups = np.zeros(count + len(distinct), np.int64)
        groups[labels[labels >= 0]] = self.crops.groups[labels >= 0]
        unlabelled = [pair for pair in pairs_across_light(self.crops.group_names) if set(pair) <= set(clustered)]
        persons = join_groups(found.vectors, labels, groups, unlabelled, self.seed)
        persons[count:] = len(groups) + distinct[:, 0]
        return Assignments(labels, groups, persons)

    def _judge(self, state: RoundsState, found: Clustering, assigned: Assignments, watch: Watch) -> None:
        """Note the figures of an epoch, keep its network if it is the best so far, and decide whether to go on."""
        count = int(found.labels.max(initial=-1)) + 1
        bridges = count - len(np.unique(assigned.persons[:count]))
        figures = EpochFigures(state.epoch, found.figures, found.quality, bridges, state.loss, self._returning)
        best, is_given_back = BestEpoch([earlier.quality for earlier in state.history]), state.is_finished
        if best.keeps(figures.quality) and not is_given_back:
            state.kept, state.kept_epoch = copy.deepcopy(self.site.network.state_dict()), state.epoch
        state.history.append(figures)
        if watch.on_epoch is not None:
            watch.on_epoch(figures)
        if best.has_fallen and not is_given_back:
            state.notes.append(f"the clusters became worse after epoch {state.kept_epoch}")
        state.is_finished = state.is_finished or best.has_fallen or state.epoch >= self.epochs
        if state.is_finished and not state.kept_epoch and not best.has_fallen and not is_given_back:
            state.notes.append("the clusters did not become better in any epoch")

    def _watch_crops(
        self, state: RoundsState, vectors: FloatArray, found: Clustering, assigned: Assignments
    ) -> WatchedCrops | None:
        """Return the crops that take no part in the next epoch; they judge the training when they join it."""
        self._returning = None
        taking_part = np.isin(self.crops.groups, state.groups) & (self.identities < 0)
        if state.epoch == 0:
            count = int(found.labels.max(initial=-1)) + 1
            chosen = choose_watched(vectors, found, assigned.persons[:count], self.crops, taking_part, self.seed)
            state.watched = {} if chosen is None else chosen.to_state()
        watched = WatchedCrops.from_state(state.watched)
        if watched is None:
            return None
        gain = watched.gain(vectors, viewpoints_of(self.crops))
        self._returning = gain.after
        if state.epoch < min(WATCHED_EPOCHS, self.epochs):
            return watched
        state.watched = {}
        if not gain.is_enough:
            self._give_back(
                state,
                f"of the walks between cameras from crops that took no part, {gain.before:.1%} returned before and"
                f" {gain.after:.1%} after {state.epoch} epochs, which is no clear gain",
            )
        return None

    def _give_back(self, state: RoundsState, reason: str) -> None:
        """Finish with the calibrated network."""
        self._load(self._start, None)
        self.site.measure(self.seed)
        state.kept, state.kept_epoch = copy.deepcopy(self.site.network.state_dict()), 0
        state.notes.append(reason)
        state.is_finished = True

    def _train(self, epoch: int, vectors: FloatArray, assigned: Assignments, watch: Watch) -> float:
        """Make the updates of one epoch; return the mean loss."""
        memory = Memory(vectors, assigned, self.crops.cameras)
        random = np.random.default_rng((self.seed, epoch))
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        self.site.network.train()
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**62)))  # dropout
            for _ in range(self.steps):
                rows = draw_step(assigned, self.crops.cameras, self.crops.domain.numpy(), random)
                if len(rows):
                    losses.append(self._step(rows, assigned, memory, generator))
                if watch.progress is not None:
                    watch.progress(UNITS_OF_TRAINING * len(rows))
        return float(np.mean(losses)) if losses else math.nan

    def _step(self, rows: IntArray, assigned: Assignments, memory: Memory, generator: torch.Generator) -> float:
        """Make one update with the crops at some rows; return the loss."""
        where = torch.from_numpy(rows)
        images = self.site.transform.normalise(self._augment(self.crops.pixels[where], generator))
        embeddings = self.site.run(images, self.crops.domain[where])
        clusters, cameras = torch.from_numpy(assigned.labels[rows]), torch.from_numpy(self.crops.cameras[rows])
        loss: Tensor = memory.loss(embeddings, clusters, cameras)
        if not loss.isfinite():
            raise WeightsError(
                f"adapt: the loss became {loss.item()}; the weights or the crops are damaged; check them, nothing is"
                " written"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.site.tie_affine()
        self._optimizer.step()
        memory.update(embeddings.detach(), clusters, cameras)
        return loss.item()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = [value for value in self.site.network.parameters() if value.requires_grad]
        return torch.optim.Adam(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def _load(self, network: dict[str, Any], optimizer: dict[str, Any] | None) -> None:
        self.site.network.load_state_dict(network)
        self._optimizer = self._new_optimizer()
        if optimizer:
            self._optimizer.load_state_dict(optimizer)

    def _snapshot(self, state: RoundsState, watch: Watch) -> None:
        """Put the weights and the optimizer of now into the state, and have it saved."""
        state.network = copy.deepcopy(self.site.network.state_dict())
        state.optimizer = copy.deepcopy(self._optimizer.state_dict())
        if watch.save is not None:
            watch.save(state)
