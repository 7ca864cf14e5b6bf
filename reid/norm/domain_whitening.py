"""Whitening per domain: BatchNorm that also removes the correlation of channels (DWT, Roy et al., CVPR 2019).

Channels are cut into K = C / g blocks of g neighbours.  The statistics of a domain are then a mean and K covariances
(:class:`~reid.norm.covariance.CovarianceStatistics`).  A whitener makes of each covariance a matrix W with
W Sigma W^T = I, and the layer computes y = gamma * W (x - mu) + beta.  With g = 1 this is BatchNorm.  A cast of colour
is a correlation of channels, which means and variances cannot remove.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reid.errors import ConditionError, ConfigError, WeightsError, unknown_name
from reid.norm.condition import Condition, check_known_domains, current_condition
from reid.norm.covariance import CovarianceStatistics, check_block_size, covariances, synchronized_covariances
from reid.norm.domain_rows import NamedRows, copy_flags_and_hooks, fill_rows
from reid.norm.statistics import Statistics, as_maps, statistics_dtype
from reid.norm.whitening_matrices import WHITENERS, whiten, whitening_matrices


class DomainWhitening(NamedRows):
    """Whitening with G domains for maps (B, C, H, W) or vectors (B, C), in blocks of g channels.

    It can take the place of a :class:`~reid.norm.batchnorm_layer.DomainBatchNorm` and names its domains in the same
    way.  The state is ``running_mean`` (G, C), ``running_cov`` (G, C / g, g, g), biased and not shrunk, and
    ``num_batches_tracked`` (G,), without G when there is one domain; ``weight`` and ``bias`` (C,), shared.  The state
    of a plain or domain BatchNorm loads with its variances as diagonal covariances; the output is then that of
    BatchNorm with (1 - eps) var + eps in place of var + eps.

    In training a domain is whitened by its own part of the batch, and only the domains in the batch are updated.  A
    domain with no more values a channel than g has no covariance of full rank: it is whitened with its running
    statistics and does not update them.  In evaluation the matrices are those of ``whitening`` (G, K, g, g).  They are
    computed when the layer leaves training or its statistics are written.  An exported or compiled network holds them
    as constants, so call ``eval()`` after the last change.  The layer computes in float32 at least.

    Args:
        channels: C.
        domains: The names of the G domains.
        block_size: g.
        method: A name of :data:`~reid.norm.whitening_matrices.WHITENERS`.
        affine: "shared" or None.
        plain: The class of torch.nn that the layer stands for.
        eps: 0..1, see :func:`~reid.norm.whitening_matrices.whitening_matrices`.
        momentum: The weight of a new batch in the running statistics; None averages all batches.
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
        block_size: int = 4,
        method: str = "cholesky",
        affine: str | None = "shared",
        plain: type[nn.Module] = nn.BatchNorm2d,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        check_block_size(channels, block_size)
        if method not in WHITENERS:
            raise ConfigError(unknown_name("whitener", method, WHITENERS))
        if affine not in ("shared", None) or not 0 <= eps < 1:
            raise ConfigError(f'whitening: expected affine "shared" and 0 <= eps < 1, got {affine!r} and {eps}')
        self.channels, self.domains, self.affine, self.plain = channels, tuple(domains), affine, plain
        self.block_size, self.method, self.eps, self.momentum = block_size, method, eps, momentum
        rows = (len(self.domains),) if len(self.domains) > 1 else ()
        self.register_buffer("running_mean", torch.zeros(*rows, channels))
        self.register_buffer("running_cov", torch.eye(block_size).repeat(*rows, channels // block_size, 1, 1))
        self.register_buffer("num_batches_tracked", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("whitening", None, persistent=False)
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        self.sync = False
        self.refresh()

    @property
    def domain_count(self) -> int:
        """G, at least 1."""
        return max(len(self.domains), 1)

    @property
    def running(self) -> CovarianceStatistics:
        """The running statistics of every domain, as views of the buffers; mass 1 each."""
        mean = self.running_mean.view(self.domain_count, self.channels)
        cov = self.running_cov.view(self.domain_count, -1, self.block_size, self.block_size)
        return CovarianceStatistics(mean, cov, torch.ones_like(mean[:, 0]))

    def extra_repr(self) -> str:
        sizes = f"{self.channels}, domains={len(self.domains)}, block_size={self.block_size}"
        return f"{sizes}, method={self.method}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """Whiten every row of x, (B, C), (B, C, L) or (B, C, H, W), by its domain; shape and dtype stay."""
        condition = current_condition() or Condition()
        check_known_domains(condition, self.domains)
        if isinstance(condition.domain, Tensor) and condition.domain.shape[1:] not in ((), (self.domain_count,)):
            raise ConditionError(
                f"domain weights: expected (B, {self.domain_count}), a column each domain,"
                f" got {tuple(condition.domain.shape)}"
            )
        maps = as_maps(x)
        with torch.autocast(x.device.type, enabled=False):
            y = self._normalize(maps.to(statistics_dtype(x)), condition).to(x.dtype)
        output: Tensor = self.act(self.drop(y.reshape(x.shape)))
        return output

    def _normalize(self, x: Tensor, condition: Condition) -> Tensor:
        """Whiten x (B, C, H, W) in full precision, by one domain for all rows, by indices or by weights."""
        domain = 0 if condition.domain is None else condition.domain
        rows = slice(None) if isinstance(domain, Tensor) else slice(domain, domain + 1)
        stats = self.running[rows]
        if self.training:
            index = domain if isinstance(domain, Tensor) else x.new_zeros(x.shape[0], dtype=torch.int64)
            batch = covariances(x, index, len(stats.mass), self.block_size)
            if self.sync:
                batch = synchronized_covariances(batch)
            present = batch.mass * (x.shape[2] * x.shape[3]) > self.block_size
            stats = batch.keep_where(present, stats)
            matrices = whitening_matrices(stats.cov, self.method, self.eps)
            if condition.update:
                self._update_running(rows, batch, present)
        else:
            matrices = self._current_matrices()[rows]
        matrices, shift = self._with_affine(matrices.to(x.dtype), stats.mean.to(x.dtype))
        if isinstance(domain, Tensor):
            matrices, shift = _look_up(matrices, domain), _look_up(shift, domain)
        return whiten(x, matrices, shift)

    def _with_affine(self, matrices: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Compute M (R, K, g, g) and t (R, C) with M x + t = gamma W (x - mu) + beta."""
        if self.weight is not None:
            matrices = matrices * self.weight.to(mean.dtype).view(-1, self.block_size, 1)
        shift = -(matrices @ mean.view(len(mean), -1, self.block_size, 1)).flatten(1)
        return matrices, shift if self.bias is None else shift + self.bias.to(mean.dtype)

    @torch.no_grad()
    def _update_running(self, rows: slice, batch: CovarianceStatistics, present: Tensor) -> None:
        """Move the running statistics of the domains that are ``present``; the others stay bit for bit."""
        tracked = self.num_batches_tracked.view(-1)[rows]
        tracked += present
        counts = tracked.clamp_min(1).to(batch.mass.dtype)
        rate = 1.0 / counts if self.momentum is None else torch.full_like(counts, self.momentum)
        running = self.running[rows]
        for old, new in ((running.mean, batch.mean), (running.cov, batch.cov)):
            share, moved = (value.view(-1, *[1] * (old.dim() - 1)) for value in (rate.to(old.dtype), present))
            old.copy_(torch.where(moved, old * (1 - share) + new * share, old))

    def measure(self, x: Tensor, domain: Tensor, domain_count: int) -> CovarianceStatistics:
        """Measure the statistics of an input x by domain, (B,) int64 or weights (B, G); this changes nothing."""
        return covariances(as_maps(x), domain, domain_count, self.block_size)

    def statistics_of(self, domain: int) -> Statistics:
        """Return the running means and variances of one domain, (1, C)."""
        return self.running[domain : domain + 1].diagonal()

    @torch.no_grad()
    def take_rows(self, domains: Sequence[str], rows: Sequence[int | None]) -> DomainWhitening:
        """Make a layer with other domains from rows of this one, as :meth:`DomainBatchNorm.take_rows` does."""
        new = DomainWhitening(
            self.channels,
            domains,
            block_size=self.block_size,
            method=self.method,
            affine=self.affine,
            plain=self.plain,
            eps=self.eps,
            momentum=self.momentum,
        )
        new.to(self.running_mean.device, self.running_mean.dtype)
        old, mixture = self.running, self.running.merge_all()
        tracked = self.num_batches_tracked.view(-1)
        fill_rows(new.running.mean, old.mean, rows, mixture.mean[0])
        fill_rows(new.running.cov, old.cov, rows, mixture.cov[0])
        fill_rows(new.num_batches_tracked.view(-1), tracked, rows, tracked.new_zeros(()))
        for key, parameter in self.named_parameters(recurse=False):
            new.get_parameter(key).copy_(parameter)
        new.sync, new.drop, new.act = self.sync, copy.deepcopy(self.drop), copy.deepcopy(self.act)
        copy_flags_and_hooks(new, self)
        new.refresh()
        return new

    def to_plain(self, domain: int) -> nn.Module:
        """Make a layer of torch.nn that computes in evaluation what this one does for one domain."""
        plain = self.extracted(domain)
        if isinstance(self.drop, nn.Identity) and isinstance(self.act, nn.Identity):
            return plain
        return nn.Sequential(plain, self.drop, self.act)

    @torch.no_grad()
    def set_statistics(self, domain: int, statistics: Statistics | CovarianceStatistics, row: int) -> None:
        """Set the running statistics of a domain to row ``row`` of ``statistics``.

        Raises:
            WeightsError: If these are of another network: without covariances, or of another shape.
        """
        if not isinstance(statistics, CovarianceStatistics):
            raise WeightsError("profiles of a whitening layer have no covariances: they are of another network")
        new, running = statistics[row : row + 1], self.running[domain : domain + 1]
        if new.mean.shape != running.mean.shape or new.cov.shape != running.cov.shape:
            raise WeightsError(
                f"statistics of a whitening layer: expected shapes {tuple(running.mean.shape)} and"
                f" {tuple(running.cov.shape)}, got {tuple(new.mean.shape)} and {tuple(new.cov.shape)}"
            )
        running.mean.copy_(new.mean)
        running.cov.copy_(new.cov)
        self.refresh()

    @torch.no_grad()
    def extracted(self, domain: int) -> nn.Module:
        """Make the layer of one domain without ``drop`` and ``act``.

        Returns:
            A grouped 1x1 ``nn.Conv2d``, or a block-diagonal ``nn.Linear`` in the place of a BatchNorm1d.
        """
        mean = self.running.mean[domain : domain + 1]
        matrices, shift = self._with_affine(self._current_matrices()[domain : domain + 1].to(mean.dtype), mean)
        plain: nn.Conv2d | nn.Linear
        if self.plain is nn.BatchNorm1d:
            plain = nn.Linear(self.channels, self.channels)
            weight = torch.block_diag(*matrices[0])  # type: ignore[no-untyped-call]
        else:
            plain = nn.Conv2d(self.channels, self.channels, 1, groups=self.channels // self.block_size)
            weight = matrices[0].reshape(self.channels, self.block_size, 1, 1)
        plain.to(mean.device, mean.dtype).load_state_dict({"weight": weight, "bias": shift[0]})
        return plain.train(self.training)

    # The matrices of evaluation, and when they are computed again.

    def refresh(self) -> None:
        """Compute the matrices of evaluation from the running statistics."""
        version = _version(self.running_cov)
        with torch.inference_mode(False), torch.no_grad():
            matrices = whitening_matrices(self.running.cov, self.method, self.eps)
            self.whitening = matrices.to(self.running_cov.dtype)
        self._version_of_matrices = version

    def train(self, mode: bool = True) -> DomainWhitening:
        """Set the mode as in torch.nn; leaving training also computes the matrices of evaluation."""
        super().train(mode)
        if not mode:
            self._current_matrices()
        return self

    def _current_matrices(self) -> Tensor:
        """Return the matrices of evaluation; compute them again if the statistics were written since."""
        if not torch.compiler.is_compiling() and (
            self._version_of_matrices is None or self._version_of_matrices != _version(self.running_cov)
        ):
            self.refresh()
        return self.whitening

    # The state has the names of plain BatchNorm where it has these numbers, and the names of the domains.

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Broadcast the state of one domain to all, order rows by name, and accept the variances of BatchNorm."""
        order = self.row_order(state_dict, prefix, args[-1])
        if order is None:
            return
        var = state_dict.get(f"{prefix}running_var")
        if var is not None and var.shape[-1:] == (self.channels,):  # of another width: let torch name the sizes
            del state_dict[f"{prefix}running_var"]
            state_dict[f"{prefix}running_cov"] = torch.diag_embed(var.unflatten(-1, (-1, self.block_size)))
        for key in ("running_mean", "running_cov", "num_batches_tracked") if len(order) > 1 else ():
            own, loaded = getattr(self, key), state_dict.get(prefix + key)
            if loaded is not None and loaded.shape == own.shape:
                state_dict[prefix + key] = loaded[order]
            elif loaded is not None and loaded.shape == own.shape[1:]:
                state_dict[prefix + key] = loaded.expand_as(own).clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.refresh()


def _version(tensor: Tensor) -> tuple[int, int] | None:
    """Return what changes when the tensor is written or replaced; None when torch does not count writes."""
    return None if tensor.is_inference() else (id(tensor), tensor._version)


def _look_up(table: Tensor, domain: Tensor) -> Tensor:
    """Look up the entry of each row in a table (G, ...), or mix the entries by its weights (B, G)."""
    if domain.is_floating_point():
        return (domain.to(table.dtype) @ table.flatten(1)).view(-1, *table.shape[1:])
    return table[domain]
