"""How embeddings come about, as a report states it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid.data.near_duplicates import current_near_duplicates
from reid.data.unreadable import current_unreadable

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

UNSEEN_CAMERA_KEY = "unseen cameras"  # key of the policy in a checkpoint's free text and in the JSON of results
CENTERING_KEY = "centering"


def provenance_of(checkpoint: Checkpoint) -> dict[str, object]:
    """Return how a network's embeddings come about, as far as the names of the files do not tell it."""
    from reid.models.checkpoint import PRIOR  # needs PyTorch, which commands import late
    from reid.models.runners import describe_execution

    provenance: dict[str, object] = {"neck": checkpoint.spec.neck, "flip": checkpoint.transform.flip}
    if checkpoint.runtime:
        provenance["runtime"] = checkpoint.runtime
    if not checkpoint.execution.is_usual:
        provenance |= {"device": checkpoint.execution.device, "precision": checkpoint.execution.precision}
        provenance |= {"runtime": describe_execution(checkpoint), "decoder": checkpoint.execution.decoder}
    unreadable = current_unreadable()
    if unreadable is not None:
        provenance["unreadable images"] = len(unreadable)
    near = current_near_duplicates()
    if near is not None:
        provenance["near duplicates"] = len(near)
    if checkpoint.centers is not None:
        provenance[CENTERING_KEY] = f"per {'/'.join(checkpoint.domain_fields)}"
    if PRIOR in checkpoint.extra:
        provenance[PRIOR] = checkpoint.extra[PRIOR]
    policies = [
        checkpoint.extra.get(UNSEEN_CAMERA_KEY, ""),
        "" if checkpoint.unknown_domain is None else checkpoint.unseen_camera_policy,
    ]
    if any(policies):
        provenance[UNSEEN_CAMERA_KEY] = " and ".join(filter(None, policies))
    return provenance
