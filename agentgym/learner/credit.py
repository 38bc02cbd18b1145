"""From rewards to advantages: which trajectory of a group, and which of its turns, earned the outcome.

Owns returns, baselines and scales. Knows nothing of tokens, models or losses: those are objectives.py. Which groups
train at all is selection.py's. Pure functions on any device; statistics count trajectories, never rows of a batch, and
an invalid trajectory neither trains nor votes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agentgym.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What credit may read of a batch: B trajectories with M turns in all."""

    rewards: Tensor  # [B] float32, of the whole episode, divergences and penalties taken off
    judged: Tensor  # [B] float32, as the environment gave it: what deviations and means are taken of
    groups: Tensor  # [B] int64 labels
    valid: Tensor  # [B] bool
    owner: Tensor  # [M] int64, the trajectory of each turn, ascending
    turn_rewards: Tensor  # [M] float32
    state: Tensor  # [M] int64 labels of the state a turn began in; -1 where the environment names none


Baseline = Callable[[Tensor, Tensor, Tensor], Tensor]
Credit = Callable[[Outcomes, float], Tensor]  # outcomes, discount -> [M] float32


def returns(outcomes: Outcomes, discount: float) -> Tensor:
    """G_t = r_t + discount G_{t+1} per turn (Sutton & Barto 2018, eq. 3.9): turns discount, never tokens; a truncated
    episode ends like a terminated one, since no critic says what would have followed. -> [M] float32

    What an episode was given beyond its turns' own rewards came at its last turn."""
    owner, count = outcomes.owner, len(outcomes.rewards)
    sizes = torch.bincount(owner, minlength=count)
    place = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]
    table = outcomes.rewards.new_zeros(count, int(sizes.max()) if len(owner) else 0, dtype=torch.float64)
    table[owner, place] = outcomes.turn_rewards.double()
    for t in range(table.shape[1] - 2, -1, -1):
        table[:, t] += discount * table[:, t + 1]
    return table[owner, place].to(outcomes.rewards)


# -- whole trajectories ------------------------------------------------------------------------------------------------


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


def group_std(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Standard deviation of each one's group, with n - 1 in the denominator. Shapes as in `outcome_mean`; 1 where the
    group has none."""
    centred = outcome_mean(rewards, groups, valid)
    index, size, squares = _group_sums(centred.square(), groups, valid)
    std = (squares / (size - 1).clamp(min=1)).sqrt()[index]
    return torch.where(std > 0, std, 1.0)


def group_mean(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Mean reward of each one's group. Shapes as in `outcome_mean`; 1 where it is not above 0."""
    index, size, total = _group_sums(rewards, groups, valid)
    mean = (total / size.clamp(min=1))[index]
    return torch.where(mean > 0, mean, 1.0)


def grpo(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """`outcome_mean` over `group_std` (GRPO, Shao et al. 2024, section 4.1.2)."""
    return outcome_mean(rewards, groups, valid) / group_std(rewards, groups, valid)


def maxrl(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """`outcome_mean` over `group_mean` (MaxRL, Tajwar et al. 2026): the gradient of the log of the success rate, to
    the order that the group allows. For rewards that are not negative."""
    return outcome_mean(rewards, groups, valid) / group_mean(rewards, groups, valid)


# -- turns -------------------------------------------------------------------------------------------------------------


def rebn(outcomes: Outcomes, discount: float) -> Tensor:
    """Returns of all turns of the batch, less their mean and over their standard deviation: no groups (return batch
    normalisation, Liu et al. 2025, "GEM"). -> [M] float32; 0 where they do not vary. Each trajectory weighs the same
    however many turns it has, which the paper leaves open."""
    found, owner = returns(outcomes, discount), outcomes.owner
    turns = torch.bincount(owner, minlength=len(outcomes.rewards)).clamp(min=1)
    weight = torch.where(outcomes.valid, 1.0 / turns, 0.0)[owner]
    total = weight.sum()
    votes = weight > 0
    if outcomes.valid.sum() < 2 or not _apart(found[votes].max(), found[votes].min()):
        return torch.zeros_like(found)
    mean = (weight * found).sum() / total
    std = ((weight * (found - mean).square()).sum() / total).sqrt()
    return torch.where(votes, (found - mean) / std, 0.0)


def same_state(outcomes: Outcomes, discount: float) -> Tensor:
    """Return minus the mean return of the *other* trajectories of the group that passed through the same state, per
    turn: the step part of GiGPO (Feng et al. 2025, eq. 7) with a leave-one-out baseline. -> [M] float32

    What no choice can change any more earns nothing: behind an irrecoverable error all who pass fail alike. A
    trajectory votes once per state, with its first visit, however often it returns."""
    return _against_same_state(outcomes, discount, leave_one_out)


def gigpo(outcomes: Outcomes, discount: float) -> Tensor:
    """Episode part plus step part, each with its group's mean as the baseline and without a standard deviation
    (GiGPO, Feng et al. 2025, eq. 8 with weight 1 and F_norm 1). -> [M] float32"""
    whole = outcome_mean(outcomes.rewards, outcomes.groups, outcomes.valid)[outcomes.owner]
    return whole + _against_same_state(outcomes, discount, outcome_mean)


def _against_same_state(outcomes: Outcomes, discount: float, baseline: Baseline) -> Tensor:
    """[M] `baseline` among those who stood in the same state; 0 where it has no name. A second visit is measured
    against the same mean as the first."""
    owner, state = outcomes.owner, outcomes.state
    found = returns(outcomes, discount)
    advantages = torch.zeros_like(found)
    known = (state >= 0) & outcomes.valid[owner]
    if not known.any():
        return advantages
    labels = torch.stack([outcomes.groups[owner], state], dim=1)
    _, place = labels.unique(dim=0, return_inverse=True)
    visits = torch.stack([place, owner], dim=1)[known]
    votes, which = visits.unique(dim=0, return_inverse=True)
    at = torch.arange(len(which), device=which.device)
    first = torch.full((len(votes),), len(which), device=which.device).scatter_reduce(0, which, at, "amin")
    voted = found[known][first]
    earned = baseline(voted, votes[:, 0], torch.ones(len(votes), dtype=torch.bool, device=owner.device))
    taught = _taught(voted, votes[:, 0].unique(return_inverse=True)[1], torch.ones_like(voted, dtype=torch.bool))
    later = torch.where(taught, 1.0, 0.0)[which] * (found[known] - voted[which])
    advantages[known] = earned[which] + later
    return advantages


def _by_turn(baseline: Baseline, scale: Baseline | None = None) -> Credit:
    """A credit of whole trajectories, given to each of their turns: the turn's return less the baseline of returns
    from the start, so that the baseline owes nothing to the trajectory's own choices (Williams 1992)."""

    def per_turn(outcomes: Outcomes, discount: float) -> Tensor:
        found, owner = returns(outcomes, discount), outcomes.owner
        opens = torch.ones_like(owner, dtype=torch.bool)
        opens[1:] = owner[1:] != owner[:-1]
        first = outcomes.rewards.clone()  # of a trajectory without turns
        first[owner[opens]] = found[opens]
        earned = baseline(first, outcomes.groups, outcomes.valid)
        taught = _taught(first, outcomes.groups.unique(return_inverse=True)[1], outcomes.valid)
        advantages = torch.where(taught[owner], earned[owner] + (found - first[owner]), 0.0)
        return (
            advantages if scale is None else advantages / scale(outcomes.judged, outcomes.groups, outcomes.valid)[owner]
        )

    return per_turn


CREDITS: dict[str, Credit] = {
    "outcome_mean": _by_turn(outcome_mean),
    "leave_one_out": _by_turn(leave_one_out),
    "grpo": _by_turn(outcome_mean, group_std),
    "dr_grpo": _by_turn(outcome_mean),  # with --denominator constant it is the whole of Dr. GRPO
    "maxrl": _by_turn(outcome_mean, group_mean),
    "rebn": rebn,
    "same_state": same_state,
    "gigpo": gigpo,
}
NEEDS_STATES = ("same_state", "gigpo")  # the environment must name its states
NEEDS_GROUPS = frozenset(CREDITS) - {"rebn"}  # a group of one has no baseline


def get_credit(name: str) -> Credit:
    """The credit of that name. Raises ConfigError listing the names there are."""
    if name not in CREDITS:
        raise ConfigError(f"no credit {name!r}: there are {', '.join(CREDITS)}{nearest(name, CREDITS)}")
    return CREDITS[name]


def _taught(rewards: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """[B] True for valid members of groups whose valid rewards differ by more than rounding: only those get credit, and
    exactly zero is left of all others."""
    high = torch.full((int(index.max()) + 1,), -torch.inf, dtype=rewards.dtype, device=rewards.device)
    low = -high
    high = high.scatter_reduce(0, index, torch.where(valid, rewards, -torch.inf), "amax")
    low = low.scatter_reduce(0, index, torch.where(valid, rewards, torch.inf), "amin")
    return valid & _apart(high, low)[index]


def _apart(high: Tensor, low: Tensor) -> Tensor:
    """Whether two float32 sums of rewards are two numbers, and not one that was added up in two ways."""
    return high - low > 1e-6 * torch.maximum(high.abs(), low.abs()).clamp(min=1)


def _group_sums(values: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """values, groups, valid [B] -> group of each member [B], valid members per group [G], their sum [G]."""
    labels, index = groups.unique(return_inverse=True)
    kept = torch.where(valid, values, 0.0)
    size = torch.zeros(len(labels), dtype=torch.long, device=values.device).index_add(0, index, valid.long())
    return index, size, torch.zeros(len(labels), dtype=values.dtype, device=values.device).index_add(0, index, kept)
