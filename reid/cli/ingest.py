"""The command that turns a film into crops: ingest."""

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
    video: Annotated[Path, typer.Argument(help="video file, or a folder of pictures, one a frame")],
    camera: Annotated[str, typer.Option(help="camera that took it")],
    out: Annotated[Path, typer.Option(help="folder for the crops; one for each video")],
    append_to: Annotated[
        Path | None, typer.Option(help="manifest of an earlier ingest to add the rows to; default: OUT/manifest.csv")
    ] = None,
    detector: Annotated[
        str,
        typer.Option(help="hog, a detector of torchvision, an .onnx file; auto: torchvision's from its cache, or hog"),
    ] = "auto",
    detector_weights: Annotated[
        Path | None, typer.Option(help="weights of torchvision's detector; default: from torch's cache")
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, help="look at one frame of so many; default: all")] = None,
    fps: Annotated[float | None, typer.Option(help="or: look at about so many frames a second")] = None,
    source_fps: Annotated[
        float | None, typer.Option(help="frames a second that a folder shows, or a video that does not say it right")
    ] = None,
    start: Annotated[str | None, typer.Option(help="when it began, such as 2024-05-31T16:20:00")] = None,
    modality: Annotated[Modality, typer.Option(help="light that the camera sees")] = Modality.VISIBLE,
    min_score: Annotated[float | None, typer.Option(help="least score of a box; default: 0.5, of hog 0.6")] = None,
    min_height: Annotated[float, typer.Option(help="least height of a box in pixels")] = 64.0,
    min_track: Annotated[int, typer.Option(help="frames in which a track must be seen")] = 2,
    max_crops_per_track: Annotated[int, typer.Option(help="crops of a track, spread over it")] = 10,
    margin: Annotated[float, typer.Option(help="more on each side, in shares of the box")] = 0.0,
) -> None:
    """Cut the people out of a video and list them in a manifest, with time and track; again: go on after a stop.

    Nothing is downloaded and nothing leaves the machine; only you may read the crops.
    """
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
        for line in run(opened, finder, out, settings, bar=progress_bar, append_to=append_to).lines():
            typer.echo(line)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {out}", err=True)
        raise typer.Exit(130) from None


def _every(every: int | None, fps: float | None, rate: float) -> int:
    """Which frames to look at, from either way to say it."""
    if every is not None and fps is not None:
        raise ConfigError("--every and --fps say the same thing in two ways; give one")
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
