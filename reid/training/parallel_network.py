"""A network of which each process computes its own rows of a batch, and every process gets the outputs of all rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from reid.config import Train
from reid.errors import ConfigError
from reid.norm import Given
from reid.training.processes import Processes, RowGathering


class ParallelNetwork:
    """Wrap a network that takes images and domains and returns several tensors with a row for each image.

    Gradients are averaged over the processes by PyTorch's DistributedDataParallel, in a process group of their own, so
    that they never mix with the sums of the normalization layers.

    Args:
        network: The network. All processes get the parameters of process 0.
        recipe: How many identities and images a batch holds; an identity stays in one process.
        processes: All processes.

    Raises:
        ConfigError: There are more processes than identities in a batch.
    """

    def __init__(self, network: nn.Module, recipe: Train, processes: Processes) -> None:
        if processes.count > recipe.identities_per_batch:
            raise ConfigError(
                f"{processes.count} processes, and train.identities_per_batch = {recipe.identities_per_batch}: every"
                " process needs an identity; start fewer processes"
            )
        self._recipe, self._processes = recipe, processes
        self._network = DistributedDataParallel(
            Given(network),
            process_group=distributed.new_group(),
            broadcast_buffers=False,
            find_unused_parameters=True,
        )

    def own_positions(self, rows: int, rank: int | None = None) -> Tensor:
        """Return the positions (b,) int64 in a batch of the rows that a process computes; None is this process."""
        recipe = self._recipe
        return self._processes.own_rows(rows, recipe.identities_per_batch, recipe.images_per_identity, rank)

    def __call__(self, images: Tensor, domain: Tensor | None, rows: int) -> tuple[Tensor, ...]:
        """Compute the outputs (B, ...) of all rows of a batch.

        Args:
            images: The images (b, 3, H, W) of this process.
            domain: Their normalization domains (b,) int64.
            rows: B, the number of rows of the whole batch.
        """
        outputs = self._network(images, domain)
        positions = [self.own_positions(rows, rank) for rank in range(self._processes.count)]
        gather: Any = RowGathering.apply
        return tuple(gather(output, positions, self._processes.rank) for output in outputs)
