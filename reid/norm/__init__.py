"""Normalization by camera, modality and domain: the heart of the package.

``convert_norm(network, camera_batchnorm(["a", "b"]))`` gives a network with statistics for each camera;
``Given(network)(images, labels)`` runs it on a batch of mixed cameras; ``calibrate`` measures new ones.
"""

from reid.norm.calibrate import Profiles, calibrate, install
from reid.norm.condition import Condition, Given, given
from reid.norm.convert import (
    POLICIES,
    DomainPolicy,
    add_domain,
    camera_batchnorm,
    convert_norm,
    domain_batchnorm,
    domains_of,
    extract,
    modality_batchnorm,
)
from reid.norm.layer import DomainBatchNorm
from reid.norm.stats import Stats

__all__ = [
    "POLICIES",
    "Condition",
    "DomainBatchNorm",
    "DomainPolicy",
    "Given",
    "Profiles",
    "Stats",
    "add_domain",
    "calibrate",
    "camera_batchnorm",
    "convert_norm",
    "domain_batchnorm",
    "domains_of",
    "extract",
    "given",
    "install",
    "modality_batchnorm",
]
