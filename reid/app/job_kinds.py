"""The long jobs that a user can ask for: what each needs, and the commands that it runs.

A job names data of the machine only below the folders that the operator of the application allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reid.app.accounts import User
from reid.app.camera_jobs import DRIFT, REPORT, plan_report, plan_watch
from reid.app.change_jobs import plan_adaptation, plan_calibration, plan_camera, plan_switch
from reid.app.gallery_service import GalleryService
from reid.app.import_sources import find_source
from reid.app.job_records import CALIBRATE, CAMERA, SWITCH, UNDO, Job
from reid.app.network_changes import plan_undo
from reid.data.crop_folder import MANIFEST
from reid.data.file_times import read_time
from reid.data.label_text import clean_label
from reid.data.site_folder import VIDEO_SUFFIXES
from reid.errors import ConfigError, DataError, unknown_name

Commands = Sequence[Sequence[str]]
JobPlan = tuple[str, Commands]
MANIFEST_SUFFIXES = (".csv", ".parquet")


def submit_job(service: GalleryService, user: User, kind: str, parameters: Mapping[str, Any]) -> Job:
    """Put a job into the queue.

    Args:
        service: The gallery.
        user: Who asks for it.
        kind: A key of ``JOB_KINDS``.
        parameters: What the kind needs, see the functions of ``JOB_KINDS``.

    Returns:
        The job.

    Raises:
        ConfigError: The kind is unknown, or a parameter is unknown or wrong.
        DataError: The data cannot be read by the application, or too many jobs wait.
    """
    if kind not in JOB_KINDS:
        raise ConfigError(unknown_name("kind of job", kind, JOB_KINDS))
    plan, known = JOB_KINDS[kind]
    for name, value in parameters.items():
        if name not in known:
            raise ConfigError(unknown_name(f"parameter of the job {kind}", name, known))
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"{name}: expected a text or a number")
    with service.planning:
        title, commands = plan(service, parameters)
        service.audit.record("job", user.name, {"kind": kind})
        return service.jobs.submit(kind, title, commands, user.name)


def _identify(service: GalleryService, parameters: Mapping[str, Any]) -> JobPlan:
    """Group the crops into persons; "again" groups all anew."""
    return "Find persons", [_identify_command(service, bool(parameters.get("again")))]


def _identify_command(service: GalleryService, again: bool = False) -> list[str]:
    return ["identify", "--gallery", str(service.folder.resolve()), *(["--again"] if again else [])]


def _add(service: GalleryService, parameters: Mapping[str, Any]) -> JobPlan:
    """Add crops: "source" names a manifest, a folder with one, or a folder of crops, which gets one."""
    source = find_source(service, str(parameters.get("source", "")))
    manifest = source if source.is_file() else source / MANIFEST
    if source.is_file() and source.suffix.lower() not in MANIFEST_SUFFIXES:
        raise DataError("source: expected a manifest (CSV, Parquet) or a folder of crops")
    commands: list[list[str]] = []
    if not manifest.exists():
        commands.append(["init", str(source), f"--category={_label(parameters, 'category') or 'person'}"])
    commands.append(["index", "add", str(service.folder.resolve()), f"--data={manifest}"])
    return f"Add {source.name}", [*commands, _identify_command(service)]


def _ingest(service: GalleryService, parameters: Mapping[str, Any]) -> JobPlan:
    """Add the people of a video: "source" names it, "camera" its camera, and "start" when it begins."""
    video, camera = find_source(service, str(parameters.get("source", ""))), _label(parameters, "camera")
    if not video.is_file() or video.suffix.lower() not in VIDEO_SUFFIXES:
        raise DataError("source: expected a video")
    if not camera:
        raise DataError("camera: expected the name of the camera that recorded the video")
    number = 1
    while (out := service.state_folder.resolve() / "videos" / f"{video.stem.lstrip('.-')}-{number}").exists():
        number += 1
    words = ["ingest", str(video), f"--camera={camera}", f"--out={out}", "--fps=5"]
    if parameters.get("start"):
        try:
            words.append(f"--start={read_time(str(parameters['start'])).isoformat()}")
        except ValueError:
            raise DataError("start: expected a time such as 2024-05-31T16:20:00") from None
    add = ["index", "add", str(service.folder.resolve()), f"--data={out / MANIFEST}"]
    return f"Add the people of {video.name}", [words, add, _identify_command(service)]


def _compact(service: GalleryService, _: Mapping[str, Any]) -> JobPlan:
    """Write the gallery anew without removed rows."""
    return "Compact the gallery", [["index", "compact", str(service.folder.resolve())]]


def _verify(service: GalleryService, _: Mapping[str, Any]) -> JobPlan:
    """Check every byte of the gallery."""
    return "Check the gallery", [["index", "verify", str(service.folder.resolve())]]


def _label(parameters: Mapping[str, Any], name: str) -> str:
    """Return a label of the parameters."""
    return clean_label(str(parameters.get(name, "")))


# What a kind runs, and the names of its parameters.
JOB_KINDS: dict[str, tuple[Callable[[GalleryService, Mapping[str, Any]], JobPlan], tuple[str, ...]]] = {
    "identify": (_identify, ("again",)),
    "add": (_add, ("source", "category")),
    "ingest": (_ingest, ("source", "camera", "start")),
    "adapt": (plan_adaptation, ("source", "epochs")),
    CAMERA: (plan_camera, ("camera", "category", "modality", "source")),
    CALIBRATE: (plan_calibration, ("camera",)),
    SWITCH: (plan_switch, ()),
    UNDO: (plan_undo, ()),
    REPORT: (plan_report, ()),
    DRIFT: (plan_watch, ()),
    "compact": (_compact, ()),
    "verify": (_verify, ()),
}
