"""Files of profiles: safetensors with one table for each norm layer, and a header with checksums.

The tables are ``<layer>.running_mean``, ``.running_var`` and ``.running_cov``, ``embedding.centers`` and
``embedding.cohort``.  Version 0.1.0 reads the files too, and leaves out what it does not know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from reid.errors import WeightsError
from reid.norm.profile_header import parse_profile_header
from reid.norm.site_cohort import SiteCohort
from reid.norm.tensor_file import write_table
from reid.old_names import current_fields, fields_in_files

if TYPE_CHECKING:
    from reid.norm.profiles import Profiles

FORMAT = "reid-profiles-1"
DAMAGED = "{path}: damaged, its {what} not what was saved; calibrate again"
CENTERS, COHORT = "embedding.centers", "embedding.cohort"
_TABLES = {"mean": "running_mean", "var": "running_var", "cov": "running_cov"}


def write_profiles(path: Path, profiles: Profiles) -> None:
    """Write profiles to a safetensors file, completely or not at all.

    Raises:
        WeightsError: If the file cannot be written.
    """
    tensors = {
        f"{layer}.{suffix}": tensor.contiguous()
        for key, suffix in _TABLES.items()
        for layer, tensor in getattr(profiles, key).items()
    }
    header = {key: getattr(profiles, key) for key in ("images", "weights", "date", "prior")}
    header |= {"names": profiles.domains, "by": fields_in_files(profiles.domain_fields)}
    if profiles.centers is not None:
        tensors[CENTERS] = profiles.centers.contiguous()
    if profiles.cohort is not None:
        tensors[COHORT], header["cohort"] = profiles.cohort.packed(profiles.domains)
    # what older files do not have is left out where there is nothing to say
    header |= {key: value for key in ("levels", "score_norm", "choice") if (value := getattr(profiles, key))}
    header["digest"] = _digest(tensors)
    text = json.dumps(header)
    check = hashlib.sha256(text.encode()).hexdigest()
    write_table(path, tensors, {"format": FORMAT, "profiles": text, "check": check})


def read_profiles(path: Path) -> dict[str, Any]:
    """Read what :func:`write_profiles` wrote, as the fields of :class:`~reid.norm.Profiles`.

    Raises:
        WeightsError: If the file cannot be read, is another file, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'{path}: cannot read camera profiles ({error}); make them with "reid calibrate"') from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(f'{path}: expected camera profiles written by "reid calibrate", got another file')
    text = metadata.get("profiles", "")
    if metadata.get("check") not in (None, hashlib.sha256(text.encode()).hexdigest()):  # older files have none
        raise WeightsError(DAMAGED.format(path=path, what="header is"))
    try:
        header = parse_profile_header(text, tensors)
    except ValueError as error:
        raise WeightsError(DAMAGED.format(path=path, what="header is")) from error
    if header.digest != _digest(tensors):
        raise WeightsError(DAMAGED.format(path=path, what="statistics are"))
    tables: dict[str, dict[str, Tensor]] = {
        key: {k.removesuffix(f".{suffix}"): t for k, t in tensors.items() if k.endswith(f".{suffix}")}
        for key, suffix in _TABLES.items()
    }
    if tables["mean"].keys() != (tables["var"] | tables["cov"]).keys():
        raise WeightsError(DAMAGED.format(path=path, what="layers are"))
    try:
        table = tensors.get(COHORT)
        cohort = None if table is None else SiteCohort.unpacked(header.domains, table, header.cohort)
    except ValueError as error:
        raise WeightsError(DAMAGED.format(path=path, what="cohort is")) from error
    return {
        **tables,
        "cohort": cohort,
        "domains": tuple(header.domains),
        "images": tuple(header.images),
        "domain_fields": current_fields(header.domain_fields),
        "centers": tensors.get(CENTERS),
        "levels": tuple(header.levels),
        **{key: getattr(header, key) for key in ("weights", "date", "prior", "score_norm", "choice")},
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute SHA-256 in hex over names and values, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()
