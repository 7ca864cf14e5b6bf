"""Whether profiles of cameras fit a network, and what a network keeps of them beside their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from reid.errors import WeightsError
from reid.models.runtime import UNCALIBRATED
from reid.norm import Profiles
from reid.structured_text import parse_json

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

MEASURED = "measured"  # key of the free text of a checkpoint: when each domain was measured


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


def measured_words(extra: Mapping[str, str], profiles: Profiles) -> dict[str, str]:
    """Return the free text of a checkpoint that says when each of its domains was measured.

    Args:
        extra: The free text that the checkpoint has.
        profiles: The profiles that it gets.

    Returns:
        The text by its key; nothing where the profiles have no date.
    """
    if not profiles.date:
        return {}
    dates = measured_dates(extra) | dict.fromkeys(profiles.domains, profiles.date)
    return {MEASURED: json.dumps(dates, sort_keys=True)}


def measured_dates(extra: Mapping[str, str]) -> dict[str, str]:
    """Return when each domain of a checkpoint was measured (ISO 8601, UTC), as far as its free text says so.

    Raises:
        WeightsError: The text cannot be read.

    Example:
        >>> measured_dates({MEASURED: '{"door": "2026-11-28T10:00:00+00:00"}'})
        {'door': '2026-11-28T10:00:00+00:00'}
    """
    try:
        dates = parse_json(extra.get(MEASURED, "{}"))
    except ValueError as error:
        raise WeightsError(f"the dates of the profiles cannot be read ({error}); measure the cameras again") from error
    return {str(name): str(date) for name, date in dates.items()} if isinstance(dates, dict) else {}
