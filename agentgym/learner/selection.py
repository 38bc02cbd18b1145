"""From episodes to trajectories with advantages: who takes part, whose reward is changed, and which groups train.

Owns the masks, filters and penalties around credit. The credit itself is credit.py's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from agentgym.errors import ConfigError, nearest
from agentgym.learner.credit import Outcomes, get_credit
from agentgym.learner.pack import Trajectory
from agentgym.ledger import Episode, FloatArray, StopReason

START = object()  # the state before the first turn: equal for all who play one task


@dataclass(frozen=True, slots=True)
class SelectionConfig:
    """Which episodes and groups of a batch train."""

    masked_stops: tuple[str, ...] = ()
    """Stop reasons whose episodes neither train nor vote, such as max_tokens max_turns max_time context (DAPO's
    overlong filter, DeepSWE's compact filtering)."""
    overlong_limit: int = 0
    """Sampled tokens at which an episode's reward is less by 1 (DAPO, eq. 13); 0 for no penalty."""
    overlong_cache: int = 0
    """Over so many tokens before the limit the penalty rises from 0."""
    keep: Literal["all", "variance", "learnability"] = "all"
    """Which groups train: all, those of largest variance of rewards (RAGEN), or of success rates nearest to a half."""
    keep_share: float = 0.5
    """The share of groups that is kept, where not all are."""
    count_filtered: bool = True
    """Let groups that were filtered out count in the denominator, so that filtering changes no scale."""
    resample: int = 0
    """Rounds in which groups whose rewards are all alike are replaced by the next tasks (DAPO's dynamic sampling)."""
    advantage_scale: Literal["none", "task"] = "none"
    """Divide advantages by their root mean square over the tokens of their environment (AgentRL)."""

    def __post_init__(self) -> None:
        for stop in self.masked_stops:
            if stop not in set(StopReason):
                raise ConfigError(f"masked_stops {stop!r} is no stop reason{nearest(stop, map(str, StopReason))}")
        if not 0 < self.keep_share <= 1:
            raise ConfigError(f"keep_share is {self.keep_share}; a share lies above 0 and up to 1")
        if not 0 <= self.overlong_cache <= self.overlong_limit:
            raise ConfigError(
                f"overlong_cache is {self.overlong_cache} and overlong_limit {self.overlong_limit}; the cache lies "
                "before the limit"
            )
        if self.resample < 0:
            raise ConfigError(f"resample is {self.resample}; give 0 or more rounds")


@dataclass(frozen=True, slots=True)
class Selected:
    """A batch after credit."""

    trajectories: list[Trajectory | None]  # per episode; None: neither trains nor counts
    num_groups: int  # that were whole
    num_filtered: int  # of them, filtered out
    reward_std: float  # mean over whole groups of the standard deviation of rewards, n - 1 in the denominator


def select(
    episodes: Sequence[Episode],
    credit: str,
    config: SelectionConfig,
    *,
    discount: float = 1.0,
    divergence: Sequence[FloatArray | None] | None = None,
) -> Selected:
    """Trajectories with an advantage per turn. A group with an episode that was not played fairly (broken task or
    infrastructure) is left out whole: keeping the rest would prefer what survives.

    `divergence` gives what the KL term takes off each turn's reward."""
    lost = {e.group for e in episodes if not e.counts}
    valid = torch.tensor([e.group not in lost and _takes_part(e, config) for e in episodes])
    outcomes = _outcomes(episodes, valid, config, divergence)
    kept = _kept(episodes, outcomes, config)
    advantages = get_credit(credit)(outcomes, discount)
    advantages = torch.where(kept[outcomes.owner], advantages, 0.0).numpy()
    starts = np.searchsorted(outcomes.owner.numpy(), np.arange(len(episodes) + 1))
    counted = valid if config.count_filtered else kept
    trajectories = [
        Trajectory(e.ledger, advantages[a:b], group=e.group) if ok and e.ledger is not None else None
        for e, ok, a, b in zip(episodes, counted.tolist(), starts, starts[1:], strict=False)
    ]
    if config.advantage_scale == "task":
        _scale_by_task(episodes, trajectories)
    groups = outcomes.groups[valid].unique()
    stds = [_std(outcomes.judged[valid & (outcomes.groups == g)]) for g in groups]
    filtered = len(groups) - len(outcomes.groups[kept].unique())
    return Selected(trajectories, len(groups), filtered, float(np.mean(stds)) if stds else 0.0)


def has_signal(episodes: Sequence[Episode]) -> bool:
    """Whether a group's rewards differ."""
    return len({e.reward for e in episodes if e.counts}) > 1


def _takes_part(episode: Episode, config: SelectionConfig) -> bool:
    has_tokens = episode.ledger is not None and episode.ledger.num_sampled > 0
    return has_tokens and episode.stop_reason not in config.masked_stops


def _outcomes(
    episodes: Sequence[Episode], valid: Tensor, config: SelectionConfig, divergence: Sequence[FloatArray | None] | None
) -> Outcomes:
    owner: list[int] = []
    state: list[int] = []
    rewards: list[float] = []
    turn_rewards: list[float] = []
    labels: dict[object, int] = {}
    for index, episode in enumerate(episodes):
        turns = episode.ledger.num_turns if episode.ledger is not None else 0
        keys = [START, *(turn.state_key for turn in episode.turns)]  # a turn's state is what the one before left
        gained = [turn.reward for turn in episode.turns][:turns]
        gained += [0.0] * (turns - len(gained))
        reward = episode.reward - _overlong(episode, config)
        if turns and (rest := reward - sum(gained)):
            gained[-1] += rest
        if divergence is not None and (less := divergence[index]) is not None:
            gained = [gain - float(by) for gain, by in zip(gained, less, strict=True)]
            reward -= float(less.sum())
        owner += [index] * turns
        state += [-1 if key is None else labels.setdefault(key, len(labels)) for key in keys[:turns]]
        rewards.append(reward)
        turn_rewards += gained
    return Outcomes(
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor([e.reward for e in episodes], dtype=torch.float32),
        torch.tensor([e.group for e in episodes]),
        valid,
        torch.tensor(owner, dtype=torch.long),
        torch.tensor(turn_rewards, dtype=torch.float32),
        torch.tensor(state, dtype=torch.long),
    )


def _overlong(episode: Episode, config: SelectionConfig) -> float:
    """Soft overlong punishment (DAPO, Yu et al. 2025, eq. 13): 0 up to limit - cache, 1 from the limit on."""
    if not config.overlong_limit or episode.ledger is None:
        return 0.0
    if episode.ledger.num_sampled >= config.overlong_limit:
        return 1.0
    beyond = episode.ledger.num_sampled - (config.overlong_limit - config.overlong_cache)
    return beyond / config.overlong_cache if beyond > 0 else 0.0


def _kept(episodes: Sequence[Episode], outcomes: Outcomes, config: SelectionConfig) -> Tensor:
    """[B] True where an episode's group is among the `keep_share` that teach most, as the environment judged them; ties
    go to the earlier group."""
    groups, valid = outcomes.groups, outcomes.valid
    if config.keep == "all" or not valid.any():
        return valid
    labels = list(dict.fromkeys(groups[valid].tolist()))
    success = torch.tensor([float(e.success) for e in episodes])

    def worth(label: int) -> float:
        members = valid & (groups == label)
        rate = float(success[members].mean())
        return _std(outcomes.judged[members]) if config.keep == "variance" else rate * (1 - rate)

    best = sorted(labels, key=worth, reverse=True)[: max(1, round(config.keep_share * len(labels)))]
    return valid & torch.isin(groups, torch.tensor(best))


def _std(rewards: Tensor) -> float:
    return float(rewards.std()) if len(rewards) > 1 else 0.0


def _scale_by_task(episodes: Sequence[Episode], trajectories: list[Trajectory | None]) -> None:
    """Divide the advantages of each environment by their root mean square over its trainable tokens."""
    sums: dict[str, list[float]] = {}
    for episode, trajectory in zip(episodes, trajectories, strict=True):
        if trajectory is not None:
            for row in trajectory.ledger.rows():
                squares = trajectory.advantages[row.turns[row.sampled]].astype(np.float64) ** 2
                total = sums.setdefault(episode.env_id, [0.0, 0.0])
                total[0] += float(squares.sum())
                total[1] += len(squares)
    for episode, trajectory in zip(episodes, trajectories, strict=True):
        if trajectory is not None:
            square, count = sums[episode.env_id]
            if square > 0:
                trajectory.advantages[:] /= np.sqrt(square / count)
