"""Write docs/results/normalize-auto.md from what benchmarks/normalize_auto.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def page(results: Mapping[str, Any]) -> str:
    return "\n\n".join(f"{name}: {result['seconds']}" for name, result in results.items())
