"""The first steps of ``reid start``: what is asked, and the manifest of a folder of crops or of videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from reid.cli.start_steps import StartRecord, Step
from reid.errors import ConfigError
from reid.files import remove_partial_files

if TYPE_CHECKING:
    from reid.data.site_folder import SiteFolder

Answer = TypeVar("Answer")

MOST_QUESTIONS = 3
FPS = 5.0
PERSON = "person"


@dataclass(frozen=True)
class Wishes:
    """What the options say; None and "" leave a decision to a question or to the program."""

    out: Path
    weights: str
    backbone: str | None
    category: str | None
    fps: float | None
    adapt: bool | None
    questions: Questions
    pattern: str | None = None
    execution: tuple[str, ...] = ()


class Questions:
    """Asks in a terminal, at most three times.

    Args:
        asks: Whether to ask at all; otherwise every question gets its default.

    Example:
        >>> Questions(False).ask(lambda: "an answer", "the default")
        'the default'
    """

    def __init__(self, asks: bool) -> None:
        self._left = MOST_QUESTIONS if asks else 0

    def ask(self, question: Callable[[], Answer], default: Answer) -> Answer:
        """Return the answer to a question; its default where no more is asked."""
        if not self._left:
            return default
        self._left -= 1
        return question()


def manifest_steps(found: SiteFolder, wishes: Wishes, record: StartRecord) -> list[Step]:
    """Say what was found, and return the steps that write the manifest; none where there is one."""
    typer.echo(
        f"{found.folder}: {len(found.images)} images, {len(found.videos)} videos"
        + (", and a manifest, which is used as it is" if found.manifest else ""),
        err=True,
    )
    if found.images and not found.manifest:
        if found.videos:
            typer.echo("hint: the images are taken for crops, and the videos are left out", err=True)
        _refuse(wishes, "fps", "the images of the folder are taken for crops, and a rate of frames belongs to videos")
        return [_init_step(found, wishes, record)]
    if not found.manifest:
        _refuse(wishes, "pattern", "the folder holds videos, whose names tell their cameras")
        _refuse(wishes, "category", f"people are found in videos, so their category is {PERSON}")
        return _ingest_steps(found, wishes)
    made_here = Step("manifest", tuple(record.answers.get("init", ())), found.manifest)
    is_own = bool(made_here.words) and record.is_done(made_here)
    was_ended = record.may_have_ended_within(made_here)
    if was_ended:
        remove_partial_files(found.folder)
    _refuse_for_manifest(found.manifest, wishes, made_here.words if is_own or was_ended else ())
    return [made_here] if is_own else []


def _refuse(wishes: Wishes, name: str, why: str) -> None:
    """Refuse an option that would change nothing."""
    if getattr(wishes, name) is not None:
        raise ConfigError(f"--{name}: {why}; leave it out")


def _refuse_for_manifest(manifest: Path, wishes: Wishes, words: Sequence[str]) -> None:
    """Refuse what a manifest that is there does not follow; ``words`` made it, where this start has made it before."""
    _refuse(wishes, "fps", "the folder holds crops, and a rate of frames belongs to videos")
    for name, asked, default in (("pattern", wishes.pattern, None), ("category", wishes.category, PERSON)):
        option = f"--{name}"
        used = words[words.index(option) + 1] if option in words else default if words else None
        if asked is not None and asked != used:
            made = f'was made with {option} "{used}"' if used else "is used as it is"
            raise ConfigError(f"{option} {asked}: {manifest} {made}; delete it to begin anew, or leave the option out")


def manifest_of(found: SiteFolder, steps: Sequence[Step]) -> Path:
    """Return where the manifest is, or will be after its steps."""
    from reid.data.crop_folder import MANIFEST

    if found.manifest or found.images:
        return found.folder / MANIFEST
    out = steps[0].words[steps[0].words.index("--out") + 1]
    return Path(out) / MANIFEST


def _init_step(found: SiteFolder, wishes: Wishes, record: StartRecord) -> Step:
    """Return the step that writes the manifest of a folder of crops, after up to two questions."""
    from reid.data.crop_folder import MANIFEST, samples_in_folder
    from reid.data.folder_layouts import find_layouts
    from reid.data.grey_images import grey_cameras

    words = ["init", str(found.folder)]
    layouts = [] if wishes.pattern else find_layouts(found.folder, found.images)
    likely = wishes.pattern or next((one.pattern for one in layouts if "{camera}" in one.pattern), layouts[0].pattern)
    if len(layouts) > 1:
        from reid.cli.init import ask_layout

        likely = wishes.questions.ask(lambda: ask_layout(layouts).pattern, likely)
    if len(layouts) != 1:
        words += ["--pattern", likely]
    category = wishes.category or PERSON
    words += ["--category", category] if category != PERSON else []
    samples = samples_in_folder(found.folder, likely, category)
    grey = [camera for camera in grey_cameras(samples) if camera]
    if grey and len(grey) < len({sample.camera for sample in samples if sample.camera}):
        question = f"The images of {', '.join(grey)} are grey. Do these cameras record infrared light"
        if wishes.questions.ask(lambda: typer.confirm(question, default=True), True):
            words += [word for camera in grey for word in ("--infrared", camera)]
    record.remember("init", words)
    return Step("manifest", tuple(words), found.folder / MANIFEST)


def _ingest_steps(found: SiteFolder, wishes: Wishes) -> list[Step]:
    """Return one step for each video; all add to the manifest of the first."""
    from reid.data.crop_folder import MANIFEST
    from reid.data.site_folder import origins_of

    steps: list[Step] = []
    for one in origins_of(found.folder, found.videos):
        folder = wishes.out / "crops" / one.name
        words = ["ingest", str(one.path), "--camera", one.camera, "--out", str(folder)]
        words += ["--fps", f"{wishes.fps or FPS:g}"]
        words += ["--start", one.start] if one.start else []
        if steps:
            words += ["--append-to", str(wishes.out / "crops" / steps[0].words[5].rpartition("/")[2] / MANIFEST)]
        steps.append(Step(f"crops of {one.path.name}", tuple(words), folder))
    return steps
