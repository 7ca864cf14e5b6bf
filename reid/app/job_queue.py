"""The queue of long jobs: one at a time, each in a process of its own, written down so that a restart goes on with it.

A job is a list of commands of this program.  Every such command goes on where it was when it is repeated, so a job
whose program or machine was stopped is started again with the command at which it was.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from reid.app.job_records import (
    CHANGING,
    RESULT_LINES,
    Job,
    JobProgress,
    JobStatus,
    error_line,
    has_succeeded,
    job_json,
    now_text,
    path_of_job,
    read_jobs,
    read_progress,
    read_tail,
    write_job,
)
from reid.errors import ConfigError, DataError

PROGRAM = (sys.executable, "-m", "reid.cli")
MOST_WAITING = 50
KEPT_JOBS = 200  # that have ended
ATTEMPTS = 5  # starts of a job that was interrupted, before it counts as failed
STOP_SECONDS = 10.0  # between asking a command to stop and killing it
NICENESS = 5  # searches go first


class JobQueue:
    """The jobs of one gallery.

    Args:
        folder: Where the jobs are written down; private, made where it is missing.
        program: The words before those of a command.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     queue = JobQueue(Path(folder) / "jobs", (sys.executable, "-c", "print('found nobody')"))
        ...     queue.start()
        ...     number = queue.submit("identify", "Find persons", [("identify",)]).number
        ...     job = queue.wait(number, 30)
        ...     queue.close()
        >>> str(job.status), job.result
        ('done', ('found nobody',))
    """

    def __init__(self, folder: Path, program: Sequence[str] = PROGRAM):
        self._folder = folder
        self._program = tuple(program)
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[int, Job] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._listeners: list[Callable[[Job], object]] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for job in read_jobs(folder):
            self._jobs[job.number] = job

    def start(self) -> None:
        """Begin to run jobs, and go on with those that an earlier program did not finish."""
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def on_end(self, listener: Callable[[Job], object]) -> None:
        """Call a function with every job that has ended, from the thread of the queue."""
        self._listeners.append(listener)

    def submit(self, kind: str, title: str, commands: Sequence[Sequence[str]], who: str = "") -> Job:
        """Put a job at the end of the queue.

        Args:
            kind: What it does.
            title: The same in one line for people.
            commands: The commands that it runs, each without the word "reid".
            who: The user who asks for it.

        Returns:
            The job.

        Raises:
            DataError: Too many jobs wait already.
        """
        with self._changed:
            if sum(not job.has_ended for job in self._jobs.values()) >= MOST_WAITING:
                raise DataError(f"{MOST_WAITING} jobs wait already; cancel some, or try again when they are done")
            number = max(self._jobs, default=0) + 1
            words = tuple(tuple(map(str, command)) for command in commands)
            job = self._keep(Job(number, kind, title, words, who, now_text()))
            self._forget_old()
            return job

    def jobs(self) -> list[Job]:
        """Return all jobs, the latest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: -job.number)

    def job(self, number: int) -> Job:
        """Return one job; DataError where there is none of this number."""
        with self._changed:
            if number not in self._jobs:
                raise DataError(f"no job has the number {number}")
            return self._jobs[number]

    def progress(self, number: int) -> JobProgress:
        """Return how far a job is."""
        job = self.job(number)
        if job.status is JobStatus.DONE:
            return JobProgress(share=1.0, seconds_left=0.0)
        if job.status is not JobStatus.RUNNING:
            return JobProgress()
        return read_progress(read_tail(path_of_job(self._folder, number, "err")))

    def describe(self, number: int) -> dict[str, Any]:
        """Return a job with its progress as plain values."""
        return job_json(self.job(number), self.progress(number))

    def cancel(self, number: int) -> Job:
        """Stop a job for good; what it has written so far stays."""
        return self._stop(number, JobStatus.CANCELLED)

    def pause(self, number: int) -> Job:
        """Stop a job so that :meth:`resume` goes on with it."""
        return self._stop(number, JobStatus.PAUSED)

    def resume(self, number: int) -> Job:
        """Put a job that was paused, failed or cancelled into the queue again."""
        with self._changed:
            job = self.job(number)
            if job.status not in (JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED) or not job.commands:
                raise ConfigError(f"job {number} is {job.status}; only one that was stopped can go on")
            later = [one for one in self._jobs if one > number and self._jobs[one].kind in CHANGING]
            if job.kind in CHANGING and later:  # it was planned for the network of that time
                raise ConfigError(f"job {number} cannot go on, because job {max(later)} came after it; start it anew")
            return self._keep(replace(job, status=JobStatus.WAITING, attempts=0, message="", ended=""))

    def wait(self, number: int, seconds: float) -> Job:
        """Wait until a job has ended, at most so many seconds, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs[number].has_ended, seconds)
            return self.job(number)

    def close(self) -> None:
        """Stop the job that runs; the next program goes on with it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            running = [job for job in self._jobs.values() if job.status is JobStatus.RUNNING]
        for job in running:
            _send(job.process, signal.SIGINT)
        if self._thread is not None:
            self._thread.join(STOP_SECONDS + 5)

    def _keep(self, job: Job) -> Job:
        with self._changed:
            write_job(self._folder, job)
            self._jobs[job.number] = job
            self._changed.notify_all()
            return job

    def _forget_old(self) -> None:
        ended = sorted(number for number, job in self._jobs.items() if job.has_ended)
        for number in ended[:-KEPT_JOBS]:
            del self._jobs[number]
            for suffix in ("json", "out", "err", "lock"):
                path_of_job(self._folder, number, suffix).unlink(missing_ok=True)

    def _stop(self, number: int, status: JobStatus) -> Job:
        with self._changed:
            job = self.job(number)
            if job.has_ended:
                raise ConfigError(f"job {number} is {job.status} already")
            was_running = job.status is JobStatus.RUNNING
            ended = now_text() if status is JobStatus.CANCELLED else ""
            job = self._keep(replace(job, status=status, ended=ended))
        if was_running:
            _send(job.process, signal.SIGINT)
        return job

    def _work(self) -> None:
        """Run one job after the other until the queue is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._next() is not None)
                job = self._next()
                if self._closing or job is None:
                    return
            try:
                self._run(job)
            except (OSError, ValueError) as error:  # such as a full disk
                self._fail(job.number, str(getattr(error, "strerror", None) or error))
            ended = self.job(job.number)
            if ended.has_ended:
                self._tell(ended)

    def _fail(self, number: int, reason: str) -> None:
        """Let a job fail, also where its record cannot be written."""
        failed = replace(self.job(number), status=JobStatus.FAILED, ended=now_text(), process=0)
        failed = replace(failed, message=f"the job could not be run ({reason})")
        with self._changed:
            self._jobs[number] = failed
        with suppress(OSError):
            self._keep(failed)

    def _tell(self, job: Job) -> None:
        """Call the listeners; what goes wrong there does not end the queue."""
        for listener in self._listeners:
            try:
                listener(job)
            except Exception as error:  # noqa: BLE001 - the queue goes on
                typer.echo(f"fault after job {job.number}: {type(error).__name__}: {error}", err=True)

    def _next(self) -> Job | None:
        """Return the job to run: one that an earlier program left running, then the first that waits."""
        for status in (JobStatus.RUNNING, JobStatus.WAITING):
            for number in sorted(self._jobs):
                if self._jobs[number].status is status:
                    return self._jobs[number]
        return None

    def _run(self, job: Job) -> None:
        """Run the commands of a job from the one at which it is."""
        lock = _open_lock(path_of_job(self._folder, job.number, "lock"), self._is_wanted(job.number), job.process)
        try:
            if not self._begin(job):
                return
            while (current := self.job(job.number)).at < len(current.commands):
                code = self._run_command(current, lock)
                if not self._take_outcome(current.number, code):
                    return
        finally:
            os.close(lock)

    def _is_wanted(self, number: int) -> Callable[[], bool]:
        return lambda: not self._closing and self.job(number).status is JobStatus.RUNNING

    def _begin(self, job: Job) -> bool:
        """Mark a job as running; false where it was stopped meanwhile or was interrupted too often."""
        with self._changed:
            job = self.job(job.number)
            if self._closing or job.status not in (JobStatus.WAITING, JobStatus.RUNNING):
                return False
            if job.attempts >= ATTEMPTS:
                message = f"it was interrupted {job.attempts} times and is not started again by itself"
                self._keep(replace(job, status=JobStatus.FAILED, ended=now_text(), message=message, process=0))
                return False
            self._keep(replace(job, status=JobStatus.RUNNING, started=now_text(), attempts=job.attempts + 1))
            return True

    def _run_command(self, job: Job, lock: int) -> int:
        """Run the current command of a job, and return its exit code."""
        paths = [path_of_job(self._folder, job.number, suffix) for suffix in ("out", "err")]
        mode = "ab" if job.at else "wb"  # the result shows what all commands printed
        environment = {**os.environ, "TQDM_MININTERVAL": "1"}
        with _private_file(paths[0], mode) as out, _private_file(paths[1], "wb") as err:
            process = subprocess.Popen(
                [*self._program, *job.commands[job.at]], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                pass_fds=(lock,), env=environment, start_new_session=True,
            )  # fmt: skip
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
            with self._changed:
                current = self.job(job.number)
                self._keep(replace(current, process=process.pid))
            if self._closing or current.status is not JobStatus.RUNNING:
                _send(process.pid, signal.SIGINT)
            return self._await(job.number, process)

    def _await(self, number: int, process: subprocess.Popen[bytes]) -> int:
        """Wait for a process; one that is to stop and does not is killed."""
        deadline = None
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)
            if self._closing or self.job(number).status is not JobStatus.RUNNING:
                deadline = deadline or time.monotonic() + STOP_SECONDS
                if time.monotonic() > deadline:
                    _send(process.pid, signal.SIGKILL)

    def _take_outcome(self, number: int, code: int) -> bool:
        """Write down what became of a command; return whether the next one is to run."""
        lines = read_tail(path_of_job(self._folder, number, "out")).splitlines()[-RESULT_LINES:]
        with self._changed:
            job = replace(self.job(number), process=0, result=tuple(lines))
            if job.status is not JobStatus.RUNNING:  # it was cancelled or paused
                self._keep(job)
                return False
            if has_succeeded(job.commands[job.at], code):
                is_last = job.at + 1 == len(job.commands)
                done = replace(job, at=job.at + 1, status=JobStatus.DONE if is_last else job.status)
                self._keep(replace(done, ended=now_text() if is_last else ""))
                return not is_last and not self._closing
            if self._closing:  # the next program goes on with it
                self._keep(replace(job, status=JobStatus.WAITING, attempts=job.attempts - 1))
                return False
            why = error_line(read_tail(path_of_job(self._folder, number, "err")))
            why = why or (f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}")
            self._keep(replace(job, status=JobStatus.FAILED, ended=now_text(), message=why))
            return False


def _send(process: int, number: signal.Signals) -> None:
    """Send a signal to a process of a job and to what it has started."""
    if process > 0:
        with suppress(OSError):
            os.killpg(process, number)


def _private_file(path: Path, mode: str) -> Any:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | (0 if "a" in mode else os.O_TRUNC), 0o600), mode)


def _open_lock(path: Path, is_wanted: Callable[[], bool], process: int) -> int:
    """Lock the file of a job; wait for a process of an earlier program that still runs it.

    The lock passes to the process of the job, which keeps it even if this program is killed.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    asked = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if not asked and not is_wanted():
                _send(process, signal.SIGINT)
                asked = True
            time.sleep(0.2)
