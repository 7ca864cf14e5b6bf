"""Write attacked images of a manifest to a folder of their own, with a manifest that names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reid.data.changed_images import (
    IMAGES,
    MANIFEST,
    begin_folder,
    rows_checksum,
    target_files,
    with_path,
    write_image,
)
from reid.data.images import read_image
from reid.data.loading import Progress, domain_indices
from reid.data.manifest import write_manifest
from reid.errors import ConfigError, DataError
from reid.files import write_whole, writer_folder
from reid.models.checkpoint import Checkpoint
from reid.records import Modality, Sample
from reid.robustness.attack_methods import METHODS, Aim, AttackPlan
from reid.robustness.attacked_network import AttackedNetwork
from reid.robustness.attacks import ImageSize, apply_noise, attack_images, perturb_all, same_size, start_noise
from reid.robustness.differentiable_resize import memory_of

SETTINGS, NOISE = "attack.json", "noise.safetensors"
BATCH = 16  # images that are attacked at a time
BATCH_BYTES = 2**28  # of their pixels
NOISE_IMAGES = 256  # on which universal noise is made


def write_attacked(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    attacked: Sequence[int],
    out: Path,
    plan: AttackPlan,
    *,
    other: Tensor | None = None,
    target: str = "",
    noise_from: Sequence[Sample] = (),
    progress: Progress | None = None,
) -> Path:
    """Attack the images of some samples and write them as PNG files, which hold exactly the pixels that were judged.

    Images that are there already are kept, so an interrupted run continues, to the same images.  Every image appears
    whole or not at all, and the manifest appears when all are complete.  An infrared image stays without colour.

    Args:
        checkpoint: The network; it sees the images as :func:`reid.retrieval.embed.embed` does.
        samples: All rows of the manifest.
        attacked: The numbers of the rows whose images are attacked; an image that is listed several times is attacked
            once.
        out: The folder: new, empty, or of an earlier run with the same samples, plan and network.
        plan: How.
        other: (len(attacked), D) float, for a method with a gallery: what
            :func:`~reid.robustness.attack_aims.aim_vectors` returns.
        target: What ``other`` was chosen by.
        noise_from: The images that universal noise is made on; () takes the attacked ones.
        progress: Called with the number of images since its last call.

    Returns:
        The manifest; its rows are those of ``samples`` in their order.

    Raises:
        ConfigError: The folder holds something else, no file can be written in it, or the network has no gradient.
        DataError: An image cannot be read.
    """
    network = AttackedNetwork(checkpoint)
    first = {samples[row].path: (number, samples[row]) for number, row in reversed(list(enumerate(attacked)))}
    chosen = [first[path] for path in dict.fromkeys(samples[row].path for row in attacked)]
    queries = [sample for _, sample in chosen]
    check_domains(checkpoint, [*queries, *(noise_from if plan.universal else ())])
    targets = target_files([sample.path for sample in queries], out / IMAGES)
    begin_folder(out, SETTINGS, _settings(checkpoint, samples, attacked, plan, target))
    with writer_folder(out) as own:
        noise = _universal_noise(network, noise_from or queries, plan, out / NOISE) if plan.universal else None
        sizes = [_size(sample) for sample in queries]
        for rows in same_size(sizes, _largest_batch):
            missing = [row for row in rows if not targets[queries[row].path].exists()]
            if missing:
                aims = None if other is None else other[[chosen[row][0] for row in rows]]
                images = _attack_batch(network, [queries[row] for row in rows], plan, noise, aims)
                for row, image in zip(rows, images, strict=True):
                    if row in missing:
                        write_image(Image.fromarray(image), targets[queries[row].path], own)
            if progress is not None:
                progress(len(rows))
    manifest = out / MANIFEST
    if not manifest.exists():
        rows_out = [with_path(sample, targets.get(sample.path, sample.path)) for sample in samples]
        write_manifest(rows_out, manifest)
    return manifest


def check_domains(checkpoint: Checkpoint, samples: Sequence[Sample]) -> None:
    """Refuse samples of a domain that a network does not know, before anything is written.

    Raises:
        ConditionError: There is one, and the network refuses it.
    """
    if checkpoint.domain_fields:
        domain_indices(samples, checkpoint.domain_fields, checkpoint.domains, checkpoint.unknown_domain)


def _largest_batch(size: ImageSize) -> int:
    return int(np.clip(BATCH_BYTES // memory_of(*size[:2]), 1, BATCH))


def _size(sample: Sample) -> ImageSize:
    width, height = read_image(sample.path).size
    return height, width, sample.modality is Modality.INFRARED


def _settings(
    checkpoint: Checkpoint, samples: Sequence[Sample], attacked: Sequence[int], plan: AttackPlan, target: str
) -> dict[str, object]:
    """What decides the images and the rows, in values that JSON can hold."""
    chosen = rows_checksum([samples[row] for row in attacked])
    return {
        **asdict(plan),
        "steps": plan.step_count,
        "target": target,
        "network": checkpoint.fingerprint,
        "unseen_camera": str(checkpoint.unseen_camera_policy),
        "samples": len(samples),
        "rows": rows_checksum(samples),
        "attacked": len(attacked),
        "attacked_rows": chosen,
    }


def _read(samples: Sequence[Sample]) -> Tensor:
    """Read images of one size, (B, 3, H, W) uint8."""
    pixels = [torch.from_numpy(np.array(read_image(sample.path))).permute(2, 0, 1) for sample in samples]
    if len({tuple(one.shape) for one in pixels}) > 1:
        raise DataError(f"{samples[0].path}: an image changed while it was attacked; run the command again")
    return torch.stack(pixels).contiguous()


def _domain(network: AttackedNetwork, samples: Sequence[Sample]) -> Tensor | None:
    checkpoint = network.checkpoint
    if not checkpoint.domain_fields:
        return None
    return domain_indices(samples, checkpoint.domain_fields, checkpoint.domains, checkpoint.unknown_domain)


def _attack_batch(
    network: AttackedNetwork, samples: Sequence[Sample], plan: AttackPlan, noise: Tensor | None, other: Tensor | None
) -> list[np.typing.NDArray[np.uint8]]:
    """Attack images of one size; returns (H, W, 3) uint8 each."""
    images, is_grey, domain = (
        _read(samples).to(network.device),
        samples[0].modality is Modality.INFRARED,
        _domain(network, samples),
    )
    if noise is not None:
        changed = apply_noise(images, noise, plan, is_grey)
    else:
        aims = None if other is None else other.to(network.device)
        found = attack_images(lambda x: network.vectors(x, domain), images, plan, other=aims, is_grey=is_grey)
        changed = found.images
    return [image.permute(1, 2, 0).cpu().numpy() for image in changed]


def _universal_noise(network: AttackedNetwork, samples: Sequence[Sample], plan: AttackPlan, file: Path) -> Tensor:
    """Read the universal noise of an earlier run, or make it and write it."""
    if not file.exists():
        made = make_noise(network, samples, plan).cpu()
        write_whole(file, lambda part: save_file({"noise": made}, part, {"plan": plan.text()}))
    try:
        return load_file(file)["noise"].to(network.device)
    except (SafetensorError, OSError, KeyError) as error:
        raise ConfigError(f"{file}: damaged ({error}); delete the folder and attack again") from error


def make_noise(network: AttackedNetwork, samples: Sequence[Sample], plan: AttackPlan) -> Tensor:
    """Make one perturbation for all images: steps over batches of some of them, whose directions add up.

    Args:
        network: The network.
        samples: Images to make it on; at most 256 of them are used, drawn by the seed.
        plan: How; its steps are how often all images are used.

    Returns:
        (3, height, width) float32 in grey levels, of the size of the network's images.
    """
    transform = network.checkpoint.transform
    random = np.random.default_rng(plan.seed)
    drawn = [samples[row] for row in np.sort(random.permutation(len(samples))[:NOISE_IMAGES]).tolist()]
    noise = start_noise(transform.height, transform.width, plan).to(network.device)
    batches = same_size([_size(sample) for sample in drawn], _largest_batch)
    for _ in range(plan.step_count):
        for number in random.permutation(len(batches)).tolist():
            batch = [drawn[row] for row in batches[number]]
            images, domain = _read(batch).float().to(network.device), _domain(network, batch)
            with torch.no_grad():
                aim = Aim(network.vectors(images, domain))
            noise = perturb_all(
                lambda x, domain=domain: network.vectors(x, domain),  # type: ignore[misc]
                images,
                noise,
                plan,
                aim,
                batch[0].modality is Modality.INFRARED,
            )
    return noise


def check_method(plan: AttackPlan, has_gallery: bool) -> None:
    """Refuse a method that needs a gallery where there is none.

    Raises:
        ConfigError: There is none.
    """
    if METHODS[plan.method].needs_gallery and not has_gallery:
        raise ConfigError(
            f"attack: {plan.method} needs gallery crops beside the queries; take odfa or self, which need none"
        )
