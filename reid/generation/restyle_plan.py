"""What to restyle, and how: the methods by name, and the crops that are restyled to a camera."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path  # noqa: F401 - for the examples

from reid.data.selection import calibration_samples
from reid.errors import ConfigError, DataError, unknown_name
from reid.records import SAMPLE_FIELDS, Sample

MOMENTS, GRAM = "moments", "gram"
# A name -> what the method does. Those behind the first two train a restyler.
METHODS = {
    MOMENTS: "maps each colour channel so that the crops of the camera get the other camera's mean and deviation",
    GRAM: "optimizes the pixels of each crop until its Gram matrix is that of the camera (Gatys et al. 2016)",
    "adain": "gives maps the camera's means and deviations (Huang & Belongie 2017)",
    "wct": "gives maps the camera's means and covariance (Li et al. 2017)",
    "conditional": "gives maps a learned shift and scale of the camera (Dumoulin et al. 2017)",
    "dynamic": "convolves maps with a kernel predicted from the camera's moments (Jing et al. 2020)",
}


def check_method(method: str) -> None:
    """Refuse an unknown method; ConfigError lists the known ones."""
    if method not in METHODS:
        raise ConfigError(f"--method: {unknown_name('method', method, METHODS)}")


def style_name(sample: Sample) -> str:
    """Name the style that a crop has: its category, its light and its camera.

    A camera that delivers both visible and infrared light has two styles.

    Example:
        >>> style_name(Sample(Path("1.jpg"), camera="door"))
        'person/visible/door'
    """
    return f"{sample.category}/{sample.modality}/{sample.camera}"


@dataclass(frozen=True)
class RestylePlan:
    """Which crops of some cameras are restyled, to the style of each of some others.

    Crops of split train are restyled, or all where the data have none.

    Attributes:
        sources: The cameras whose crops are restyled; () means all.
        targets: The cameras that they shall look like.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def pairs(self, samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
        """Pair each crop with a crop of its target camera, which lends its camera, light and style.

        Args:
            samples: All rows of the data; generated ones are neither restyled nor a target.

        Returns:
            Pairs (crop, crop of the target camera and of the same category).

        Raises:
            DataError: A camera is unknown, or no crop can be restyled.
        """
        recorded = [sample for sample in samples if not sample.generated]
        cameras = sorted({sample.camera for sample in recorded} - {""})
        for camera in (*self.sources, *self.targets):
            if camera not in cameras:
                raise DataError(unknown_name("camera", camera, cameras))
        # A camera with two lights lends the light of the crop; the first row of a camera stands for its style.
        of_camera = {(sample.category, sample.camera): sample for sample in reversed(recorded)}
        of_light = {(sample.category, sample.camera, sample.modality): sample for sample in reversed(recorded)}
        crops = {s.path: s for s in calibration_samples(recorded) if s.camera in (self.sources or cameras)}
        found = [
            (sample, of_light.get((sample.category, target, sample.modality), of_camera[sample.category, target]))
            for target in self.targets
            for sample in crops.values()
            if sample.camera != target and (sample.category, target) in of_camera
        ]
        if not found:
            raise DataError(
                "no crop to restyle: expected crops of a camera, of split train where the data have one, and another"
                " camera with crops of the same category to restyle them to"
            )
        return found

    @staticmethod
    def summary(pairs: Sequence[tuple[Sample, Sample]]) -> dict[str, object]:
        """Summarize pairs in values that JSON can hold; other pairs give another summary."""
        rows = "\n".join(
            repr([*(str(getattr(sample, name)) for name in SAMPLE_FIELDS), target.camera, str(target.modality)])
            for sample, target in pairs
        )
        return {"crops": len(pairs), "rows": f"{zlib.crc32(rows.encode('utf-8', 'surrogateescape')):08x}"}
