"""Train one network that runs at several widths, on unlabelled crops (Yu and Huang, ICCV 2019, sections 3 and 4).

A narrow width uses the leading channels of every layer, the most important ones, and the same weights; its norms, with
the statistics of each camera, are its own (Yu et al., "Slimmable Neural Networks", ICLR 2019).  In each step the widest
learns from the network as it was, and the others from the embeddings of the widest (in-place distillation); two widths
are drawn besides the widest and the narrowest (the sandwich rule).  All widths give embeddings of one length that are
trained to be the same, so those of one width can be compared with those of another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid.adaptation.adaptation_state import run_key
from reid.adaptation.site_crops import SiteCrops, read_site
from reid.adaptation.site_network import SINGLE_DOMAIN, SiteNetwork
from reid.edge.channel_choice import channel_importance, counts_of_width
from reid.edge.distillation import LEARNING_RATE, Distillation, EmbeddedMaps, outputs_of
from reid.edge.neighbour_overlap import neighbour_overlap
from reid.edge.pruning import RECIPE, Bar, SlimmingPlan
from reid.edge.slim_state import StateFile
from reid.edge.slimming_inputs import chosen_crops, domain_fields_of, embedded, groups_of, judged_rows
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint
from reid.models.networks.channel_removal import leading_rows, leading_weights, narrow_to, reorder_channels
from reid.models.networks.multiply_adds import ShareOfMultiplyAdds
from reid.models.networks.tied_channels import TiedChannels
from reid.models.weights.tensor_tables import table_of
from reid.models.widths import NarrowWidth, name_of_width
from reid.norm import extract
from reid.records import FloatArray, IntArray, Sample

DRAWN = 2  # widths of a step besides the widest and the narrowest
TRAINING = "widths"  # stage of the state


@dataclass(frozen=True, eq=False)
class SlimmableNetwork:
    """The result.

    Attributes:
        checkpoint: The widest network.
        narrow: The other widths, for :meth:`~reid.models.checkpoint.Checkpoint.save`.
        widths: All widths by name, the widest first.
        shares: The share of the multiply-adds that each computes.
        cosine: The mean cosine of the embeddings of each to those of the network as it was.
        overlap: (W, W) how many of the ten nearest neighbours are those of the network as it was, where crops at the
            width of a row are searched among crops at the width of a column.
    """

    checkpoint: Checkpoint
    narrow: dict[str, NarrowWidth]
    widths: tuple[str, ...]
    shares: tuple[float, ...]
    cosine: tuple[float, ...]
    overlap: tuple[tuple[float, ...], ...]

    def save(self, path: Path) -> None:
        """Write all widths to one file."""
        self.checkpoint.save(path, self.narrow)

    def lines(self) -> list[str]:
        """Say for each width what it costs and how near it is, and how crops of it are found at each width."""
        return [
            f"width {name}: {share:.1%} of the multiply-adds, cosine {cosine:.4f}, the same nearest neighbours"
            f" {', '.join(f'{same:.1%} at {other}' for other, same in zip(self.widths, row, strict=True))}"
            for name, share, cosine, row in zip(self.widths, self.shares, self.cosine, self.overlap, strict=True)
        ]

    def to_json(self) -> dict[str, object]:
        """Return figures that JSON can hold."""
        figures = {name: value for name, value in vars(self).items() if name not in ("checkpoint", "narrow")}
        return {"fingerprint": self.checkpoint.fingerprint, "source": self.checkpoint.source, **figures}


def check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Return widths in falling order; 1 is always among them.

    Raises:
        ConfigError: One is not above 0 and at most 1, is named twice, or there is none below 1.

    Example:
        >>> check_widths([0.5, 0.25])
        (1.0, 0.5, 0.25)
    """
    wanted = sorted({1.0, *widths}, reverse=True)
    if len(set(widths)) != len(widths) or len(wanted) < 2 or not all(0 < width <= 1 for width in widths):
        text = ",".join(f"{width:g}" for width in widths)
        raise ConfigError(f"--widths {text}: expected distinct numbers above 0 and at most 1, such as 1,0.75,0.5,0.25")
    return tuple(wanted)


def train_widths(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    widths: Sequence[float],
    plan: SlimmingPlan,
    bar: Bar,
    *,
    workers: int = 0,
    state: Path | None = None,
) -> SlimmableNetwork:
    """Train a network to run at several widths.

    Args:
        checkpoint: The network; it stays as it is.
        samples: Crops; their identities are not looked at.
        widths: Numbers above 0 and at most 1.
        plan: Epochs, crops and seed; the other fields are not used.
        bar: As for :func:`~reid.edge.pruning.slim_network`.
        workers: Threads that decode images.
        state: File that keeps the state; the caller deletes it when the result is saved.

    Raises:
        ConfigError: The widths cannot be used, or the network has no channels to remove.
        DataError: There are too few crops, or an image cannot be read.
    """
    wanted = check_widths(widths)
    groups, share = groups_of(checkpoint)
    rows = chosen_crops(checkpoint, samples, plan.crops)
    kept = StateFile(state, run_key(checkpoint.fingerprint, rows, {**asdict(plan), "widths": list(wanted)}))
    with bar("reading", len(rows)) as progress:
        fields = domain_fields_of(checkpoint)
        crops = read_site(rows, checkpoint.transform, fields, workers=workers, progress=progress)
    return _Training(checkpoint, crops, wanted, plan, kept, groups, share).run(bar)


class _NarrowNetwork:
    """One width: a network whose convolutions and linear layers are parts of those of the wide one."""

    def __init__(self, checkpoint: Checkpoint, wide: SiteNetwork, channels: tuple[tuple[str, int], ...]) -> None:
        self.channels = dict(channels)
        self._wide, self._rows = wide.network, leading_rows(wide.network, channels)
        self.site = SiteNetwork(replace(checkpoint, network=narrow_to(wide.network, channels)), wide.crops)
        for name in self._shared():
            layer, _, key = name.rpartition(".")
            del self.site.network.get_submodule(layer)._parameters[key]
        self.fix()

    def follow(self) -> None:
        """Take the weights of the wide network as they are now, so that gradients reach them."""
        for name, tensor in self._shared().items():
            layer, _, key = name.rpartition(".")
            setattr(self.site.network.get_submodule(layer), key, tensor.view_as(tensor))  # as no parameter of its own

    def fix(self) -> None:
        """Take the weights of the wide network without gradients, to measure and to embed."""
        with torch.no_grad():
            self.follow()

    def finished(self) -> NarrowWidth:
        """Return what the file needs of this width."""
        network = self.site.network
        if self.site.has_statistics and not self.site.crops.domain_fields:
            network = extract(network, SINGLE_DOMAIN)
        return NarrowWidth(self.channels, table_of(network))

    def _shared(self) -> dict[str, Tensor]:
        return leading_weights(dict(self._wide.named_parameters()), self._rows)


class _Sandwich(Distillation):
    """Trains all widths in each step."""

    def __init__(
        self, teacher: SiteNetwork, wide: SiteNetwork, narrow: Sequence[_NarrowNetwork], rows: IntArray,
        plan: SlimmingPlan,
    ) -> None:  # fmt: skip
        super().__init__(teacher, wide, rows, plan.epochs, plan.seed)
        self._narrow = list(narrow)
        self._draws = np.random.default_rng(plan.seed)
        for one in self._narrow:
            own = [parameter for parameter in one.site.network.parameters() if parameter.requires_grad]
            self.optimizer.add_param_group({"params": own, "lr": LEARNING_RATE})

    def run_epoch(self, epoch: int, progress: Any = None) -> float:
        """Show every crop once, at several widths; see :meth:`Distillation.run_epoch`."""
        self._draws = np.random.default_rng([self._seed, epoch, 1])
        return super().run_epoch(epoch, progress)

    def _start(self) -> None:
        super()._start()
        for one in self._narrow:
            one.site.network.train()

    def _loss(self, images: Tensor, domain: Tensor, wanted: EmbeddedMaps) -> Tensor:
        widest = outputs_of(self._student, images, domain)
        loss, target = widest.distance_to(wanted), widest.detached()
        *between, narrowest = self._narrow
        drawn = self._draws.permutation(len(between))[:DRAWN].tolist()
        for one in (*(between[number] for number in drawn), narrowest):
            one.follow()
            loss = loss + outputs_of(one.site, images, domain).distance_to(target)
        return loss


class _Training:
    def __init__(
        self, checkpoint: Checkpoint, crops: SiteCrops, widths: Sequence[float], plan: SlimmingPlan, kept: StateFile,
        groups: tuple[TiedChannels, ...], share: ShareOfMultiplyAdds,
    ) -> None:  # fmt: skip
        self._checkpoint, self._plan, self._kept, self._crops = checkpoint, plan, kept, crops
        self._names = tuple(name_of_width(width) for width in widths)
        counts = [counts_of_width(groups, width) for width in widths]
        self._shares = tuple(share(one) for one in counts)
        self._teacher = SiteNetwork(checkpoint, crops)
        if set(crops.domains) - set(checkpoint.domains):
            self._teacher.measure(plan.seed)
        self._judged, self._shown = judged_rows(crops)
        self._wanted = embedded(self._teacher, self._judged)
        importance = channel_importance(self._teacher.network, groups)
        order = {group.name: _order(group, importance[group.name]) for group in groups}
        self._wide = self._site(reorder_channels(self._teacher.network, order))
        self._narrow = [_NarrowNetwork(checkpoint, self._wide, _smaller(groups, one)) for one in counts[1:]]

    def run(self, bar: Bar) -> SlimmableNetwork:
        """Train, measure the statistics of each width, and compare the widths."""
        training = _Sandwich(self._teacher, self._wide, self._narrow, self._shown, self._plan)
        done = self._load(training)
        with bar("training widths", self._plan.epochs * len(self._shown)) as progress:
            progress(done * len(self._shown))
            for epoch in range(done, self._plan.epochs):
                training.run_epoch(epoch, progress)
                self._save(training, epoch + 1)
        sites = [self._wide, *(one.site for one in self._narrow)]
        for one in self._narrow:
            one.fix()
        for site in sites:
            site.measure(self._plan.seed)
        found = [embedded(site, self._judged) for site in sites]
        recipe = json.dumps({**asdict(self._plan), "widths": self._names, "weights": self._checkpoint.fingerprint})
        extra = {key: text for key, text in self._checkpoint.extra.items() if key in ("family", "colours")}
        checkpoint = self._wide.to_checkpoint(replace(self._checkpoint, centers=None), {**extra, RECIPE: recipe})
        return SlimmableNetwork(
            checkpoint,
            dict(zip(self._names[1:], (one.finished() for one in self._narrow), strict=True)),
            self._names,
            self._shares,
            tuple(float((one * self._wanted).sum(1).mean()) for one in found),
            self._table(found),
        )

    def _table(self, found: Sequence[FloatArray]) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(neighbour_overlap(self._wanted, queries, gallery=gallery) for gallery in found) for queries in found
        )

    def _networks(self) -> list[nn.Module]:
        return [self._wide.network, *(one.site.network for one in self._narrow)]

    def _load(self, training: Distillation) -> int:
        """Go on from the state; return how many epochs are done."""
        state = self._kept.state
        if state.stage != TRAINING:
            return 0
        for name, network in zip(self._names, self._networks(), strict=True):
            network.load_state_dict(state.network[name])
        training.optimizer.load_state_dict(state.optimizer)
        return state.epoch

    def _save(self, training: Distillation, epoch: int) -> None:
        states = {name: network.state_dict() for name, network in zip(self._names, self._networks(), strict=True)}
        optimizer = training.optimizer.state_dict()
        self._kept.save(stage=TRAINING, epoch=epoch, network=states, optimizer=optimizer)

    def _site(self, network: nn.Module) -> SiteNetwork:
        return SiteNetwork(replace(self._checkpoint, network=network), self._crops)


def _order(group: TiedChannels, importance: Tensor) -> Tensor:
    """The channels of a group, the most important of each part first."""
    parts = importance[: group.first], importance[group.first :]
    return torch.cat([parts[0].argsort(descending=True), group.first + parts[1].argsort(descending=True)])


def _smaller(groups: Sequence[TiedChannels], counts: IntArray) -> tuple[tuple[str, int], ...]:
    pairs = zip(groups, counts.tolist(), strict=True)
    return tuple((group.name, count) for group, count in pairs if count < group.size)
