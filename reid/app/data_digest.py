"""A hash of the data that a gallery of the application was built from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from reid.data.street.generation import PLAN_FILE


def digest_of_data(manifests: Sequence[Path]) -> str:
    """Hash the manifests and, where there is one, the plan of the street: a gallery was built from these data."""
    digest = hashlib.sha256()
    plans = {path.parents[1] / PLAN_FILE for path in manifests}
    for path in [*manifests, *sorted(plan for plan in plans if plan.is_file())]:
        digest.update(path.name.encode() + b"\0" + path.parent.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]
