"""Turn a video into crops: frames, the people in them, their tracks, and a manifest of the crops.

A detector (:mod:`reid.data.video.detectors`) finds boxes in frames (:mod:`reid.data.video.frames`), boxes become tracks
(:mod:`reid.data.video.tracking`), some boxes of each track become crops, and the crops are listed in a manifest
(:mod:`reid.data.video.video_folder`).  Nothing is ever downloaded.
"""

from reid.data.video.detectors import Detector, open_detector
from reid.data.video.frames import Video, open_video
from reid.data.video.ingestion import IngestResult, Settings, ingest
from reid.data.video.tracking import FrameDetections, TrackedBox, track

__all__ = [
    "Detector",
    "FrameDetections",
    "IngestResult",
    "Settings",
    "TrackedBox",
    "Video",
    "ingest",
    "open_detector",
    "open_video",
    "track",
]
