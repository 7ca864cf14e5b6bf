"""BatchNorm with statistics of its own for every domain (camera, modality, data set), also for mixed batches.

:class:`DomainBatchNorm` keeps statistics for every domain, and an affine that all domains share or one for each.  It
reads the domain of each image from the condition (:mod:`reid.norm.condition`).  There are three ways to compute it:

* One domain for the batch: the fused kernel of torch on its statistics, bit for bit equal to ``nn.BatchNorm2d``.
* Rows that ``Given`` has sorted by domain: the same kernel on each run of rows, so every row comes out bit for bit as
  from a batch of its own domain.
* Rows in any order (on an accelerator, compiled, exported), weights, or a layer that is not a plain BatchNorm of its
  domain: one vectorised pass without a loop over domains, equal up to rounding.

The vectorised pass serves the whole family: moments of the images -> :mod:`~reid.norm.assignment` (which image belongs
to which domain) -> :mod:`~reid.norm.statistics_source` (which statistics normalize) -> :mod:`~reid.norm.domain_affine`.
Camera-based BN (Zhuang et al., ECCV 2020) and domain-specific BN (Chang et al., CVPR 2019) are its defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError
from reid.norm.assignment import Assignment, DomainGate, assign
from reid.norm.condition import Condition, DomainBranch, check_known_domains, current_condition
from reid.norm.covariance import CovarianceStatistics
from reid.norm.domain_affine import Transfer, scale_and_shift
from reid.norm.domain_rows import NamedRows, copy_flags_and_hooks, fill_rows
from reid.norm.statistics import Statistics, as_maps, moments, pool
from reid.norm.statistics_source import LayerView, Source

AFFINES = ("shared", "domain")


class DomainBatchNorm(NamedRows):
    """BatchNorm with G domains for maps (B, C, H, W) or vectors (B, C).

    The state has the names of plain BatchNorm: ``running_mean`` and ``running_var`` (G, C), or (C,) when there is one
    domain; ``num_batches_tracked`` likewise; ``weight`` and ``bias`` (C,), or (G, C) when ``affine`` is "domain".  The
    state of a plain BatchNorm loads by broadcast and gives every domain the same statistics.  The names of the domains
    are saved with the state, and a state with the same names in another order loads row by name.

    In training a domain is normalized with its own part of the batch, and only the domains in the batch are updated.
    A domain with a single value a channel (one image after pooling) has no variance: it is normalized with its running
    statistics and does not update them.

    Other members of the family set ``source``, ``gate`` or ``transfer``.  ``sync`` pools the statistics over all
    processes of a ``torch.distributed`` group, with one reduction for each layer.

    Args:
        channels: C.
        domains: The names of the G domains; without names the layer is plain BatchNorm.
        affine: "shared", "domain" (one for each domain) or None.
        plain: The class of torch.nn that the layer stands for.
        eps: Added to the variances.
        momentum: The weight of a new batch in the running statistics; None averages all batches.

    Example:
        >>> from reid.norm import Given
        >>> layer = DomainBatchNorm(1, ["door", "yard"]).train()
        >>> x = torch.tensor([1.0, 3.0, 10.0, 30.0]).view(4, 1)
        >>> Given(layer)(x, ["door", "door", "yard", "yard"]).flatten().round().tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        domains: Sequence[str],
        *,
        affine: str | None = "shared",
        plain: type[nn.Module] = nn.BatchNorm2d,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.channels, self.domains, self.affine = channels, tuple(domains), affine
        self.plain, self.eps, self.momentum = plain, eps, momentum
        rows = (len(self.domains),) if len(self.domains) > 1 else ()
        self.register_buffer("running_mean", torch.zeros(*rows, channels))
        self.register_buffer("running_var", torch.ones(*rows, channels))
        self.register_buffer("num_batches_tracked", torch.zeros(rows, dtype=torch.long))
        own = rows if affine == "domain" else ()
        self.weight = nn.Parameter(torch.ones(*own, channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(*own, channels)) if affine else None
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        self.source = Source()
        self.gate: DomainGate | None = None
        self.transfer: Transfer | None = None
        self.branch: DomainBranch | None = None  # of the network, kept with its first layer: Given calls it
        self.sync = False

    @property
    def domain_count(self) -> int:
        """G, at least 1: a layer without named domains is plain BatchNorm."""
        return max(len(self.domains), 1)

    @property
    def is_plain_batchnorm(self) -> bool:
        """Whether this layer, for one domain, is exactly the BatchNorm of torch."""
        return self.source.is_plain and self.gate is None and self.transfer is None

    def extra_repr(self) -> str:
        return f"{self.channels}, domains={len(self.domains)}, affine={self.affine}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """Normalize every row of x, (B, C), (B, C, L) or (B, C, H, W), by its domain; the shape stays."""
        y = self._normalize(as_maps(x), current_condition() or Condition())
        output: Tensor = self.act(self.drop(y if x.dim() == 4 else y.reshape(x.shape)))
        return output

    def _normalize(self, x: Tensor, condition: Condition) -> Tensor:
        if not self.domains:  # there is one domain, whatever the condition names
            condition = replace(condition, domain=0, runs=None)
        domain, runs = condition.domain, condition.runs
        check_known_domains(condition, self.domains, required=self.gate is None)
        if isinstance(domain, Tensor) and domain.shape[0] != x.shape[0]:
            raise ConditionError(
                f"this norm sees {x.shape[0]} rows of {domain.shape[0]} images: the network makes rows of the parts of"
                " an image, so a batch must be of one domain; pass it as an int"
            )
        can_use_kernel = self.is_plain_batchnorm and not (self.sync and self.training)
        if not can_use_kernel or (isinstance(domain, Tensor) and runs is None):
            with torch.autocast(x.device.type, enabled=False):  # it would pool the statistics in half precision
                return self._normalize_any_order(x, condition)
        if runs is None:
            return self._normalize_one_domain(x, int(domain or 0), condition.update)
        parts, domains = torch.split(x, [length for _, length in runs]), [domain for domain, _ in runs]
        if not self.training and not torch.is_grad_enabled() and x.device.type == "cpu":
            return self._normalize_sorted_runs(x, parts, domains)
        return torch.cat(
            [self._normalize_one_domain(part, one, condition.update) for part, one in zip(parts, domains, strict=True)]
        )

    def _normalize_one_domain(self, x: Tensor, domain: int, update: bool) -> Tensor:
        """Call torch's own kernel on views of the statistics of one domain."""
        mean, var = self._table(self.running_mean)[domain], self._table(self.running_var)[domain]
        weight, bias = self._affine_of(self.weight, domain), self._affine_of(self.bias, domain)
        from_batch = self.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
        momentum = 0.0
        if from_batch and update:
            tracked = self.num_batches_tracked.view(-1)[domain]
            tracked.add_(1)
            momentum = 1.0 / float(tracked) if self.momentum is None else self.momentum
        return functional.batch_norm(x, mean, var, weight, bias, from_batch, momentum, self.eps)

    def _normalize_sorted_runs(self, x: Tensor, parts: Sequence[Tensor], domains: Sequence[int]) -> Tensor:
        """Normalize each part of x by the running statistics of its domain, and write it into one output."""
        output, unused = torch.empty_like(x), self.running_mean.new_empty(0)
        targets = torch.split(output, [len(part) for part in parts])  # views: no copy joins the parts
        for part, domain, target in zip(parts, domains, targets, strict=True):
            running = self._table(self.running_mean)[domain], self._table(self.running_var)[domain]
            affine = self._affine_of(self.weight, domain), self._affine_of(self.bias, domain)
            torch.native_batch_norm(part, *affine, *running, False, 0.0, self.eps, out=(target, unused, unused))
        return output

    def _normalize_any_order(self, x: Tensor, condition: Condition) -> Tensor:
        """Scale and shift every image by the statistics that the source chooses, in one pass."""
        mean, var = moments(x)
        running = Statistics(
            self._table(self.running_mean), self._table(self.running_var), mean.new_ones(self.domain_count)
        )
        assigned = self._assign(condition, mean, var)
        if self.sync and self.training:
            assigned = replace(assigned, across_processes=True)
        batch, positions = running, x.shape[2] * x.shape[3]
        if self.training or not self.source.is_plain:
            batch = self.source.combine_domains(assigned.pool(mean, var))
        images = Statistics(mean, var, torch.ones_like(mean[:, 0]))
        view = LayerView(images, batch, running, assigned, positions, self.training)
        gain = self.transfer(view.current(), self.eps) if self.transfer is not None else None
        chosen = self.source.choose(view)
        scale, shift = scale_and_shift(chosen, assigned, (self.weight, self.bias), self.eps, gain)
        if self.training and condition.update:
            self._update_running(batch, batch.mass * positions)
        return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])

    def _assign(self, condition: Condition, mean: Tensor, var: Tensor) -> Assignment:
        """Assign the images as the condition names it, or by the gate where it names nothing."""
        by_gate = None
        if self.gate is not None and (self.domain_count > 1 or condition.domain is not None):
            by_gate = self.gate(mean, var)  # also where it is not used: gate_logits collects what the gate computes
        if by_gate is None or condition.domain is not None:
            return assign(condition, mean.shape[0], self.domain_count, mean.device)
        weights = torch.softmax(by_gate, 1)
        return Assignment(weights, weights, self.domain_count)

    @torch.no_grad()
    def _update_running(self, batch: Statistics, values: Tensor) -> None:
        """Move the running statistics of the domains in the batch; the others stay bit for bit."""
        present = values > 1  # (G,)
        tracked = self.num_batches_tracked.view(-1)
        tracked += present
        rate = torch.full_like(values, 0.0 if self.momentum is None else self.momentum)
        if self.momentum is None:
            rate = 1.0 / tracked.clamp_min(1).to(values.dtype)
        rate = (rate.to(batch.mean.dtype) * present).unsqueeze(1)
        unbiased = batch.var * (values / (values - 1).clamp_min(1)).unsqueeze(1)
        for running, new in ((self.running_mean, batch.mean), (self.running_var, unbiased)):
            table = self._table(running)
            table.copy_(torch.where(rate > 0, table * (1 - rate) + new * rate, table))

    def _table(self, buffer: Tensor) -> Tensor:
        return buffer.view(self.domain_count, self.channels)

    def _affine_of(self, parameter: nn.Parameter | None, domain: int) -> Tensor | None:
        return parameter[domain] if parameter is not None and parameter.dim() == 2 else parameter

    # The same layer for other domains.

    def take_rows(self, domains: Sequence[str], rows: Sequence[int | None]) -> DomainBatchNorm:
        """Make a layer with other domains from rows of this one.

        Args:
            domains: The names of the new domains; without names the new layer is plain BatchNorm of one row.
            rows: For each new domain the row of this layer that it gets bit for bit, or None for the mixture of all
                rows with equal weight.

        Returns:
            A new layer.

        Raises:
            ConfigError: If this member of the family is made for another number of domains.
        """
        new = DomainBatchNorm(
            self.channels, domains, affine=self.affine, plain=self.plain, eps=self.eps, momentum=self.momentum
        )
        new.to(self.running_mean.device, self.running_mean.dtype)
        mean, var = self._table(self.running_mean), self._table(self.running_var)
        mixture = Statistics(mean, var, torch.ones_like(mean[:, 0])).merge_all()
        tracked = self.num_batches_tracked.view(-1)
        with torch.no_grad():
            fill_rows(new._table(new.running_mean), mean, rows, mixture.mean[0])
            fill_rows(new._table(new.running_var), var, rows, mixture.var[0])
            fill_rows(new.num_batches_tracked.view(-1), tracked, rows, tracked.new_zeros(()))
            for key, parameter in self.named_parameters(recurse=False):
                own = parameter.view(-1, self.channels)
                taken = rows if self.affine == "domain" and len(own) > 1 else [0] * len(rows)
                fill_rows(new.get_parameter(key).view(-1, self.channels), own, taken, own.mean(0))
        for name in ("source", "gate", "transfer", "branch", "drop", "act"):
            setattr(new, name, _part_for(getattr(self, name), domains, rows))
        new.sync = self.sync
        copy_flags_and_hooks(new, self)
        return new

    def to_plain(self, domain: int) -> nn.Module:
        """Make a layer without domains that computes in evaluation what this one does for one domain.

        Returns:
            BatchNorm of torch.nn (with timm's fused activation after it) where running statistics are all it needs,
            else a :class:`DomainBatchNorm` without domains.
        """
        new = self.take_rows((), [domain])
        if self.transfer is not None:
            mean, var = self._table(self.running_mean), self._table(self.running_var)
            new.scale_by(self.transfer(Statistics(mean, var, self.running_mean[..., 0]), self.eps))
        if not new.is_plain_batchnorm:
            return new
        plain = self.plain(self.channels, self.eps, self.momentum, new.weight is not None)
        state = {key: value for key, value in new.state_dict().items() if isinstance(value, Tensor)}
        plain.to(self.running_mean.device, self.running_mean.dtype).load_state_dict(state)
        copy_flags_and_hooks(plain, new)
        if isinstance(self.drop, nn.Identity) and isinstance(self.act, nn.Identity):
            return plain
        return nn.Sequential(plain, self.drop, self.act)

    @torch.no_grad()
    def scale_by(self, gain: Tensor) -> None:
        """Multiply the output by ``gain`` (C,) from now on."""
        if self.weight is None or self.bias is None:
            self.weight, self.bias = nn.Parameter(torch.ones_like(gain)), nn.Parameter(torch.zeros_like(gain))
            self.affine = "shared"
        self.weight.mul_(gain)
        self.bias.mul_(gain)

    # Measuring statistics and setting them.

    def measure(self, x: Tensor, domain: Tensor, domain_count: int) -> Statistics:
        """Measure the statistics of an input x by domain, (B,) int64; this changes nothing."""
        return pool(*moments(as_maps(x)), domain, domain_count)

    def statistics_of(self, domain: int) -> Statistics:
        """Return the running statistics of one domain, (1, C)."""
        mean, var = (self._table(buffer)[domain : domain + 1] for buffer in (self.running_mean, self.running_var))
        return Statistics(mean, var, torch.ones_like(mean[:, 0]))

    @torch.no_grad()
    def set_statistics(self, domain: int, statistics: Statistics | CovarianceStatistics, row: int) -> None:
        """Set the running statistics of a domain to row ``row`` of ``statistics``."""
        diagonal = statistics.diagonal() if isinstance(statistics, CovarianceStatistics) else statistics
        combined = self.source.combine_domains(diagonal.to(self.running_mean.device))
        self._table(self.running_mean)[domain] = combined.mean[row]
        self._table(self.running_var)[domain] = combined.var[row]

    # The state has the names of plain BatchNorm and the names of the domains.

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Broadcast a plain BatchNorm state to every domain; order the rows of a domain state by name."""
        order = self.row_order(state_dict, prefix, args[-1])
        if order is None:
            return
        for key, own in (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)):
            loaded = state_dict.get(prefix + key)
            if loaded is None or len(order) == 1 or own.dim() == (0 if key == "num_batches_tracked" else 1):
                continue
            if loaded.dim() == own.dim() and len(loaded) == len(order):
                state_dict[prefix + key] = loaded[order]
            elif loaded.shape == own.shape[1:]:
                state_dict[prefix + key] = loaded.expand_as(own).clone()
        for part in ("source", "gate"):
            for key in getattr(getattr(self, part), "row_parameters", ()):
                loaded = state_dict.get(f"{prefix}{part}.{key}")
                if loaded is not None and len(loaded) == len(order):
                    state_dict[f"{prefix}{part}.{key}"] = loaded[order]
        super()._load_from_state_dict(state_dict, prefix, *args)


def _part_for(part: nn.Module | None, domains: Sequence[str], rows: Sequence[int | None]) -> nn.Module | None:
    """Copy a part of a layer for other domains; those of its parameters that have a row for each domain follow."""
    if not domains and isinstance(part, DomainGate | Transfer | DomainBranch):
        return None
    if not domains and isinstance(part, Source) and part.uses_running_only:
        return Source()
    new = copy.deepcopy(part)
    needed = getattr(new, "domain_count", None)
    if needed is not None and len(domains) != needed:
        raise ConfigError(
            f"{type(new).__name__} is made for {needed} domains, not for {len(domains)} ({', '.join(domains)}):"
            " no domain can be added to this norm system; choose another, or train it with all of them"
        )
    for key in getattr(new, "row_parameters", ()):
        old = new.get_parameter(key)  # type: ignore[union-attr]
        table = old.detach().new_empty(len(rows), *old.shape[1:])
        fill_rows(table, old.detach(), rows, old.detach().mean(0))
        owner, _, name = key.rpartition(".")
        setattr(new.get_submodule(owner), name, nn.Parameter(table, requires_grad=old.requires_grad))  # type: ignore[union-attr]
    return new
