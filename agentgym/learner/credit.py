"""From rewards to advantages: which trajectory of a group, and which of its turns, earned the outcome.

Owns baselines. Knows nothing of tokens, models or losses: those are objectives.py. Pure functions on any device;
statistics count trajectories, never rows of a batch, and a failed trajectory neither trains nor votes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agentgym.errors import ConfigError

Credit = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def outcome_mean(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Reward minus the mean reward of its group, itself included (Dr. GRPO, Liu et al. 2025, eq. 3).
    rewards [B] float32, groups [B] int64 labels, valid [B] bool -> [B] float32; 0 where invalid or alone."""
    index, size, total = _group_sums(rewards, groups, valid)
    mean = total / size.clamp(min=1)
    return torch.where(_taught(rewards, index, valid), rewards - mean[index], 0.0)


def leave_one_out(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Reward minus the mean reward of the others in its group (RLOO, Kool et al. 2019; Ahmadian et al. 2024).
    Shapes as in `outcome_mean`; 0 where invalid or alone."""
    index, size, total = _group_sums(rewards, groups, valid)
    others = (size[index] - 1).clamp(min=1)
    return torch.where(_taught(rewards, index, valid), rewards - (total[index] - rewards) / others, 0.0)


def grpo(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Reward minus its group's mean, over its group's standard deviation with n - 1 in the denominator
    (GRPO, Shao et al. 2024, section 4.1.2). Shapes as in `outcome_mean`; 0 for a group without variance."""
    centred = outcome_mean(rewards, groups, valid)
    index, size, squares = _group_sums(centred.square(), groups, valid)
    std = (squares / (size - 1).clamp(min=1)).sqrt()[index]
    return torch.where(centred != 0, centred / std, 0.0)


def same_state(rewards: Tensor, groups: Tensor, valid: Tensor, owner: Tensor, state: Tensor) -> Tensor:
    """Reward minus the mean reward of the *other* trajectories of the group that passed through the same state, per
    turn: the step part of GiGPO (Feng et al. 2025, eq. 7) with a leave-one-out baseline and no discount.

    What no choice can change any more earns nothing: behind an irrecoverable error all who pass fail alike. rewards,
    groups, valid [B] as in `outcome_mean`; owner [M] int64, the trajectory of each turn; state [M] int64 labels, -1
    where the environment names none -> [M] float32. A trajectory votes once per state, however often it returns."""
    advantages = torch.zeros(len(state), dtype=rewards.dtype, device=rewards.device)
    known = (state >= 0) & valid[owner]
    if not known.any():
        return advantages
    labels = torch.stack([groups[owner], state], dim=1)
    _, place = labels.unique(dim=0, return_inverse=True)
    visits = torch.stack([place, owner], dim=1)[known]
    votes, which = visits.unique(dim=0, return_inverse=True)
    earned = leave_one_out(
        rewards[votes[:, 1]], votes[:, 0], torch.ones(len(votes), dtype=torch.bool, device=rewards.device)
    )
    advantages[known] = earned[which]
    return advantages


def _each_turn(credit: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Credit:
    """A credit of whole trajectories, given alike to each of their turns."""

    def per_turn(rewards: Tensor, groups: Tensor, valid: Tensor, owner: Tensor, state: Tensor) -> Tensor:
        return credit(rewards, groups, valid)[owner]

    return per_turn


CREDITS: dict[str, Credit] = {f.__name__: _each_turn(f) for f in (leave_one_out, grpo, outcome_mean)} | {
    "same_state": same_state
}


def get_credit(name: str) -> Credit:
    """The credit of that name. Raises ConfigError listing the names there are."""
    if name not in CREDITS:
        raise ConfigError(f"no credit {name!r}; there are {', '.join(CREDITS)}")
    return CREDITS[name]


def _taught(rewards: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """[B] True for valid members of groups whose valid rewards differ: only those get credit, and exactly zero is
    left of all others whatever rounding does."""
    high = torch.full((int(index.max()) + 1,), -torch.inf, dtype=rewards.dtype, device=rewards.device)
    low = -high
    high = high.scatter_reduce(0, index, torch.where(valid, rewards, -torch.inf), "amax")
    low = low.scatter_reduce(0, index, torch.where(valid, rewards, torch.inf), "amin")
    return valid & (high > low)[index]


def _group_sums(values: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """values, groups, valid [B] -> group of each member [B], valid members per group [G], their sum [G]."""
    labels, index = groups.unique(return_inverse=True)
    kept = torch.where(valid, values, 0.0)
    size = torch.zeros(len(labels), dtype=torch.long, device=values.device).index_add(0, index, valid.long())
    return index, size, torch.zeros(len(labels), dtype=values.dtype, device=values.device).index_add(0, index, kept)
