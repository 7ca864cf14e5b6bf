"""Person re-identification and multi-domain retrieval with camera-, modality- and category-specific normalization.

This module offers the names that most programs need.  ``import reid`` itself loads nothing: each name is imported when
it is first used, so that commands and programs that do not need PyTorch start at once.

From a folder of crops to an evaluated and saved gallery::

    import reid

    samples = reid.read_samples("crops/manifest.csv")
    checkpoint = reid.load_checkpoint("weights.safetensors")
    checkpoint = checkpoint.with_profiles(reid.calibrate(checkpoint, samples))
    embeddings = reid.embed(checkpoint, samples)
    print(reid.evaluate(embeddings))
    reid.Gallery.build(embeddings).save("galleries/crops")

Example:
    A network of your own gets statistics for each camera in two lines.

    >>> import reid, torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    >>> converted = reid.convert_norm(network, reid.camera_batchnorm(["door", "yard"]))
    >>> tuple(reid.Given(converted)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])).shape)
    (2, 4, 8, 8)
    >>> reid.Sample("0001.jpg", identity="anna", camera="door").category
    'person'
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the cost of importing typing
if TYPE_CHECKING:
    from typing import Any

    from reid.adaptation.site_adaptation import adapt as adapt
    from reid.data.manifest import read_manifest as read_manifest
    from reid.data.sample_tables import samples_from_frame as samples_from_frame
    from reid.data.sample_tables import samples_to_frame as samples_to_frame
    from reid.evaluation.results import Report as Report
    from reid.evaluation.run import evaluate as evaluate
    from reid.models.calibration import calibrate_checkpoint
    from reid.models.checkpoint import Checkpoint as Checkpoint
    from reid.norm.condition import Given as Given
    from reid.norm.convert import convert_norm as convert_norm
    from reid.norm.domain_policy import camera_batchnorm as camera_batchnorm
    from reid.norm.domain_policy import domain_batchnorm as domain_batchnorm
    from reid.norm.domain_policy import modality_batchnorm as modality_batchnorm
    from reid.norm.profiles import Profiles as Profiles
    from reid.pipeline import load_checkpoint as load_checkpoint
    from reid.pipeline import read_samples as read_samples
    from reid.records import Embeddings as Embeddings
    from reid.records import Modality as Modality
    from reid.records import Sample as Sample
    from reid.records import Split as Split
    from reid.records import UnseenCameraPolicy as UnseenCameraPolicy
    from reid.retrieval.camera_normalization import normalize_cameras as normalize_cameras
    from reid.retrieval.embed import embed as embed
    from reid.retrieval.gallery import Gallery as Gallery

    calibrate = calibrate_checkpoint

__version__ = "0.1.0"

# Where each public name is defined: "module", or "module:name" where the name differs there.
_DEFINED_IN = {
    "Checkpoint": "reid.models.checkpoint",
    "Embeddings": "reid.records",
    "Gallery": "reid.retrieval.gallery",
    "Given": "reid.norm.condition",
    "Modality": "reid.records",
    "Profiles": "reid.norm.profiles",
    "Report": "reid.evaluation.results",
    "Sample": "reid.records",
    "Split": "reid.records",
    "UnseenCameraPolicy": "reid.records",
    "adapt": "reid.adaptation.site_adaptation",
    "calibrate": "reid.models.calibration:calibrate_checkpoint",
    "camera_batchnorm": "reid.norm.domain_policy",
    "convert_norm": "reid.norm.convert",
    "domain_batchnorm": "reid.norm.domain_policy",
    "embed": "reid.retrieval.embed",
    "evaluate": "reid.evaluation.run",
    "load_checkpoint": "reid.pipeline",
    "modality_batchnorm": "reid.norm.domain_policy",
    "normalize_cameras": "reid.retrieval.camera_normalization",
    "read_manifest": "reid.data.manifest",
    "read_samples": "reid.pipeline",
    "samples_from_frame": "reid.data.sample_tables",
    "samples_to_frame": "reid.data.sample_tables",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, and keep it."""
    if name == "__all__":  # a list in this file would name everything a third time
        return __dir__()
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'reid' has no attribute {name!r}; it offers {', '.join(_DEFINED_IN)}")
    module, _, attribute = _DEFINED_IN[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute or name)
    return value


def __dir__() -> list[str]:
    """Return the public names, whether they are imported yet or not."""
    return [*_DEFINED_IN, "__version__"]
