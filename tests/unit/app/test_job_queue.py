"""Long jobs run one after the other, can be stopped, and survive the program that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from reid.app.job_queue import ATTEMPTS, JobQueue
from reid.app.job_records import Job, JobStatus, read_jobs, read_progress, write_job
from reid.errors import ConfigError, DataError

# A program that does what its words say: "wait FILE" waits until there is a file, "add FILE TEXT" appends a line.
SCRIPT = """
import pathlib, sys, time
verb, *words = sys.argv[1:]
if verb == "add":
    with open(words[0], "a") as file: file.write(words[1] + chr(10))
    print(words[1])
elif verb == "wait":
    pathlib.Path(words[0] + ".began").touch()
    while not pathlib.Path(words[0]).exists(): time.sleep(0.02)
elif verb == "fail":
    sys.exit("error: " + words[0])
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "program.py"
    path.write_text(SCRIPT)
    return (sys.executable, str(path))


@pytest.fixture
def queues(tmp_path: Path, program: tuple[str, ...]) -> Iterator[Callable[[], JobQueue]]:
    opened: list[JobQueue] = []

    def make() -> JobQueue:
        opened.append(JobQueue(tmp_path / "jobs", program))
        return opened[-1]

    yield make
    for queue in opened:
        queue.close()


def until(condition: Callable[[], object]) -> None:
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("nothing happened")


def test_jobs_run_in_order_and_report(queues, tmp_path: Path) -> None:
    queue, log = queues(), tmp_path / "log"
    ended: list[int] = []
    queue.on_end(lambda job: ended.append(job.number))
    numbers = [
        queue.submit("a", "two commands", [("add", log, "one"), ("add", log, "two")], "anna").number,
        queue.submit("b", "fails", [("fail", "no such gallery"), ("add", log, "never")]).number,
        queue.submit("c", "last", [("add", log, "three")]).number,
    ]
    queue.start()
    last = queue.wait(numbers[-1], 30)
    assert last.status is JobStatus.DONE
    assert log.read_text().split() == ["one", "two", "three"]
    first, failed = queue.job(numbers[0]), queue.job(numbers[1])
    assert (first.status, first.result, first.who) == (JobStatus.DONE, ("one", "two"), "anna")
    assert (failed.status, failed.message) == (JobStatus.FAILED, "no such gallery")
    until(lambda: ended == numbers)
    assert [job["status"] for job in map(queue.describe, numbers)] == ["done", "failed", "done"]
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "jobs").iterdir()] == [0] * 12


def test_a_job_is_cancelled_paused_and_resumed(queues, tmp_path: Path) -> None:
    queue, gate = queues(), tmp_path / "gate"
    first = queue.submit("a", "waits", [("wait", gate)]).number
    second = queue.submit("b", "is never run", [("add", tmp_path / "log", "x")]).number
    queue.start()
    until((tmp_path / "gate.began").exists)
    assert queue.cancel(second).status is JobStatus.CANCELLED
    assert queue.pause(first).status is JobStatus.PAUSED
    until(lambda: queue.job(first).process == 0)
    gate.touch()
    queue.resume(first)
    assert queue.wait(first, 30).status is JobStatus.DONE
    assert not (tmp_path / "log").exists()
    with pytest.raises(ConfigError):
        queue.cancel(first)
    with pytest.raises(ConfigError):
        queue.resume(first)
    with pytest.raises(DataError):
        queue.job(99)


def test_a_closed_program_leaves_the_job_for_the_next(queues, tmp_path: Path) -> None:
    queue, gate = queues(), tmp_path / "gate"
    commands = [("add", tmp_path / "log", "one"), ("wait", gate), ("add", tmp_path / "log", "two")]
    number = queue.submit("a", "waits", commands).number
    queue.start()
    until((tmp_path / "gate.began").exists)
    queue.close()
    assert [job.status for job in read_jobs(tmp_path / "jobs")] == [JobStatus.WAITING]
    gate.touch()
    again = queues()
    again.start()
    assert again.wait(number, 30).status is JobStatus.DONE
    assert (tmp_path / "log").read_text().split() == ["one", "two"]  # the first command was not repeated


def test_a_killed_program_leaves_the_job_for_the_next(queues, program: tuple[str, ...], tmp_path: Path) -> None:
    """The process of the job lives on; the next program waits for it, and then repeats its command."""
    gate = tmp_path / "gate"
    code = (
        "import sys, time; from pathlib import Path; from reid.app.job_queue import JobQueue;"
        f"queue = JobQueue(Path({str(tmp_path / 'jobs')!r}), {program!r});"
        f"queue.submit('a', 'waits', [('wait', {str(gate)!r}), ('add', {str(tmp_path / 'log')!r}, 'done')]);"
        "queue.start(); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    until((tmp_path / "gate.began").exists)
    until(lambda: read_jobs(tmp_path / "jobs")[0].process)
    other.kill()
    other.wait()
    (tmp_path / "gate.began").unlink()
    queue = queues()
    queue.start()
    time.sleep(0.5)
    assert not (tmp_path / "gate.began").exists()  # not started twice at a time
    assert queue.job(1).status is JobStatus.RUNNING
    gate.touch()
    assert queue.wait(1, 30).status is JobStatus.DONE
    assert (tmp_path / "log").read_text().split() == ["done"]


def test_a_job_that_is_interrupted_again_and_again_fails(queues, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    job = Job(7, "a", "ends the program", (("add", "log", "x"),), status=JobStatus.RUNNING, attempts=ATTEMPTS)
    write_job(tmp_path / "jobs", job)
    (tmp_path / "jobs" / "job-000008.json").write_text('{"number": 8}')
    queue = queues()
    queue.start()
    assert queue.wait(7, 30).status is JobStatus.FAILED
    assert "interrupted" in queue.job(7).message
    assert queue.job(8).status is JobStatus.FAILED
    assert queue.submit("a", "next", [("add", tmp_path / "log", "x")]).number == 9


@pytest.mark.parametrize("layout", [None, "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"])
def test_progress_of_tqdm_is_read(layout: str | None, tmp_path: Path) -> None:
    with (tmp_path / "err").open("w+") as file:
        options = {} if layout is None else {"bar_format": layout}
        bar = tqdm(desc="embedding", total=200, file=file, ncols=100, mininterval=0, smoothing=0, **options)
        bar.start_t -= 10
        bar.update(50)
        bar.refresh()
        file.flush()
        found = read_progress((tmp_path / "err").read_text())
        assert found.stage == "embedding"
        assert found.share == 0.25
        assert found.seconds_left is not None
        assert found.seconds_left > 5
        bar.close()
    assert read_progress("no progress here\n").share is None


def test_a_job_that_cannot_be_run_fails_and_the_queue_goes_on(queues, tmp_path: Path) -> None:
    queue = queues()

    def fault(_: Job) -> None:
        raise RuntimeError("a listener")

    queue.on_end(fault)
    first = queue.submit("a", "no command line", [("add", "a\0b")]).number
    second = queue.submit("b", "next", [("add", tmp_path / "log", "x")]).number
    queue.start()
    assert queue.wait(second, 30).status is JobStatus.DONE
    assert queue.job(first).status is JobStatus.FAILED
    assert "could not be run" in queue.job(first).message
