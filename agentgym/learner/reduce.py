"""From a loss per token to one number: what a batch is divided by.

Owns the denominators. Each is taken over the *global* batch before it is split; micro-batches and ranks only sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Denominator = Literal["tokens", "trajectories", "groups", "constant"]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Loss = sum of (loss of a token x share of its trajectory) / divisor."""

    divisor: float
    share: Tensor | None = None  # [T] float32; None: 1 for all


def weights(
    kind: Denominator, trainable: Sequence[int], groups: Sequence[int] | None = None, *, length: int = 0
) -> Weights:
    """The weights of T trajectories with that many trainable tokens each, those without advantage included, so that
    skipping them changes no scale.

    tokens        every token weighs the same (DAPO, Yu et al. 2025, section 3.3)
    trajectories  every trajectory does: the mean over its tokens (GRPO, Shao et al. 2024)
    groups        every group does: the mean over its tokens (prompt-level mean, ScaleRL 2025)
    constant      every token, divided by `length` per trajectory whatever was said (Dr. GRPO, Liu et al. 2025)"""
    counts = torch.tensor(trainable, dtype=torch.float32).clamp(min=1)
    if kind == "tokens":
        return Weights(float(max(1, sum(trainable))))
    if kind == "trajectories":
        return Weights(float(max(1, len(trainable))), 1 / counts)
    if kind == "constant":
        return Weights(float(max(1, len(trainable)) * length))
    _, index = torch.tensor(groups, dtype=torch.long).unique(return_inverse=True)
    total = torch.zeros(int(index.max()) + 1 if len(index) else 0)
    total.index_add_(0, index, torch.tensor(trainable, dtype=torch.float32))
    return Weights(float(max(1, len(total))), 1 / total.clamp(min=1)[index])


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask`; what lies outside is not read, not even NaN."""
    return torch.where(mask, values, 0.0).sum()
