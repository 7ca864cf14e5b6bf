"""``reid ingest``: cut the people out of a video."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from reid.errors import ConfigError
from reid.records import Modality

commands = typer.Typer()


@commands.command(epilog="Example: reid ingest north.mp4 --camera north --out crops/north --fps 5")
def ingest(
    video: Annotated[Path, typer.Argument(help="Video file, or a folder with one image for each frame.")],
    camera: Annotated[str, typer.Option(help="Camera that recorded the video.")],
    out: Annotated[Path, typer.Option(help="Folder for the crops of this video.")],
    append_to: Annotated[
        Path | None,
        typer.Option(help="Manifest of an earlier ingest to add the rows to. Default: OUT/manifest.csv."),
    ] = None,
    detector: Annotated[
        str,
        typer.Option(
            help="hog, the name of a torchvision detector, or an .onnx file. auto takes the most accurate torchvision"
            " detector whose weights are in torch's cache, else hog."
        ),
    ] = "auto",
    detector_weights: Annotated[
        Path | None, typer.Option(help="Weights of the torchvision detector. Default: those in torch's cache.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Search every EVERY-th frame for people. Default: every frame.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Search about FPS frames of each second of the video. Replaces --every.")
    ] = None,
    source_fps: Annotated[
        float | None,
        typer.Option(help="Frames per second of a folder, or of a video whose header is wrong or has none."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Time at which the video begins, such as 2024-05-31T16:20:00. Default: 1970-01-01."),
    ] = None,
    modality: Annotated[Modality, typer.Option(help="Light that the camera records.")] = Modality.VISIBLE,
    min_score: Annotated[
        float | None, typer.Option(help="Smallest score of a detection. Default: 0.5, for hog 0.6.")
    ] = None,
    min_height: Annotated[float, typer.Option(help="Smallest height of a person in pixels.")] = 64.0,
    min_track: Annotated[
        int, typer.Option(help="Smallest number of frames of a track. Shorter tracks are dropped.")
    ] = 2,
    max_crops_per_track: Annotated[
        int, typer.Option(help="Largest number of crops of a track. They are spread evenly over it.")
    ] = 10,
    margin: Annotated[
        float, typer.Option(help="Margin to add on each side of a person, as a share of its width or height.")
    ] = 0.0,
) -> None:
    """Cut the people out of a video, and write a manifest of the crops with time and track.

    The same command continues after an interruption.  Nothing is downloaded, nothing leaves the machine, and only you
    can read the crops.
    """
    if not video.exists():
        raise ConfigError(f"{video}: no such file; expected a video file or a folder of images")
    from reid.data.video import Settings, open_detector, open_video
    from reid.data.video import ingest as run
    from reid.data.video.ingestion import EPOCH
    from reid.pipeline import progress_bar

    opened = open_video(video, source_fps)
    finder = open_detector(detector, detector_weights)
    settings = Settings(
        camera=camera,
        modality=modality,
        every=_every(every, fps, opened.rate),
        start=EPOCH if start is None else _moment(start),
        min_score=finder.min_score if min_score is None else min_score,
        min_height=min_height,
        min_track=min_track,
        max_crops=max_crops_per_track,
        margin=margin,
    )
    try:
        result = run(opened, finder, out, settings, bar=progress_bar, append_to=append_to)
        typer.echo("\n".join(result.lines()))
        for doubt in result.doubts:
            typer.echo(f"warning: {doubt}", err=True)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {out}", err=True)
        raise typer.Exit(130) from None


def _every(every: int | None, fps: float | None, rate: float) -> int:
    """Return which frames to search: every n-th, from either of the two options."""
    if every is not None and fps is not None:
        raise ConfigError("--every and --fps choose the same thing in two ways; give one")
    if fps is None:
        return every or 1
    if not fps > 0:
        raise ConfigError(f"--fps {fps:g}: expected more than 0")
    return max(1, round(rate / fps))


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f'--start "{text}" is not ISO 8601 such as 2024-05-31T16:20:00') from None
