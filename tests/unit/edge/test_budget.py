"""``--budget``: what fits is chosen, the most alike first; the times themselves are not tested."""

from __future__ import annotations

import pytest

from reid.edge.budget import TimedExport, choose_export, parse_budget
from reid.errors import ConfigError

EXPORTS = [
    TimedExport(1, "float32", "ONNX Runtime", 8.0, 1.0, 1.0),
    TimedExport(1, "int8", "OpenVINO", 5.0, 0.99, 0.95),
    TimedExport(0.5, "float32", "OpenVINO", 4.0, 0.9, 0.9),
    TimedExport(0.5, "int8", "OpenVINO", 3.0, 0.9, 0.90004),
]


@pytest.mark.parametrize(("budget", "wanted"), [(9, 0), (8, 0), (7.9, 1), (4.5, 3), (3.0, 3)])
def test_the_most_alike_that_fits_is_chosen_and_the_faster_of_equals(budget: float, wanted: int) -> None:
    assert choose_export(EXPORTS, budget) == EXPORTS[wanted]


def test_what_nothing_fits_names_the_fastest() -> None:
    with pytest.raises(ConfigError, match=r"3\.00 ms"):
        choose_export(EXPORTS, 2.9)


@pytest.mark.parametrize("text", ["", "5", "fast", "0 ms", "-1 ms", "5 min", "nan ms", "1e9"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        parse_budget(text)
