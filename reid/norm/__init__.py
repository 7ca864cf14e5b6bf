"""Normalization by camera, modality and domain: the heart of the package.

``convert_norm(network, camera_batchnorm(["a", "b"]))`` gives a network with statistics for each camera;
``Given(network)(images, labels)`` runs it on a batch of mixed cameras; ``calibrate`` measures new ones.
"""

from reid.norm.calibrate import calibrate, install
from reid.norm.condition import Condition, Given, given, recomputing
from reid.norm.convert import (
    POLICIES,
    DomainPolicy,
    add_domain,
    camera_batchnorm,
    convert_norm,
    domain_batchnorm,
    domains_of,
    extract,
    mixes_domains,
    modality_batchnorm,
    system_of,
)
from reid.norm.domain_batchnorm import DomainBatchNorm
from reid.norm.profiles import Profiles
from reid.norm.statistics import Stats
from reid.norm.systems import SYSTEMS

__all__ = [
    "POLICIES",
    "SYSTEMS",
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
    "mixes_domains",
    "modality_batchnorm",
    "recomputing",
    "system_of",
]
