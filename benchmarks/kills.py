"""Kills every verb that writes, a thousand times, and checks what is left.

    python benchmarks/kills.py [--kills 1000] [--verb NAME ...] [--seed 0]

First every step of every verb on the disk is a kill: each change of a folder, each wait for the disk, and half of each
file that a library writes. Then processes are killed at moments drawn at random, verb by verb, until so many kills are
done. After each kill the files must be those before the command or those after it, and the same command must finish the
work and leave no other file. The cases are those of tests/integration/test_kills.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("REID_EVERY_STEP", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))

import numpy as np
from test_kills import CASES, Ask, Trial, asking

from helpers.kill_cases import make_template
from helpers.tiny_page import save_plain_weights


def main() -> None:
    """Kill, check, and print how many kills each verb survived; the exit code is 1 where one did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--verb", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    survived, ended, failures = Counter[str](), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as place, asking() as ask, _trials(Path(place), ask, options.verb) as trials:
        for name, trial in trials.items():
            for step in range(len(trial.steps)):
                _kill(name, trial, step, None, (survived, ended, failures))
            print(json.dumps({"verb": name, "steps": len(trial.steps), "failures": len(failures)}), flush=True)
        random = np.random.default_rng(options.seed)
        while survived.total() + len(failures) < options.kills:
            name = str(random.choice(list(trials)))
            after = float(random.uniform(0, trials[name].seconds))
            _kill(name, trials[name], None, after, (survived, ended, failures))
    print(json.dumps({"kills": survived, "all": survived.total(), "ended before": ended.total()}))
    for line in failures:
        print(line)
    sys.exit(bool(failures))


@contextmanager
def _trials(place: Path, ask: Ask, verbs: list[str]) -> Iterator[dict[str, Trial]]:
    """Prepare the folder of each verb."""
    weights, template = place / "plain.safetensors", place / "template"
    save_plain_weights(weights)
    template.mkdir()
    make_template(template, weights)
    trials = {}
    for name in verbs:
        (place / name).mkdir()
        trials[name] = Trial(CASES[name], ask, template, place / name)
    yield trials


def _kill(
    name: str, trial: Trial, step: int | None, after: float | None,
    counts: tuple[Counter[str], Counter[str], list[str]],
) -> None:  # fmt: skip
    survived, ended, failures = counts
    try:
        (survived if trial.kill(step, after) else ended)[name] += 1
    except Exception:  # noqa: BLE001 (every kind of failure is one of the verb)
        what = f"step {step}" if after is None else f"after {after:.4f} s"
        failures.append(f"{name}, {what}: {traceback.format_exc()[-2000:]}")
        (trial.place / "killed").rename(trial.place / f"failed-{time.monotonic_ns()}")


if __name__ == "__main__":
    main()
