"""Is this batch sane? What to look at before believing a curve.

Owns the figures of one update and the thresholds that stop a run. Pure functions of episodes and of what the
optimiser steps returned; every share says of what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.learner.pack import Reach, Trajectory
from agentgym.learner.selection import Selected
from agentgym.ledger import Episode, Source


class AuditError(AgentGymError):
    """A figure is out of bounds: training on would teach from wrong numbers."""


def audit(
    episodes: Sequence[Episode], selected: Selected, *, version: int, trained: int | None, reach: Reach = "turns"
) -> dict[str, Any]:
    """The figures of one update's episodes.

    `selected` is what credit made of the episodes; `version` is the learner's when the update began; `trained` counts
    the tokens that went through the loss, None where a step was skipped. Raises AuditError where a token was trained
    twice or never."""
    counted = [e for e in episodes if e.counts]
    ledgers = [e.ledger for e in episodes if e.ledger is not None]
    sampled = sum(ledger.num_sampled for ledger in ledgers)
    owed = sum(
        len(s)
        for t in selected.trajectories
        if t is not None
        for s in t.ledger
        if s.source is Source.SAMPLED and _trains(t, s.turn, reach)
    )
    if trained is not None and owed != trained:
        raise AuditError(f"{trained} tokens trained, {owed} sampled with an advantage: each must train exactly once")
    staleness = Counter(version - s.version for ledger in ledgers for s in ledger if s.version is not None)
    texts = Counter((e.task_id, *(s.ids.tobytes() for s in e.ledger)) for e in episodes if e.ledger is not None)
    lengths = {
        name: [len(e.turns) for e in counted if e.success is won] for name, won in (("won", True), ("lost", False))
    }
    return {
        "episodes": len(episodes),
        "reward_mean": _mean([e.reward for e in counted]),
        "success": _mean([float(e.success) for e in counted]),
        "coverage": len(counted) / max(1, len(episodes)),
        "by_horizon": _by_horizon(counted),
        "stop_reasons": dict(sorted(Counter(str(e.stop_reason) for e in episodes).items())),
        "failures": dict(sorted(Counter(str(e.failure.kind) for e in episodes if e.failure is not None).items())),
        "staleness": {str(k): v for k, v in sorted(staleness.items())},
        "zero_variance_share": _zero_variance_share(episodes),
        "filtered_share": selected.num_filtered / max(1, selected.num_groups),
        "masked_share": sum(t is None for t in selected.trajectories) / max(1, len(episodes)),
        "reward_std": selected.reward_std,
        "reward_parts": _parts(counted),
        "duplicate_share": sum(n - 1 for n in texts.values()) / max(1, len(ledgers)),
        "policy_token_share": sampled / max(1, sum(ledger.num_tokens for ledger in ledgers)),
        "tokens_sampled": sampled,
        "turns_mean": _mean([len(e.turns) for e in counted]),
        "turns_won": _mean(lengths["won"]),
        "turns_lost": _mean(lengths["lost"]),
        "length_sampled": _mean([ledger.num_sampled for ledger in ledgers]),
        "length_trained": _mean([t.ledger.num_sampled for t in selected.trajectories if t and t.advantages.any()]),
    }


def mismatch(figures: dict[str, float], limit: float) -> str:
    """What is wrong where engine and learner disagree about a probability by more than `limit` nats, or nothing."""
    worst = figures["mismatch_max"]
    if worst <= limit:
        return ""
    return (
        f"engine and learner differ by {worst:.2g} nats on a token (limit {limit:g}): a stale cache, another "
        "temperature or other weights. --max-mismatch raises the limit for low-precision models."
    )


def _trains(trajectory: Trajectory, turn: int, reach: Reach) -> bool:
    if reach == "turns":
        return bool(trajectory.advantages[turn] != 0)
    return reach == "all" or bool(trajectory.advantages.any())


def _parts(episodes: Sequence[Episode]) -> dict[str, float]:
    """The mean of each part of the reward, over the episodes that have it."""
    names = sorted({name for e in episodes for name in e.reward_parts})
    return {name: _mean([e.reward_parts[name] for e in episodes if name in e.reward_parts]) for name in names}


def _zero_variance_share(episodes: Sequence[Episode]) -> float:
    """Share of groups whose members all got the same reward: they teach nothing. Groups that lost a member are not
    among them."""
    lost = {episode.group for episode in episodes if not episode.counts}
    by_group: dict[int, set[float]] = {}
    for episode in episodes:
        if episode.group not in lost:
            by_group.setdefault(episode.group, set()).add(episode.reward)
    return sum(len(seen) == 1 for seen in by_group.values()) / max(1, len(by_group))


def _by_horizon(episodes: Sequence[Episode]) -> dict[str, float]:
    found: dict[int, list[float]] = {}
    for episode in episodes:
        if (horizon := episode.metadata.get("horizon")) is not None:
            found.setdefault(horizon, []).append(float(episode.success))
    return {str(h): _mean(found[h]) for h in sorted(found)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
