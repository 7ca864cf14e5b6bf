"""Train a small network to give the embeddings of a large one on unlabelled crops.

Both see the same crop, changed at random in the same way.  The loss is one minus the cosine of their embeddings, and
how far the last feature map is from that of the large network, which says more of each crop.  So the small network
needs no identities, and its embeddings stay comparable with those of the large one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reid.adaptation.site_network import SiteNetwork
from reid.data.loading import Progress
from reid.data.transforms import TrainTransform
from reid.errors import DataError
from reid.norm.specialised.slimming import scale_penalty
from reid.records import IntArray

BATCH_SIZE = 32
LEARNING_RATE = 1e-3  # of Adam at the start; it falls to 0 as half a cosine does
AUGMENTATION = TrainTransform(grey=0.0, erase=0.2, erase_area=(0.02, 0.15))


@dataclass(frozen=True, eq=False)
class EmbeddedMaps:
    """What a network gives for a batch: embeddings (B, D), and its last feature map (B, C, h, w)."""

    embeddings: Tensor
    maps: Tensor

    def detached(self) -> EmbeddedMaps:
        """Return the same without gradients."""
        return EmbeddedMaps(self.embeddings.detach(), self.maps.detach())

    def distance_to(self, wanted: EmbeddedMaps) -> Tensor:
        """Compute one minus the mean cosine of the embeddings, plus how far the maps are from each other."""
        angles = (1 - (self.embeddings * wanted.embeddings).sum(1)).mean()
        return angles + _map_distance(self.maps.float(), wanted.maps.float()).to(angles.device)


def _map_distance(maps: Tensor, wanted: Tensor) -> Tensor:
    """How far maps (B, C', h, w) are from those that are wanted, (B, C, h, w), 0 where they are equal.

    With as many channels it is the squared error in units of the wanted maps.  Otherwise it compares where the two
    look: the energy of each position, scaled to unit length (Zagoruyko and Komodakis, ICLR 2017, equation 2).
    """
    if maps.shape[1] == wanted.shape[1]:
        return (maps - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
    attention = [functional.normalize(one.square().mean(1).flatten(1)) for one in (maps, wanted)]
    return (attention[0] - attention[1]).square().sum(1).mean()


def outputs_of(site: SiteNetwork, images: Tensor, domain: Tensor) -> EmbeddedMaps:
    """Run a network on prepared images (B, 3, H, W) of domains (B,) int64, and keep its last feature map."""
    maps: list[Tensor] = []
    hook = site.network.get_submodule("backbone").register_forward_hook(lambda *given: maps.append(given[2]))
    try:
        embeddings = site.run(images, domain)
    finally:
        hook.remove()
    return EmbeddedMaps(embeddings, torch.cat(maps))


class Distillation:
    """The training of a network toward the embeddings of another.

    Args:
        teacher: Gives the embeddings; it does not change.
        student: Is trained, on the same crops.
        rows: (N,) int64, the crops to train on.
        epochs: How often each crop is shown.
        seed: Decides order and changes of the crops.
        penalty: The weight of the sum of all scales |gamma| of the norms in the loss.
    """

    def __init__(
        self, teacher: SiteNetwork, student: SiteNetwork, rows: IntArray, epochs: int, seed: int, penalty: float = 0.0
    ) -> None:
        self._teacher, self._student, self._rows = teacher, student, rows
        self._epochs, self._seed, self._penalty = epochs, seed, penalty
        parameters = [one for one in student.network.parameters() if one.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, LEARNING_RATE)

    def run_epoch(self, epoch: int, progress: Progress | None = None) -> float:
        """Show every crop once; return the mean loss.

        Args:
            epoch: Which one, from 0; with the seed it decides everything that is drawn.
            progress: Is called with the number of images of each batch.

        Raises:
            DataError: The loss is not finite.
        """
        random = np.random.default_rng([self._seed, epoch])
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        self._teacher.network.eval()
        self._start()
        losses = []
        for number, rows in enumerate(self._batches(random)):
            self._set_learning_rate(epoch + number * BATCH_SIZE / len(self._rows))
            losses.append(self._step(rows, generator))
            if progress is not None:
                progress(len(rows))
        mean = float(np.mean(losses))
        if not math.isfinite(mean):
            raise DataError("slim: the loss is not finite; the weights are damaged, or the crops have no contrast")
        return mean

    def _batches(self, random: np.random.Generator) -> Iterator[IntArray]:
        order = random.permutation(self._rows)
        yield from np.array_split(order, max(1, len(order) // BATCH_SIZE))

    def _step(self, rows: IntArray, generator: torch.Generator) -> float:
        crops = self._student.crops
        domain = crops.domain[torch.from_numpy(rows)]
        changed = AUGMENTATION(crops.pixels[torch.from_numpy(rows)], generator)
        images = self._student.transform.normalise(changed).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = outputs_of(self._teacher, images, domain)
        loss = self._loss(images, domain, wanted)
        value = float(loss.detach())
        if self._penalty:
            loss = loss + self._penalty * scale_penalty(self._student.network).cpu()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def _start(self) -> None:
        """Make ready for an epoch."""
        self._student.network.train()

    def _loss(self, images: Tensor, domain: Tensor, wanted: EmbeddedMaps) -> Tensor:
        """Compute how far the outputs for a batch are from those that are wanted."""
        return outputs_of(self._student, images, domain).distance_to(wanted)

    def _set_learning_rate(self, done: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * min(1.0, done / self._epochs)))
