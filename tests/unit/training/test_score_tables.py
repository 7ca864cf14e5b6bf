"""Tables of the scores of several trainings.

A wrong variant that these tests refuse: a deviation that divides by n.
"""

from __future__ import annotations

import statistics

from helpers.training_loops import score
from reid.training.score_tables import entries, markdown, site_table, spread


def test_spread_is_the_standard_deviation_of_a_sample() -> None:
    values = [0.1, 0.2, 0.6]
    expected = f"30.0 ± {100 * statistics.stdev(values):.1f}"
    assert spread(values) == expected
    assert f"30.0 ± {100 * statistics.pstdev(values):.1f}" != expected  # divided by n: another number
    assert spread([0.5]) == "50.0"


def test_tables_have_a_row_for_each_method_and_show_what_is_missing() -> None:
    scores = [
        score("BN", 0, 0.2),
        score("DIAL", 0, 0.4),
        score("BN", 1, 0.4),
        score("BN", 0, 0.1, "all"),
        score("BN", 1, 0.1, "all"),
    ]
    found = entries(scores)
    assert [(e.row, e.direction, e.seeds) for e in found] == [
        ("BN", "visible->visible", [0, 1]), ("DIAL", "visible->visible", [0]), ("BN", "all", [0, 1])
    ]  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in site_table(found, "seen", 2).splitlines()]
    assert lines[0] == ["seen", "visible->visible", "all"]
    assert lines[2] == ["BN", "30.0 ± 14.1 / 15.0 ± 7.1", "10.0 ± 0.0 / 5.0 ± 0.0"]
    assert lines[3] == ["DIAL (1 of 2 seeds)", "40.0 / 20.0", "-"]
    two = site_table(entries([score("BN", 0, 0.2), score("BN", 0, 0.3, category="vehicle")]), "seen", 1)
    assert "person visible->visible" in two
    assert "vehicle visible->visible" in two
    assert len({len(line) for line in markdown(["a", "b"], [["long text", 1]]).splitlines()}) == 1
