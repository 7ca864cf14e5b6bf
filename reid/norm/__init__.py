"""Normalization by camera, modality and category.

``convert_norm(network, camera_batchnorm(["door", "yard"]))`` makes a network with statistics for each camera,
``Given(network)(images, ["yard", "door"])`` runs it on a batch of mixed cameras, and ``calibrate`` measures the
statistics of new cameras.
"""

from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.calibrate import calibrate, install
from reid.norm.condition import Condition, Given, given, in_callers_order, recomputing
from reid.norm.convert import add_domain, convert_norm, domains_of, extract, mixes_domains, system_of
from reid.norm.domain_policy import DomainPolicy, camera_batchnorm, domain_batchnorm, modality_batchnorm
from reid.norm.profiles import Profiles
from reid.norm.statistics import Statistics
from reid.norm.systems import SYSTEMS

__all__ = [
    "SYSTEMS",
    "Condition",
    "DomainBatchNorm",
    "DomainPolicy",
    "Given",
    "Profiles",
    "Statistics",
    "add_domain",
    "calibrate",
    "camera_batchnorm",
    "convert_norm",
    "domain_batchnorm",
    "domains_of",
    "extract",
    "given",
    "in_callers_order",
    "install",
    "mixes_domains",
    "modality_batchnorm",
    "recomputing",
    "system_of",
]
