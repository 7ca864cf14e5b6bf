"""One layer that does BatchNorm per domain (camera, modality, data set), also for mixed batches.

``DomainBatchNorm`` has statistics for every domain and an affine that all share, or one each.  It
reads the condition (:mod:`reid.norm.condition`) and knows nothing of what the domains stand for.

* domain is an int: torch's fused kernel on that domain's row; equal to ``nn.BatchNorm2d`` bit for bit.
* domain is a tensor and ``Given`` has sorted the rows by it: the same kernel on each run of rows, so
  every row comes out as from a batch of its own domain, bit for bit.
* domain is a tensor in any order (on an accelerator, compiled, exported): one vectorised pass, no loop
  over domains; the same up to rounding.

Statistics: camera-based BN (Zhuang et al., ECCV 2020), domain-specific BN (Chang et al., CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError
from reid.norm.condition import Condition, current_condition
from reid.norm.stats import Stats, moments, pool

AFFINES = ("shared", "domain")


class DomainBatchNorm(nn.Module):
    """BatchNorm with G domains for maps (B, C, H, W) or vectors (B, C); ``plain`` is its torch.nn class.

    State under the names of plain BatchNorm: ``running_mean``, ``running_var`` (G, C), or (C,) when
    there is one domain; ``num_batches_tracked`` likewise; ``weight``, ``bias`` (C,), or (G, C) when
    ``affine`` is "domain".  A plain BatchNorm state loads by broadcast and gives every domain the same
    statistics.  ``domains`` are the names of the rows; they are saved with the state, and a state with
    the same names in another order loads row by name.

    In training a domain is normalized with its own part of the batch, and only the domains present are
    updated.  A domain of the batch with a single value a channel (one image after pooling) has no
    variance: it is normalized with its running statistics and does not update them.
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

    def extra_repr(self) -> str:
        return f"{self.channels}, domains={len(self.domains)}, affine={self.affine}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C), (B, C, L) or (B, C, H, W) -> the same shape, normalized by each row's domain."""
        maps = x[(...,) + (None,) * (4 - x.dim())]
        y = self._normalize(maps, current_condition() or Condition())
        output: Tensor = self.act(self.drop(y if x.dim() == 4 else y.reshape(x.shape)))
        return output

    def _normalize(self, x: Tensor, condition: Condition) -> Tensor:
        domain, groups = condition.domain, condition.groups
        if domain is None:
            if len(self.domains) > 1:
                raise ConditionError(
                    f"this network normalizes by domain ({', '.join(self.domains)}) and was not told which:"
                    " call Given(network)(images, domain)"
                )
            domain = 0
        if isinstance(domain, int):
            return self._one(x, domain)
        if groups is None:
            return self._mixed(x, domain)
        runs = torch.split(x, [rows for _, rows in groups])
        return torch.cat([self._one(run, row) for run, (row, _) in zip(runs, groups, strict=True)])

    def _one(self, x: Tensor, domain: int) -> Tensor:
        """Rows of one domain: torch's own kernel on views of that domain's statistics."""
        if not 0 <= domain < len(self.domains):
            raise ConditionError(f"domain {domain} is out of range: this network has {len(self.domains)}")
        mean, var = self._rows(self.running_mean)[domain], self._rows(self.running_var)[domain]
        weight, bias = self._affine_row(self.weight, domain), self._affine_row(self.bias, domain)
        fit = self.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
        momentum = 0.0
        if fit:
            tracked = self.num_batches_tracked.view(-1)[domain]
            tracked.add_(1)
            momentum = 1.0 / float(tracked) if self.momentum is None else self.momentum
        return functional.batch_norm(x, mean, var, weight, bias, fit, momentum, self.eps)

    def _mixed(self, x: Tensor, labels: Tensor) -> Tensor:
        """Rows of several domains: each is scaled and shifted by its own domain's statistics."""
        mean, var = self._rows(self.running_mean), self._rows(self.running_var)  # (G, C)
        if self.training:
            batch = pool(*moments(x), labels, len(self.domains))
            values = batch.mass * (x.shape[2] * x.shape[3])
            known = (values > 1).unsqueeze(1)
            mean, var = torch.where(known, batch.mean, mean), torch.where(known, batch.var, var)
            self._update(batch, values)
        scale = torch.rsqrt(var + self.eps)
        shift = -mean * scale
        if self.weight is not None and self.bias is not None:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        scale, shift = scale[labels].to(x.dtype), shift[labels].to(x.dtype)  # (B, C)
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])

    @torch.no_grad()
    def _update(self, batch: Stats, values: Tensor) -> None:
        """Move the running statistics of the domains present; the others stay bit for bit."""
        seen = values > 1  # (G,)
        tracked = self.num_batches_tracked.view(-1)
        tracked += seen
        rate = 1.0 / tracked.clamp_min(1) if self.momentum is None else torch.full_like(values, self.momentum)
        rate = (rate.to(batch.mean.dtype) * seen).unsqueeze(1)
        unbiased = batch.var * (values / (values - 1).clamp_min(1)).unsqueeze(1)
        for running, new in ((self.running_mean, batch.mean), (self.running_var, unbiased)):
            rows = self._rows(running)
            rows.copy_(torch.where(rate > 0, rows * (1 - rate) + new * rate, rows))

    def _rows(self, buffer: Tensor) -> Tensor:
        return buffer.view(len(self.domains), self.channels)

    def _affine_row(self, parameter: nn.Parameter | None, domain: int) -> Tensor | None:
        return parameter[domain] if parameter is not None and parameter.dim() == 2 else parameter

    # State: plain BatchNorm's names, plus the names of the rows.

    def get_extra_state(self) -> dict[str, list[str]]:
        return {"domains": list(self.domains)}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        """Nothing to restore: the names are checked against the rows when these load."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Broadcast a plain BatchNorm state to every domain; order the rows of a domain state by name."""
        extra = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        names, error_messages = list(extra["domains"]), args[-1]
        if sorted(names) != sorted(self.domains):
            error_messages.append(f"{prefix.rstrip('.')}: expected domains {list(self.domains)}, the state has {names}")
            return
        order = [names.index(name) for name in self.domains]
        for key, own in (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)):
            loaded = state_dict.get(prefix + key)
            if loaded is None or len(order) == 1 or own.dim() == (0 if key == "num_batches_tracked" else 1):
                continue
            if loaded.dim() == own.dim() and len(loaded) == len(order):
                state_dict[prefix + key] = loaded[order]
            elif loaded.shape == own.shape[1:]:
                state_dict[prefix + key] = loaded.expand_as(own).clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
