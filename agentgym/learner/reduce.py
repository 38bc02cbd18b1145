"""From a loss per token to one number: what a batch is divided by.

Owns the denominators. Each is taken over the *global* batch before it is split; micro-batches and ranks only sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Denominator = Literal["tokens", "trajectories"]


def denominator(kind: Denominator, trainable: Sequence[int]) -> float:
    """What the summed loss is divided by; at least 1. `trainable` counts each trajectory's trainable tokens, those
    of trajectories without advantage included, so that skipping them changes no scale."""
    return float(max(1, sum(trainable) if kind == "tokens" else len(trainable)))


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask`; what lies outside is not read, not even NaN."""
    return torch.where(mask, values, 0.0).sum()


def per_trajectory(values: Tensor, trajectory_index: Tensor, trainable: Tensor) -> Tensor:
    """Each token's share when every trajectory weighs the same: its value over its trajectory's trainable tokens.
    values [N], trajectory_index [N] into trainable [T] -> [N]."""
    return values / trainable[trajectory_index].clamp(min=1)
