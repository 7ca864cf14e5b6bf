"""What a network is made smaller with: its groups of channels, the crops that are shown, and those that judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reid.adaptation.site_crops import SiteCrops
from reid.adaptation.site_network import SiteNetwork
from reid.data.selection import keep_balanced
from reid.errors import ConfigError, DataError, WeightsError
from reid.models.checkpoint import Checkpoint
from reid.models.networks.multiply_adds import ShareOfMultiplyAdds, multiply_adds_of_layers
from reid.models.networks.tied_channels import TiedChannels, tied_channels
from reid.norm import system_of
from reid.records import FloatArray, IntArray, Sample

FEWEST_CROPS = 16
JUDGED = 256  # crops on which candidates are compared, and which no epoch shows where there are enough


def domain_fields_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the fields that name the domains of a network; () for one set of statistics for all cameras."""
    return checkpoint.domain_fields if checkpoint.has_statistics else ()


def groups_of(checkpoint: Checkpoint) -> tuple[tuple[TiedChannels, ...], ShareOfMultiplyAdds]:
    """Find the channels that can be removed from a network, and what each costs.

    Raises:
        ConfigError: There are none, because PyTorch does not run the network, or it is not one of convolutions.
    """
    if checkpoint.runtime:
        raise ConfigError(f"{checkpoint.source}: a graph for {checkpoint.runtime} cannot be pruned; give its weights")
    if system_of(checkpoint.network) != "batch":
        raise ConfigError(
            f'{checkpoint.source}: its norms are of the system "{system_of(checkpoint.network)}"; channels are removed'
            ' from networks of the system "batch" only'
        )
    try:
        groups = tied_channels(checkpoint.network)
    except ConfigError as error:
        raise ConfigError(
            f"{checkpoint.source}: {checkpoint.spec.backbone} cannot be pruned, because {error}; OSNets, ResNets and"
            " MobileNets can"
        ) from error
    transform = checkpoint.transform
    costs = multiply_adds_of_layers(checkpoint.network, transform.height, transform.width)
    return groups, ShareOfMultiplyAdds(costs, groups)


def chosen_crops(checkpoint: Checkpoint, samples: Sequence[Sample], most: int) -> list[Sample]:
    """Choose the crops to use, as many of each domain as there are.

    Raises:
        DataError: There are too few, or one has no camera and the network has cameras.
    """
    fields = domain_fields_of(checkpoint)
    nameless = next((one for one in samples if "camera" in fields and not one.camera), None)
    if nameless is not None:
        raise DataError(f"{nameless.path}: the camera is empty, but the network has statistics for each camera")
    rows = keep_balanced(list({one.path: one for one in samples}.values()), fields or ("camera",), most)
    if len(rows) < FEWEST_CROPS:
        raise DataError(f"slim: needs at least {FEWEST_CROPS} crops to compare networks on, got {len(rows)}")
    return rows


def judged_rows(crops: SiteCrops) -> tuple[IntArray, IntArray]:
    """Divide crops into those that networks are compared on, and those that are shown in training.

    Returns:
        Two arrays of int64 rows; all crops are shown where too few would remain.
    """
    chosen = {one.path for one in keep_balanced(crops.samples, crops.domain_fields or ("camera",), JUDGED)}
    is_judged = np.array([one.path in chosen for one in crops.samples])
    shown = np.flatnonzero(~is_judged) if (~is_judged).sum() >= FEWEST_CROPS else np.arange(len(crops))
    return np.flatnonzero(is_judged), shown


def embedded(site: SiteNetwork, rows: IntArray) -> FloatArray:
    """Embed the crops at some rows (N,), without their mirror images.

    Returns:
        (N, D) float32, unit rows.

    Raises:
        WeightsError: A number is not finite.
    """
    site.network.eval()
    domain = site.crops.domain[torch.from_numpy(rows)].numpy()
    order = np.argsort(domain, kind="stable")
    with torch.inference_mode():
        parts = [
            site.run(site.images(rows[part]), site.crops.domain[torch.from_numpy(rows[part])])
            for part in np.array_split(order, -(-len(order) // 64))
        ]
    found = torch.cat(parts).numpy()
    if not np.isfinite(found).all():
        raise WeightsError("slim: the network gives numbers that are not finite; its weights are damaged")
    vectors = np.empty_like(found)
    vectors[order] = found
    return vectors
