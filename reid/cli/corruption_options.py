"""The options that say which corruptions images get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reid.errors import ConfigError

if TYPE_CHECKING:
    from reid.evaluation.corruption_benchmark import CorruptionBenchmark

CorruptionNames = Annotated[
    list[str] | None,
    typer.Option("--corruption", help="Corruption to draw from, such as fog. Can be repeated. Default: all twenty."),
]
Severity = Annotated[
    int | None, typer.Option(min=0, max=5, help="Severity of all images. Default: one of 1 to 5 for each image.")
]
Corrupted = Annotated[
    str | None,
    typer.Option(
        "--corrupt",
        metavar="both|query|gallery|all",
        help="Also score with corrupted images of queries and gallery (both), of one of them, or all three: the"
        " corruption benchmark. The page has a heat map by type and severity.",
    ),
]
CorruptRepeats = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Repeat --corrupt N times with other draws: the mean is scored. Papers take 10."
    ),
]
CorruptSeed = Annotated[int, typer.Option(min=0, help="Seed of the corruptions.")]


def corruption_benchmark(
    role: str | None, repeats: int, names: list[str] | None, severity: int | None, seed: int
) -> CorruptionBenchmark | None:
    """Read the options about corrupted images; None without ``--corrupt``, which the others need."""
    if role is None:
        if repeats != 1 or names or severity is not None or seed:
            raise ConfigError(
                "--corruption, --severity, --corrupt-repeats and --corrupt-seed: change nothing without --corrupt both,"
                " query, gallery or all"
            )
        return None
    from reid.data.corruptions.corruption_types import CorruptionPlan
    from reid.evaluation.corruption_benchmark import CorruptionBenchmark

    return CorruptionBenchmark(role, CorruptionPlan(tuple(names or ()), severity, seed), repeats)
