"""One layer that does BatchNorm per domain (camera, modality, data set), also for mixed batches.

``DomainBatchNorm`` has statistics for every domain and an affine that all share, or one each.  It
reads the condition (:mod:`reid.norm.condition`) and knows nothing of what the domains stand for.

* domain is an int: torch's fused kernel on that domain's row; equal to ``nn.BatchNorm2d`` bit for bit.
* domain is a tensor and ``Given`` has sorted the rows by it: the same kernel on each run of rows, so
  every row comes out as from a batch of its own domain, bit for bit.
* domain is a tensor in any order (on an accelerator, compiled, exported), or weights, or the layer is
  not a plain BatchNorm of its domain: one vectorised pass, no loop over domains; the same up to rounding.

The vectorised pass is the whole family: moments of the images -> :mod:`~reid.norm.assignment` (who belongs
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
from reid.norm.assignment import Assignment, DomainGate, assignment
from reid.norm.condition import Condition, DomainBranch, current_condition
from reid.norm.covariance import CovStats
from reid.norm.domain_affine import Transfer, scale_and_shift
from reid.norm.domain_rows import NamedRows, carry_over, fill_rows
from reid.norm.statistics import Stats, moments, pool
from reid.norm.statistics_source import LayerView, Source

AFFINES = ("shared", "domain")


class DomainBatchNorm(NamedRows):
    """BatchNorm with G domains for maps (B, C, H, W) or vectors (B, C); ``plain`` is its torch.nn class.

    State under the names of plain BatchNorm: ``running_mean``, ``running_var`` (G, C), or (C,) when
    there is one domain; ``num_batches_tracked`` likewise; ``weight``, ``bias`` (C,), or (G, C) when
    ``affine`` is "domain".  A plain BatchNorm state loads by broadcast and gives every domain the same
    statistics.  ``domains`` are the names of the rows; they are saved with the state, and a state with
    the same names in another order loads row by name.

    In training a domain is normalized with its own part of the batch, and only the domains present are
    updated.  A domain of the batch with a single value a channel (one image after pooling) has no
    variance: it is normalized with its running statistics and does not update them.

    ``source``, ``gate`` and ``transfer`` make other members of the family of it; ``sync`` pools the
    statistics of all processes of a ``torch.distributed`` group, with one reduction a layer.
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
        self.branch: DomainBranch | None = None  # of the network, kept with its first layer: Given asks it
        self.sync = False

    @property
    def groups(self) -> int:
        """G, at least 1: a layer without named domains is plain BatchNorm."""
        return max(len(self.domains), 1)

    @property
    def plain_family(self) -> bool:
        """Whether, for one domain, this layer is exactly torch's BatchNorm."""
        return self.source.plain and self.gate is None and self.transfer is None

    def extra_repr(self) -> str:
        return f"{self.channels}, domains={len(self.domains)}, affine={self.affine}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C), (B, C, L) or (B, C, H, W) -> the same shape, normalized by each row's domain."""
        maps = x[(...,) + (None,) * (4 - x.dim())]
        y = self._normalize(maps, current_condition() or Condition())
        output: Tensor = self.act(self.drop(y if x.dim() == 4 else y.reshape(x.shape)))
        return output

    def _normalize(self, x: Tensor, condition: Condition) -> Tensor:
        if not self.domains:  # nothing to choose between
            condition = replace(condition, domain=0, runs=None)
        domain, groups = condition.domain, condition.runs
        if domain is None and self.groups > 1 and self.gate is None:
            raise ConditionError(
                f"this network normalizes by domain ({', '.join(self.domains)}) and was not told which:"
                " call Given(network)(images, domain)"
            )
        for row in [domain] if isinstance(domain, int) else [row for row, _ in groups or ()]:
            if not 0 <= row < self.groups:
                raise ConditionError(f"domain {row} is out of range: this network has {self.groups}")
        labels = isinstance(domain, Tensor)
        if isinstance(domain, Tensor) and domain.shape[0] != x.shape[0]:
            raise ConditionError(
                f"this norm sees {x.shape[0]} rows of {domain.shape[0]} images: the network makes rows of the parts of"
                " an image, so a batch must be of one domain; pass it as an int"
            )
        if not self.plain_family or (self.sync and self.training) or (labels and groups is None):
            with torch.autocast(x.device.type, enabled=False):  # it would pool the statistics in half precision
                return self._any(x, condition)
        if groups is None:
            return self._one(x, int(domain or 0), condition.update)
        runs = torch.split(x, [rows for _, rows in groups])
        if not self.training and not torch.is_grad_enabled() and x.device.type == "cpu":
            return self._into_one(x, runs, [row for row, _ in groups])
        return torch.cat([self._one(run, row, condition.update) for run, (row, _) in zip(runs, groups, strict=True)])

    def _one(self, x: Tensor, domain: int, update: bool) -> Tensor:
        """Rows of one domain: torch's own kernel on views of that domain's statistics."""
        mean, var = self._rows(self.running_mean)[domain], self._rows(self.running_var)[domain]
        weight, bias = self._affine_row(self.weight, domain), self._affine_row(self.bias, domain)
        fit = self.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
        momentum = 0.0
        if fit and update:
            tracked = self.num_batches_tracked.view(-1)[domain]
            tracked.add_(1)
            momentum = 1.0 / float(tracked) if self.momentum is None else self.momentum
        return functional.batch_norm(x, mean, var, weight, bias, fit, momentum, self.eps)

    def _into_one(self, x: Tensor, runs: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """The runs of x, each by its domain's kept statistics, written where they belong: no copy joins them."""
        output, unused = torch.empty_like(x), self.running_mean.new_empty(0)
        places = torch.split(output, [len(run) for run in runs])
        for run, row, place in zip(runs, rows, places, strict=True):
            kept = self._rows(self.running_mean)[row], self._rows(self.running_var)[row]
            affine = self._affine_row(self.weight, row), self._affine_row(self.bias, row)
            torch.native_batch_norm(run, *affine, *kept, False, 0.0, self.eps, out=(place, unused, unused))
        return output

    def _any(self, x: Tensor, condition: Condition) -> Tensor:
        """Rows in any order: every image is scaled and shifted by the statistics that its source names."""
        mean, var = moments(x)
        running = Stats(self._rows(self.running_mean), self._rows(self.running_var), mean.new_ones(self.groups))
        assigned = self._assign(condition, mean, var)
        if self.sync and self.training:
            assigned = replace(assigned, everywhere=True)
        batch, positions = running, x.shape[2] * x.shape[3]
        if self.training or not self.source.plain:
            batch = self.source.settle(assigned.pool(mean, var))
        images = Stats(mean, var, torch.ones_like(mean[:, 0]))
        view = LayerView(images, batch, running, assigned, positions, self.training)
        gain = self.transfer(view.current(), self.eps) if self.transfer is not None else None
        rows = self.source.rows(view)
        scale, shift = scale_and_shift(rows, assigned, (self.weight, self.bias), self.eps, gain)
        if self.training and condition.update:
            self._update(batch, batch.mass * positions)
        return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])

    def _assign(self, condition: Condition, mean: Tensor, var: Tensor) -> Assignment:
        """Who belongs where: the condition says, or the gate where it does not."""
        if (self.groups == 1 and condition.domain is None) or self.gate is None:
            return assignment(condition, mean.shape[0], self.groups, mean.device)
        logits = self.gate(mean, var)
        if condition.domain is None:
            weights = torch.softmax(logits, 1)
            return Assignment(weights, weights, self.groups)
        return assignment(condition, mean.shape[0], self.groups, mean.device)

    @torch.no_grad()
    def _update(self, batch: Stats, values: Tensor) -> None:
        """Move the running statistics of the domains present; the others stay bit for bit."""
        seen = values > 1  # (G,)
        tracked = self.num_batches_tracked.view(-1)
        tracked += seen
        rate = torch.full_like(values, 0.0 if self.momentum is None else self.momentum)
        if self.momentum is None:
            rate = 1.0 / tracked.clamp_min(1).to(values.dtype)
        rate = (rate.to(batch.mean.dtype) * seen).unsqueeze(1)
        unbiased = batch.var * (values / (values - 1).clamp_min(1)).unsqueeze(1)
        for running, new in ((self.running_mean, batch.mean), (self.running_var, unbiased)):
            rows = self._rows(running)
            rows.copy_(torch.where(rate > 0, rows * (1 - rate) + new * rate, rows))

    def _rows(self, buffer: Tensor) -> Tensor:
        return buffer.view(self.groups, self.channels)

    def _affine_row(self, parameter: nn.Parameter | None, domain: int) -> Tensor | None:
        return parameter[domain] if parameter is not None and parameter.dim() == 2 else parameter

    # The same layer for other domains.

    def take_rows(self, names: Sequence[str], rows: Sequence[int | None]) -> DomainBatchNorm:
        """A layer with the domains ``names``; the i-th is this layer's row ``rows[i]``, bit for bit, or where
        that is None the mixture of all its rows with equal weight.  Without names: one row, plain BatchNorm."""
        new = DomainBatchNorm(
            self.channels, names, affine=self.affine, plain=self.plain, eps=self.eps, momentum=self.momentum
        )
        new.to(self.running_mean.device, self.running_mean.dtype)
        mean, var = self._rows(self.running_mean), self._rows(self.running_var)
        mixture = Stats(mean, var, torch.ones_like(mean[:, 0])).total()
        tracked = self.num_batches_tracked.view(-1)
        with torch.no_grad():
            fill_rows(new._rows(new.running_mean), mean, rows, mixture.mean[0])
            fill_rows(new._rows(new.running_var), var, rows, mixture.var[0])
            fill_rows(new.num_batches_tracked.view(-1), tracked, rows, tracked.new_zeros(()))
            for key, parameter in self.named_parameters(recurse=False):
                own = parameter.view(-1, self.channels)
                taken = rows if self.affine == "domain" and len(own) > 1 else [0] * len(rows)
                fill_rows(new.get_parameter(key).view(-1, self.channels), own, taken, own.mean(0))
        for name in ("source", "gate", "transfer", "branch", "drop", "act"):
            setattr(new, name, _part_for(getattr(self, name), names, rows))
        new.sync = self.sync
        carry_over(new, self)
        return new

    def alone(self, row: int) -> nn.Module:
        """What this layer does for one domain in evaluation, as torch.nn's BatchNorm (with timm's fused activation
        after it) where kept statistics are all it needs, else as a layer of ours without domains."""
        new = self.take_rows((), [row])
        if self.transfer is not None:
            kept = Stats(self._rows(self.running_mean), self._rows(self.running_var), self.running_mean[..., 0])
            new.scale_by(self.transfer(kept, self.eps))
        if not new.plain_family:
            return new
        plain = self.plain(self.channels, self.eps, self.momentum, new.weight is not None)
        state = {key: value for key, value in new.state_dict().items() if isinstance(value, Tensor)}
        plain.to(self.running_mean.device, self.running_mean.dtype).load_state_dict(state)
        carry_over(plain, new)
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

    # What it measures and can be given.

    def observe(self, x: Tensor, labels: Tensor, groups: int) -> Stats:
        """The statistics that input x has in ``groups`` domains by labels (B,) int64."""
        return pool(*moments(x[(...,) + (None,) * (4 - x.dim())]), labels, groups)

    def kept(self, row: int) -> Stats:
        """The kept statistics of one domain, (1, C)."""
        mean, var = (self._rows(table)[row : row + 1] for table in (self.running_mean, self.running_var))
        return Stats(mean, var, torch.ones_like(mean[:, 0]))

    @torch.no_grad()
    def install(self, row: int, stats: Stats | CovStats, group: int) -> None:
        """Take the statistics of ``group`` for the kept ones of domain ``row``."""
        settled = self.source.settle(stats.diagonal() if isinstance(stats, CovStats) else stats)
        self._rows(self.running_mean)[row] = settled.mean[group]
        self._rows(self.running_var)[row] = settled.var[group]

    # State: plain BatchNorm's names, plus the names of the rows.

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


def _part_for(part: nn.Module | None, names: Sequence[str], rows: Sequence[int | None]) -> nn.Module | None:
    """A copy of a layer's part for other domains; its parameters that have a row a domain follow them."""
    if not names and isinstance(part, DomainGate | Transfer | DomainBranch):
        return None
    if not names and isinstance(part, Source) and part.kept:
        return Source()
    new = copy.deepcopy(part)
    needed = getattr(new, "domains", None)
    if needed is not None and len(names) != needed:
        raise ConfigError(
            f"{type(new).__name__} is made for {needed} domains, not for {len(names)} ({', '.join(names)}):"
            " no domain can be added to this norm system; choose another, or train it with all of them"
        )
    for key in getattr(new, "row_parameters", ()):
        old = new.get_parameter(key)  # type: ignore[union-attr]
        table = old.detach().new_empty(len(rows), *old.shape[1:])
        fill_rows(table, old.detach(), rows, old.detach().mean(0))
        owner, _, name = key.rpartition(".")
        setattr(new.get_submodule(owner), name, nn.Parameter(table, requires_grad=old.requires_grad))  # type: ignore[union-attr]
    return new
