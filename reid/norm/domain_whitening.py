"""Whitening per domain: BatchNorm that also removes the correlation of channels (DWT, Roy et al., CVPR 2019).

Channels are cut into K = C / g blocks of g neighbours.  The moments of a domain are then a mean and K
covariances (:class:`CovStats`); a whitener makes of each a matrix W with W Sigma W^T = I, and the layer
gives y = gamma * W (x - mu) + beta.  With g = 1 this is BatchNorm.  A cast of colour is a correlation of
channels, which first-order statistics cannot remove.  Nothing here knows what the domains stand for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reid.errors import ConditionError, ConfigError, WeightsError, unknown_name
from reid.norm.condition import Condition, current_condition
from reid.norm.covariance import CovStats, check_blocks, covariances, synchronized_covariances
from reid.norm.domain_rows import NamedRows, carry_over, fill_rows
from reid.norm.statistics import Stats, statistics_dtype
from reid.norm.whitening_matrices import WHITENERS, whiten, whitening_matrices


class DomainWhitening(NamedRows):
    """Whitening with G domains for maps (B, C, H, W) or vectors (B, C), in blocks of ``group`` channels.

    Stands where a :class:`~reid.norm.domain_batchnorm.DomainBatchNorm` can, and names its domains like it.  State:
    ``running_mean`` (G, C), ``running_cov`` (G, C / g, g, g), biased and not shrunk, ``num_batches_tracked``
    (G,), without G when there is one domain; ``weight`` and ``bias`` (C,), shared.  The state of a plain or
    domain BatchNorm loads, its variances as diagonal covariances; the output is then BatchNorm's with
    (1 - eps) var + eps in place of var + eps.

    In training a domain is whitened by its own part of the batch, and only domains present are updated.  One
    with no more values a channel than ``group`` has no covariance of full rank: it is whitened with its
    running statistics and does not update them.  In evaluation the matrices are those of ``whitening``
    (G, K, g, g), made when the layer leaves training or its statistics are written; an exported or compiled
    network holds them as constants, so call ``eval()`` after the last change.  Computes in float32 at least.
    """

    running_mean: Tensor
    running_cov: Tensor
    num_batches_tracked: Tensor
    whitening: Tensor

    def __init__(
        self,
        channels: int,
        domains: Sequence[str],
        *,
        group: int = 4,
        method: str = "cholesky",
        affine: str | None = "shared",
        plain: type[nn.Module] = nn.BatchNorm2d,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        check_blocks(channels, group)
        if method not in WHITENERS:
            raise ConfigError(unknown_name("whitener", method, WHITENERS))
        if affine not in ("shared", None) or not 0 <= eps < 1:
            raise ConfigError(f'whitening: expected affine "shared" and 0 <= eps < 1, got {affine!r} and {eps}')
        self.channels, self.domains, self.affine, self.plain = channels, tuple(domains), affine, plain
        self.group, self.method, self.eps, self.momentum = group, method, eps, momentum
        rows = (len(self.domains),) if len(self.domains) > 1 else ()
        self.register_buffer("running_mean", torch.zeros(*rows, channels))
        self.register_buffer("running_cov", torch.eye(group).repeat(*rows, channels // group, 1, 1))
        self.register_buffer("num_batches_tracked", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("whitening", None, persistent=False)
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        self.sync = False
        self.refresh()

    @property
    def groups(self) -> int:
        """G, at least 1."""
        return max(len(self.domains), 1)

    @property
    def running(self) -> CovStats:
        """The kept statistics of every domain, as views that write through; mass 1 each."""
        mean = self.running_mean.view(self.groups, self.channels)
        cov = self.running_cov.view(self.groups, -1, self.group, self.group)
        return CovStats(mean, cov, torch.ones_like(mean[:, 0]))

    def extra_repr(self) -> str:
        sizes = f"{self.channels}, domains={len(self.domains)}, group={self.group}"
        return f"{sizes}, method={self.method}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C), (B, C, L) or (B, C, H, W) -> the same shape and dtype, whitened by each row's domain."""
        condition = current_condition() or Condition()
        if condition.domain is None and self.groups > 1:
            raise ConditionError(
                f"this network normalizes by domain ({', '.join(self.domains)}) and was not told which:"
                " call Given(network)(images, domain)"
            )
        whole = [condition.domain] if isinstance(condition.domain, int) else []
        for row in whole or [row for row, _ in condition.runs or ()]:
            if not 0 <= row < self.groups:
                raise ConditionError(f"domain {row} is out of range: this network has {self.groups}")
        if isinstance(condition.domain, Tensor) and condition.domain.shape[1:] not in ((), (self.groups,)):
            raise ConditionError(
                f"domain weights: expected (B, {self.groups}), a column each domain,"
                f" got {tuple(condition.domain.shape)}"
            )
        maps = x[(...,) + (None,) * (4 - x.dim())]
        with torch.autocast(x.device.type, enabled=False):
            y = self._normalize(maps.to(statistics_dtype(x)), condition).to(x.dtype)
        output: Tensor = self.act(self.drop(y.reshape(x.shape)))
        return output

    def _normalize(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) in full precision, by labels or weights, or (rows being a slice of one) by one domain."""
        domain = 0 if condition.domain is None else condition.domain
        rows = slice(None) if isinstance(domain, Tensor) else slice(domain, domain + 1)
        stats = self.running[rows]
        if self.training:
            labels = domain if isinstance(domain, Tensor) else x.new_zeros(x.shape[0], dtype=torch.int64)
            batch = covariances(x, labels, len(stats.mass), self.group)
            if self.sync:
                batch = synchronized_covariances(batch)
            seen = batch.mass * (x.shape[2] * x.shape[3]) > self.group
            stats = batch.where(seen, stats)
            matrices = whitening_matrices(stats.cov, self.method, self.eps)
            if condition.update:
                self._update(rows, batch, seen)
        else:
            matrices = self._fresh()[rows]
        matrices, shift = self._coloured(matrices.to(x.dtype), stats.mean.to(x.dtype))
        if isinstance(domain, Tensor):
            matrices, shift = _taken(matrices, domain), _taken(shift, domain)
        return whiten(x, matrices, shift)

    def _coloured(self, matrices: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices (R, K, g, g) and means (R, C) -> M and t (R, C) with M x + t = gamma W (x - mu) + beta."""
        if self.weight is not None:
            matrices = matrices * self.weight.to(mean.dtype).view(-1, self.group, 1)
        shift = -(matrices @ mean.view(len(mean), -1, self.group, 1)).flatten(1)
        return matrices, shift if self.bias is None else shift + self.bias.to(mean.dtype)

    @torch.no_grad()
    def _update(self, rows: slice, batch: CovStats, seen: Tensor) -> None:
        """Move the running statistics of the domains that were ``seen``; the others stay bit for bit."""
        tracked = self.num_batches_tracked.view(-1)[rows]
        tracked += seen
        counts = tracked.clamp_min(1).to(batch.mass.dtype)
        rate = 1.0 / counts if self.momentum is None else torch.full_like(counts, self.momentum)
        kept = self.running[rows]
        for old, new in ((kept.mean, batch.mean), (kept.cov, batch.cov)):
            share, moved = (value.view(-1, *[1] * (old.dim() - 1)) for value in (rate.to(old.dtype), seen))
            old.copy_(torch.where(moved, old * (1 - share) + new * share, old))

    def observe(self, x: Tensor, labels: Tensor, groups: int) -> CovStats:
        """The moments of an input of this layer, by labels (B,) int64 or weights (B, groups); changes nothing."""
        return covariances(x[(...,) + (None,) * (4 - x.dim())], labels, groups, self.group)

    def kept(self, row: int) -> Stats:
        """The kept means and variances of one domain, (1, C)."""
        return self.running[row : row + 1].diagonal()

    @torch.no_grad()
    def take_rows(self, names: Sequence[str], rows: Sequence[int | None]) -> DomainWhitening:
        """A layer with the domains ``names``, from these rows; see :meth:`DomainBatchNorm.take_rows`."""
        new = DomainWhitening(
            self.channels,
            names,
            group=self.group,
            method=self.method,
            affine=self.affine,
            plain=self.plain,
            eps=self.eps,
            momentum=self.momentum,
        )
        new.to(self.running_mean.device, self.running_mean.dtype)
        old, mixture = self.running, self.running.total()
        tracked = self.num_batches_tracked.view(-1)
        fill_rows(new.running.mean, old.mean, rows, mixture.mean[0])
        fill_rows(new.running.cov, old.cov, rows, mixture.cov[0])
        fill_rows(new.num_batches_tracked.view(-1), tracked, rows, tracked.new_zeros(()))
        for key, parameter in self.named_parameters(recurse=False):
            new.get_parameter(key).copy_(parameter)
        new.sync, new.drop, new.act = self.sync, copy.deepcopy(self.drop), copy.deepcopy(self.act)
        carry_over(new, self)
        new.refresh()
        return new

    def alone(self, row: int) -> nn.Module:
        """What this layer does for one domain in evaluation, with layers of torch.nn."""
        plain = self.extracted(row)
        if isinstance(self.drop, nn.Identity) and isinstance(self.act, nn.Identity):
            return plain
        return nn.Sequential(plain, self.drop, self.act)

    @torch.no_grad()
    def install(self, row: int, stats: Stats | CovStats, group: int) -> None:
        """Take the moments of ``group`` for the statistics of domain ``row``."""
        if not isinstance(stats, CovStats):
            raise WeightsError("profiles of a whitening layer have no covariances: they are of another network")
        stats, kept = stats[group : group + 1], self.running[row : row + 1]
        if stats.mean.shape != kept.mean.shape or stats.cov.shape != kept.cov.shape:
            raise WeightsError(
                f"statistics of a whitening layer: expected shapes {tuple(kept.mean.shape)} and"
                f" {tuple(kept.cov.shape)}, got {tuple(stats.mean.shape)} and {tuple(stats.cov.shape)}"
            )
        kept.mean.copy_(stats.mean)
        kept.cov.copy_(stats.cov)
        self.refresh()

    @torch.no_grad()
    def extracted(self, row: int) -> nn.Module:
        """What this layer does in evaluation for one domain, without ``drop`` and ``act``, as torch.nn has it.

        A grouped 1x1 ``nn.Conv2d``; a block-diagonal ``nn.Linear`` where a BatchNorm1d stood.
        """
        mean = self.running.mean[row : row + 1]
        matrices, shift = self._coloured(self._fresh()[row : row + 1].to(mean.dtype), mean)
        plain: nn.Conv2d | nn.Linear
        if self.plain is nn.BatchNorm1d:
            plain = nn.Linear(self.channels, self.channels)
            weight = torch.block_diag(*matrices[0])  # type: ignore[no-untyped-call]
        else:
            plain = nn.Conv2d(self.channels, self.channels, 1, groups=self.channels // self.group)
            weight = matrices[0].reshape(self.channels, self.group, 1, 1)
        plain.to(mean.device, mean.dtype).load_state_dict({"weight": weight, "bias": shift[0]})
        return plain.train(self.training)

    # The matrices of evaluation, and when they are made anew.

    def refresh(self) -> None:
        """Make the matrices of evaluation from the running statistics."""
        made_from = _version(self.running_cov)
        with torch.inference_mode(False), torch.no_grad():
            matrices = whitening_matrices(self.running.cov, self.method, self.eps)
            self.whitening = matrices.to(self.running_cov.dtype)
        self._made_from = made_from

    def train(self, mode: bool = True) -> DomainWhitening:
        """As in torch.nn; leaving training also makes the matrices of evaluation."""
        super().train(mode)
        if not mode:
            self._fresh()
        return self

    def _fresh(self) -> Tensor:
        """The matrices of evaluation, made anew when somebody has written to the statistics since."""
        if not torch.compiler.is_compiling() and (
            self._made_from is None or self._made_from != _version(self.running_cov)
        ):
            self.refresh()
        return self.whitening

    # State: plain BatchNorm's names where it has them, plus the names of the rows.

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Broadcast the state of one domain to all, order rows by name, and take BatchNorm's variances."""
        order = self.row_order(state_dict, prefix, args[-1])
        if order is None:
            return
        var = state_dict.get(f"{prefix}running_var")
        if var is not None and var.shape[-1:] == (self.channels,):  # of another width: let torch name the sizes
            del state_dict[f"{prefix}running_var"]
            state_dict[f"{prefix}running_cov"] = torch.diag_embed(var.unflatten(-1, (-1, self.group)))
        for key in ("running_mean", "running_cov", "num_batches_tracked") if len(order) > 1 else ():
            own, loaded = getattr(self, key), state_dict.get(prefix + key)
            if loaded is not None and loaded.shape == own.shape:
                state_dict[prefix + key] = loaded[order]
            elif loaded is not None and loaded.shape == own.shape[1:]:
                state_dict[prefix + key] = loaded.expand_as(own).clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.refresh()


def _version(tensor: Tensor) -> tuple[int, int] | None:
    """Changes when somebody writes to the tensor or puts another in its place; None when torch does not count."""
    return None if tensor.is_inference() else (id(tensor), tensor._version)


def _taken(table: Tensor, domain: Tensor) -> Tensor:
    """What every row takes from a table (G, ...): its label's entry, or the mixture by its weights (B, G)."""
    if domain.is_floating_point():
        return (domain.to(table.dtype) @ table.flatten(1)).view(-1, *table.shape[1:])
    return table[domain]
