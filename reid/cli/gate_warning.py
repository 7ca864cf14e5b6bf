"""What a search says about an image that the gates of the network take for attacked or damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from reid.records import Sample

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint


def image_alarm(checkpoint: Checkpoint, query: Sample) -> dict[str, object]:
    """Ask the gates about the image of a query, and warn on stderr where they raise the alarm.

    Args:
        checkpoint: The network that embeds the image.
        query: The query.

    Returns:
        What every answer says about it in JSON; {} where the network has no gates for attacks.
    """
    from reid.robustness.gate_alarm import alarm_of, probabilities_of

    alarm = alarm_of(checkpoint)
    if alarm is None:
        return {}
    probability = round(float(probabilities_of(checkpoint, [query])[0]), 6)
    raised = alarm.is_raised(probability)
    if raised:
        typer.echo(
            f"warning: {query.path}: the gates of the network take this image for attacked or damaged (P(not clean)"
            f" {probability:.3f}, above {alarm.threshold:.3f}, which {100 * alarm.false_alarm_rate:g} % of the clean"
            " crops of the training exceed); look at the image before you trust the answers",
            err=True,
        )
    return {"not_clean": probability, "not_clean_threshold": alarm.threshold, "image_alarm": raised}
