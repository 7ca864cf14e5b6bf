"""From a film to crops: frames, people in them, their tracks, and a manifest of what was cut out.

Four stages, each from files to files: :mod:`frames` are looked at by a detector (:mod:`detectors`), boxes become
tracks (:mod:`tracking`), some boxes of each track are cut out, rows enter a manifest (:mod:`folder`).  Nothing here
knows networks for re-identification, and nothing is ever downloaded.
"""

from reid.data.video.detectors import Detector, open_detector
from reid.data.video.frames import Film, open_film
from reid.data.video.ingestion import Ingested, Settings, ingest
from reid.data.video.tracking import FrameDetections, Sighting, track

__all__ = [
    "Detector",
    "Film",
    "FrameDetections",
    "Ingested",
    "Settings",
    "Sighting",
    "ingest",
    "open_detector",
    "open_film",
    "track",
]
