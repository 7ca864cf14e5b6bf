"""Long jobs as they are written down: what is to be done, how far it is, and what came out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from reid.app.refusals import without_paths
from reid.errors import DataError, ReidError
from reid.files import write_whole
from reid.structured_text import read_json

TAIL_BYTES = 2**14  # of the output of a command that are read for its result
RESULT_LINES = 100
# Exit codes of commands that say what was found, not that they failed.
FINDINGS: dict[tuple[str, ...], tuple[int, ...]] = {("cameras", "watch"): (3,)}
CAMERA, CALIBRATE, SWITCH, UNDO = "camera", "calibrate", "switch", "undo"  # kinds that change the network
CHANGING = (CAMERA, CALIBRATE, SWITCH, UNDO)
_RECORD_NAME = re.compile(r"job-(\d{6,})\.json")
# What tqdm writes: "title:  45%|####      | 45/100 [00:10<00:12, ...]", also without the brackets.
_PROGRESS = re.compile(
    r"(?P<title>[^|]*?):?\s*(?P<percent>\d{1,3})%\|[^|]*\|\D*(?:[\d.,kMG]+/[\d.,kMG]+ \[)?(?P<rest>[\d:<?]*)"
)


class JobStatus(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED})


@dataclass(frozen=True)
class JobProgress:
    """How far the command of a job is.

    Args:
        stage: What it does, such as "building the gallery"; "" where it does not say.
        share: The share that is done, 0..1; None where it is not known.
        seconds_left: The time left for this stage; None where it is not known.
    """

    stage: str = ""
    share: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Job:
    """One long job: commands that run one after the other.

    Args:
        number: Its number, 1 for the first.
        kind: What it does, a key of :data:`reid.app.job_kinds.JOB_KINDS`.
        title: The same for people, in one line.
        commands: The commands, each without the word "reid" before it.
        who: The name of the user who asked for it; "" where there are no users.
        created: When that was, ISO 8601 in UTC.
        status: Where it stands.
        at: How many of its commands are done.
        attempts: How often its commands were started.
        started: When it was started last; "" before that.
        ended: When it ended; "" before that.
        message: Why it failed, or what is to be known about it; "" otherwise.
        process: The number of the process that runs it; 0 for none.
        result: The last lines that its commands printed.
    """

    number: int
    kind: str
    title: str
    commands: tuple[tuple[str, ...], ...]
    who: str = ""
    created: str = ""
    status: JobStatus = JobStatus.WAITING
    at: int = 0
    attempts: int = 0
    started: str = ""
    ended: str = ""
    message: str = ""
    process: int = 0
    result: tuple[str, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.status in ENDED


def has_succeeded(command: Sequence[str], code: int) -> bool:
    """Whether a command that ended with an exit code did what it should.

    Example:
        >>> has_succeeded(["cameras", "watch"], 3), has_succeeded(["index", "verify"], 3)
        (True, False)
    """
    return code == 0 or code in FINDINGS.get(tuple(command[:2]), ())


def now_text() -> str:
    """Return the time in UTC, in whole seconds, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def path_of_job(folder: Path, number: int, suffix: str = "json") -> Path:
    """Return a file of a job: its record ("json"), its output ("out", "err") or its lock ("lock")."""
    return folder / f"job-{number:06}.{suffix}"


def write_job(folder: Path, job: Job) -> None:
    """Write the record of a job."""
    text = json.dumps(asdict(job), indent=2)
    write_whole(path_of_job(folder, job.number), lambda part: part.write_text(text, encoding="utf-8"))


def read_jobs(folder: Path) -> list[Job]:
    """Read the records of a folder, the lowest number first; a damaged one becomes a job that failed."""
    jobs = []
    for path in sorted(folder.glob("job-*.json")):
        match = _RECORD_NAME.fullmatch(path.name)
        if match is None:
            continue
        try:
            jobs.append(_job_of(read_json(path)))
        except (ReidError, OSError, TypeError, ValueError, KeyError):
            damaged = Job(int(match[1]), "unknown", "a job whose record is damaged", ())
            jobs.append(replace(damaged, status=JobStatus.FAILED, message="the record of the job is damaged"))
    return jobs


def _job_of(values: Mapping[str, Any]) -> Job:
    commands = tuple(tuple(map(str, words)) for words in values["commands"])
    job = Job(**{**values, "commands": commands, "result": tuple(map(str, values["result"]))})
    if not isinstance(job.number, int) or not isinstance(job.at, int):
        raise DataError("expected the numbers of a job")
    return replace(job, status=JobStatus(job.status))


def read_progress(text: str) -> JobProgress:
    """Read the progress that a command wrote last.

    Args:
        text: The end of what it wrote to stderr.

    Returns:
        The progress; without a share where there is none.

    Example:
        >>> read_progress("\\rembedding:  45%|####5     | 45/100 [00:10<01:12,  4.50img/s]")
        JobProgress(stage='embedding', share=0.45, seconds_left=72.0)
    """
    for line in reversed(re.split(r"[\r\n]", text)):
        match = _PROGRESS.match(line)
        if match:
            left = match["rest"].partition("<")[2]
            return JobProgress(match["title"].strip(), int(match["percent"]) / 100, _seconds(left))
    return JobProgress()


def _seconds(text: str) -> float | None:
    """Read "1:02:03" or "02:03"; None where the time is not known."""
    parts = text.split(":")
    if len(parts) < 2 or not all(part.isdigit() for part in parts):
        return None
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return float(seconds)


def read_tail(path: Path) -> str:
    """Return the end of a file as text; "" where it is missing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def error_line(text: str) -> str:
    """Return the line of error that a command wrote; "" without one."""
    lines = [line for line in re.split(r"[\r\n]", text) if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ""


def job_json(job: Job, progress: JobProgress) -> dict[str, Any]:
    """Return what a visitor may know about a job as plain values, without paths of the machine."""
    return {
        "number": job.number,
        "kind": job.kind,
        "title": job.title,
        "status": str(job.status),
        "who": job.who,
        "created": job.created,
        "started": job.started or None,
        "ended": job.ended or None,
        "step": min(job.at + 1, len(job.commands)),
        "steps": len(job.commands),
        "stage": progress.stage,
        "share": progress.share,
        "seconds_left": progress.seconds_left,
        "attempts": job.attempts,
        "message": without_paths(job.message),
        "result": [without_paths(line) for line in job.result],
    }
