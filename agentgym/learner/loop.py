"""The training loop: collect, credit, update, push, record.

Owns the order of things and the sampler's position. Synchronous training is staleness zero: every batch is sampled
under the weights it trains, and an update that was interrupted is collected again, whole, from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from agentgym.errors import ConfigError
from agentgym.learner.audit import AuditError, audit, refuse_mismatch
from agentgym.learner.checkpoint import Checkpoints
from agentgym.learner.credit import get_credit
from agentgym.learner.metrics import MetricsLog
from agentgym.learner.pack import Trajectory
from agentgym.learner.update import Learner, ObjectiveConfig
from agentgym.ledger import Episode
from agentgym.policies.local import LocalPolicy
from agentgym.rollout.driver import Driver, Slot, derive_seed
from agentgym.tasks import Split

START = object()  # the state before the first turn: equal for all who play one task
MIN_COVERAGE = 0.5  # of an update's episodes; below it the run stops rather than train on what survives


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """What one update is made of, and how many there are."""

    updates: int = 100
    """Updates in all."""
    groups: int = 24
    """Tasks per update; a multiple of the number of trained horizons keeps them balanced."""
    group_size: int = 8
    """Episodes per task and version; leave-one-out needs at least 2."""
    credit: str = "leave_one_out"
    """From rewards to advantages: leave_one_out, grpo, outcome_mean, or same_state (per turn)."""
    minibatches: int = 2
    """Optimiser steps per update, each on its share of the groups."""
    max_mismatch: float = 1e-3
    """Stop where engine and learner differ by more nats than this on a token."""
    checkpoint_every: int = 10
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("updates", "groups", "minibatches", "checkpoint_every"):
            if getattr(self, name) < (name != "updates"):
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.group_size < 2:
            raise ConfigError(f"group_size is {self.group_size}; a group of one has no baseline, give at least 2")
        if self.groups % self.minibatches:
            raise ConfigError(
                f"groups {self.groups} cannot be shared by {self.minibatches} minibatches; give a multiple"
            )
        get_credit(self.credit)


def plan(split: Split, config: LoopConfig, *, update: int, seed: int) -> list[Slot]:
    """The slots of one update: consecutive tasks of the split, `group_size` attempts each."""
    tasks = split.take(config.groups, start=update * config.groups % len(split))
    return [
        Slot(task_id, attempt, group, derive_seed(seed, "episode", update, task_id) >> 32)
        for group, (task_id, _) in enumerate(tasks)
        for attempt in range(config.group_size)
    ]


def credited(episodes: Sequence[Episode], credit: str) -> list[Trajectory | None]:
    """A trajectory with its turns' advantages per episode; None where there is nothing to learn from. A group with an
    episode that was not played fairly (broken task or infrastructure) is left out whole: keeping the rest would
    prefer what survives."""
    lost = {e.group for e in episodes if not e.counts}
    valid = [e.group not in lost and e.ledger is not None and e.ledger.num_sampled > 0 for e in episodes]
    owner, state, labels = [], [], {}
    for index, episode in enumerate(episodes):
        keys = [START, *(turn.state_key for turn in episode.turns)]  # a turn's state is what the one before left
        for key in keys[: episode.ledger.num_turns if episode.ledger is not None else 0]:
            owner.append(index)
            state.append(-1 if key is None else labels.setdefault(key, len(labels)))
    advantages = get_credit(credit)(
        torch.tensor([e.reward for e in episodes], dtype=torch.float32),
        torch.tensor([e.group for e in episodes]),
        torch.tensor(valid),
        torch.tensor(owner, dtype=torch.long),
        torch.tensor(state, dtype=torch.long),
    ).numpy()
    starts = np.searchsorted(owner, np.arange(len(episodes) + 1))
    return [
        Trajectory(e.ledger, advantages[a:b]) if ok and e.ledger is not None else None
        for e, ok, a, b in zip(episodes, valid, starts, starts[1:], strict=False)
    ]


async def train(
    split: Split,
    driver: Driver,
    policy: LocalPolicy,
    learner: Learner,
    config: LoopConfig,
    objective: ObjectiveConfig,
    *,
    seed: int,
    start: int,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    progress: dict[str, Any],
    on_update: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Run updates `start`..`config.updates`; `progress` is saved with each checkpoint and its `seconds_train` kept."""
    done, saved_version = start, learner.version
    try:
        for update in range(start, config.updates):
            began = perf_counter()
            await policy.engine.push(learner.version)
            busy = policy.engine.busy_s
            episodes = await driver.collect(plan(split, config, update=update, seed=seed), update=update)
            sampled = perf_counter()
            waited = max(0.0, sampled - began - (policy.engine.busy_s - busy))  # for environments and bookkeeping
            _refuse_broken(episodes)
            version = learner.version
            trajectories = credited(episodes, config.credit)
            figures = _steps(learner, trajectories, episodes, config, objective, policy.sampling.temperature)
            seconds = {"seconds_generate": sampled - began, "seconds_learn": perf_counter() - sampled}
            line = {"update": update, **seconds, "seconds": sum(seconds.values()), "seconds_env": waited}
            line |= audit(episodes, trajectories, version=version, trained=int(figures["tokens_trained"]))
            line |= figures
            metrics.add(line)
            progress["seconds_train"] = progress.get("seconds_train", 0.0) + line["seconds"]
            done, saved_version = update + 1, learner.version  # from here on the update is whole
            if on_update is not None:
                on_update(line)
            refuse_mismatch(figures, config.max_mismatch)
            if done % config.checkpoint_every == 0 and done < config.updates:
                checkpoints.save(learner, done, progress)
    finally:
        if learner.version == saved_version:  # not in the middle of an update: those are played again
            checkpoints.save(learner, done, progress)


def _refuse_broken(episodes: Sequence[Episode]) -> None:
    broken = [e for e in episodes if not e.counts]
    if len(broken) > (1 - MIN_COVERAGE) * len(episodes):
        failure = broken[0].failure
        raise AuditError(
            f"{len(broken)} of {len(episodes)} episodes failed, the first with {failure}; mend that and --resume"
        )


def _steps(
    learner: Learner,
    trajectories: Sequence[Trajectory | None],
    episodes: Sequence[Episode],
    config: LoopConfig,
    objective: ObjectiveConfig,
    temperature: float,
) -> dict[str, float]:
    """The optimiser steps of one update, each on consecutive groups. Mismatch is the first step's: later ones compare
    with weights that have moved."""
    share = config.groups // config.minibatches
    found: list[dict[str, float]] = []
    for first in range(0, config.groups, share):
        part = [
            t for t, e in zip(trajectories, episodes, strict=True) if t is not None and first <= e.group < first + share
        ]
        found.append(learner.step(part, objective, temperature=temperature))
    total = sum(f["tokens_trained"] for f in found)
    names = {name for f in found for name in f} - {"tokens_trained"}
    figures = {n: sum(f.get(n, 0.0) * f["tokens_trained"] for f in found) / max(1.0, total) for n in sorted(names)}
    figures["grad_norm"] = max(f["grad_norm"] for f in found)
    figures["mismatch_mean"] = found[0].get("mismatch_mean", 0.0)
    figures["mismatch_max"] = found[0].get("mismatch_max", 0.0)
    return figures | {"tokens_trained": total}
