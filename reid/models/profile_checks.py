"""Whether profiles of cameras fit a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid.errors import WeightsError
from reid.models.runtime import UNCALIBRATED
from reid.norm import Profiles

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint


def check_profiles(checkpoint: Checkpoint, profiles: Profiles) -> None:
    """Refuse profiles that a network cannot take.

    Args:
        checkpoint: The network.
        profiles: What was measured.

    Raises:
        WeightsError: They were measured with other weights, name their domains by other fields, or hold statistics or
            centers that the network has no use for.
    """
    if checkpoint.runtime and profiles.mean:
        raise WeightsError(f"{checkpoint.source}: these profiles hold statistics of BatchNorm, and {UNCALIBRATED}")
    if checkpoint.domain_fields and profiles.domain_fields != checkpoint.domain_fields:
        raise WeightsError(
            f"{checkpoint.source}: its domains are named by {'/'.join(checkpoint.domain_fields)}, those of the profiles"
            f" by {'/'.join(profiles.domain_fields)}; calibrate again with these weights"
        )
    if profiles.weights not in ("", checkpoint.weights, checkpoint.fingerprint):
        raise WeightsError(
            f"{checkpoint.source}: these are weights {checkpoint.weights}, the profiles were measured on"
            f" {profiles.weights}; calibrate again with these weights, or give the --size they were measured at"
        )
    if profiles.centers is not None and checkpoint.has_statistics and not checkpoint.domain_fields:
        raise WeightsError(
            f"{checkpoint.source}: its domains are not those of cameras, so it has no use for centers of cameras"
        )
