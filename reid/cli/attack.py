"""``reid attack``: write attacked queries of a data set, and show what they do to the search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from reid.cli.network_options import ReadingCommand
from reid.cli.options import (
    AsJson,
    Backbone,
    Data,
    Flip,
    ProfileFiles,
    Root,
    Size,
    Unseen,
    Weights,
    finite,
    for_cameras_of,
    samples_of,
    stopped,
    unseen_policy,
)
from reid.errors import ConfigError
from reid.records import Sample, Split

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint
    from reid.robustness.attack_methods import AttackPlan

commands = typer.Typer()
_METHODS = "odfa|self|push|pull"
_OPTIMIZERS = "ifgsm|mifgsm|pgd|fgsm|random"

MethodName = Annotated[
    str,
    typer.Option(
        metavar=_METHODS,
        help="Where the embedding of a query is led: to its opposite (odfa) or away from itself (self), which need"
        " neither labels nor a gallery; away from the gallery crops of its identity (push), or to those of another"
        " identity (pull).",
    ),
]
OptimizerName = Annotated[
    str,
    typer.Option(
        metavar=_OPTIMIZERS,
        help="How pixels change: small steps along the gradient (ifgsm), with momentum (mifgsm), from a random"
        " start (pgd), in one step (fgsm), or without gradient (random), which shows what noise of the same size"
        " does.",
    ),
]
NormName = Annotated[
    str,
    typer.Option(
        metavar="linf|l2|l1",
        help="What epsilon bounds: the largest change of a value (linf), the root of the mean square of all changes"
        " (l2), or the mean of their absolute values (l1).",
    ),
]
Epsilon = Annotated[float, typer.Option(callback=finite, help="Largest size of the change in grey levels of 0 to 255.")]
Steps = Annotated[
    int | None,
    typer.Option(help="Steps along the gradient. Default: those of the papers, which follow from epsilon."),
]
TargetName = Annotated[str, typer.Option(help="Identity that pull leads to. Default: one drawn for each query.")]
Universal = Annotated[
    bool,
    typer.Option("--universal", help="Add the same noise to all queries; it is made on the crops of split train."),
]
QueryCount = Annotated[int | None, typer.Option(min=1, help="Attack so many queries, drawn by the seed. Default: all.")]
TargetWeights = Annotated[
    Path | None, typer.Option(help="Weights of another network that the attacked queries are also tried on.")
]
TargetBackbone = Annotated[str | None, typer.Option(help="Network that --target-weights are for.")]


@commands.command(
    cls=ReadingCommand,
    epilog="Example: reid attack --data crops/manifest.csv --out attacked --method odfa --norm linf --epsilon 8",
)
def attack(
    out: Annotated[Path, typer.Option(help="Folder to create or to complete: images and a manifest.")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
    method: MethodName = "odfa",
    optimizer: OptimizerName = "ifgsm",
    norm: NormName = "linf",
    epsilon: Epsilon = 8.0,
    steps: Steps = None,
    target: TargetName = "",
    universal: Universal = False,
    queries: QueryCount = None,
    target_weights: TargetWeights = None,
    target_backbone: TargetBackbone = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Change the pixels of queries a little, so that the network takes them for somebody else.

    It shows how easily a search is misled by somebody who knows the network, or with --target-weights one like it.
    Without rows of split query, every crop that is not for training is attacked.  The images are PNG files that stay
    within epsilon bit for bit.  The same command continues after an interruption.
    """
    from reid.data.loading import readable_rows
    from reid.data.manifest import check_files
    from reid.pipeline import check_weights, load_checkpoint, progress_bar, workers

    if not data:
        raise ConfigError("attack: name the images to attack with --data")
    if target_backbone and target_weights is None:
        raise ConfigError("--target-backbone: says what --target-weights are for, which is not given")
    if target and method != "pull":
        raise ConfigError(f"--target: says where pull leads to; --method {method} leads elsewhere")
    unseen_policy(unseen)
    check_weights(weights, profiles or ())
    check_weights(target_weights)
    from reid.robustness.attack_methods import AttackPlan
    from reid.robustness.attack_scores import queries_and_gallery
    from reid.robustness.attacked_folder import check_domains
    from reid.robustness.attacked_network import check_gradients

    plan = AttackPlan(method, optimizer, norm, epsilon, steps, seed, universal)
    samples = samples_of(data, root)
    check_files(samples)
    samples = tuple(samples[row] for row in readable_rows(samples, workers=workers()))
    attacked, gallery = queries_and_gallery(samples)
    if queries is not None and queries < len(attacked):
        drawn = np.random.default_rng(seed).permutation(len(attacked))[:queries]
        attacked = [attacked[number] for number in sorted(drawn.tolist())]
    checkpoint = load_checkpoint(weights, backbone, size, profiles or (), flip)
    check_gradients(checkpoint)
    checkpoint = for_cameras_of(samples, checkpoint, unseen)
    other_network = None
    if target_weights is not None:
        other_network = for_cameras_of(samples, load_checkpoint(target_weights, target_backbone), unseen)
    networks = [("white box", checkpoint), *([] if other_network is None else [("transfer", other_network)])]
    for _, network in networks:
        check_domains(network, [samples[row] for row in (*attacked, *gallery)])
    with progress_bar("attacking", len({samples[row].path for row in attacked})) as progress:
        try:
            manifest = _write(checkpoint, samples, attacked, gallery, out, plan, target, progress)
        except OSError as error:
            raise ConfigError(stopped(out, error)) from error
    _show_scores(networks, samples, attacked, gallery, manifest, plan, as_json)


def _write(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    attacked: Sequence[int],
    gallery: Sequence[int],
    out: Path,
    plan: AttackPlan,
    target: str,
    progress: object,
) -> Path:
    """Attack the queries; a method with a gallery gets the vectors that it leads to or away from."""
    from reid.pipeline import embed_samples
    from reid.robustness.attack_aims import aim_vectors
    from reid.robustness.attack_methods import METHODS
    from reid.robustness.attacked_folder import check_method, write_attacked

    other = None
    if METHODS[plan.method].needs_gallery:
        check_method(plan, bool(gallery))
        clean = embed_samples(checkpoint, [samples[row] for row in attacked], "embedding queries")
        crops = embed_samples(checkpoint, [samples[row] for row in gallery], "embedding the gallery")
        other = aim_vectors(plan.method, clean, crops, target=target, seed=plan.seed)
    return write_attacked(
        checkpoint,
        samples,
        attacked,
        out,
        plan,
        other=other,
        target=target,
        noise_from=[sample for sample in samples if sample.split is Split.TRAIN],
        progress=progress,  # type: ignore[arg-type]
    )


def _show_scores(
    networks: Sequence[tuple[str, Checkpoint]],
    samples: Sequence[Sample],
    attacked: Sequence[int],
    gallery: Sequence[int],
    manifest: Path,
    plan: AttackPlan,
    as_json: bool,
) -> None:
    """Print what the attacked queries do in each network."""
    from reid.data.manifest import read_manifest
    from reid.pipeline import embed_samples
    from reid.robustness.attack_scores import score_attack

    changed = read_manifest(manifest)
    found = [
        score_attack(
            network,
            [samples[row] for row in attacked],
            [changed[row] for row in attacked],
            [samples[row] for row in gallery],
            embed_samples,
            role,
        )
        for role, network in networks
    ]
    if as_json:
        typer.echo(
            json.dumps(
                {"manifest": str(manifest), "attack": plan.text(), "networks": [scores.to_json() for scores in found]},
                indent=2,
            )
        )
        return
    typer.echo(manifest)
    typer.echo(plan.text())
    for scores in found:
        for line in scores.lines():
            typer.echo(line)
    if not any(scores.results for scores in found):
        typer.echo("hint: rank-1 and mAP need labelled rows of split query and gallery", err=True)
