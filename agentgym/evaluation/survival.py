"""First errors, and the share of attempts that is still without one after k steps.

Owns what counts as the first error of an episode, the Kaplan-Meier curve and its band, and the horizon read off it. How
the rate of errors changes with k is hazard.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentgym.errors import ConfigError
from agentgym.evaluation.horizon import HalfHorizon, bounded, crossing, horizon_of
from agentgym.evaluation.intervals import Array, quantile, score_bounds
from agentgym.ledger import Episode
from agentgym.policies.builtin import Gold
from agentgym.rollout.driver import Driver, Slot

Paths = Mapping[tuple[str, int], Sequence[str | None]]  # (task id, seed) -> state after each of gold's turns


@dataclass(frozen=True, slots=True)
class FirstError:
    """The step at which an attempt first went wrong for good, or the last one known to be right."""

    task_id: str
    step: int  # of the gold solution, from 1; where not seen: right up to here, and then the task was over
    seen: bool = True


async def gold_paths(env_id: str, episodes: Iterable[Episode], env_kwargs: Mapping[str, Any]) -> Paths:
    """The states that the environment's own solution goes through in the episodes that failed. Needs `state_key()` and
    `gold()`; empty where the environment names no states. Raises ConfigError where it has no gold."""
    episodes = list(episodes)
    if all(turn.state_key is None for e in episodes for turn in e.turns):
        return {}
    failed = [e for e in episodes if e.counts and not e.success]
    slots = {(e.task_id, e.seed): Slot(e.task_id, attempt, attempt, e.seed) for attempt, e in enumerate(failed)}
    driver = Driver(env_id, Gold(), run="gold", env_kwargs=env_kwargs, concurrency=8)
    try:
        played = await driver.collect(list(slots.values()))
    finally:
        driver.close()
    return {(e.task_id, e.seed): [turn.state_key for turn in e.turns] for e in played if e.success}


def first_errors(episodes: Iterable[Episode], paths: Paths) -> list[FirstError]:
    """Where each scored episode left the way of gold and never came back to it, in gold's steps.

    An episode that succeeds has made no error for good: right up to its task's horizon. One that fails has come as far
    as the states of gold that it passed in their order, however many turns it took; a detour that returns is no error.
    Failing after the last of `horizon` steps (to answer, say) is no error of a step. Tasks of which a failure has no
    path, or which name no horizon, are left out whole."""
    scored = [e for e in episodes if e.counts]
    pathless = {e.task_id for e in scored if not e.success and (e.task_id, e.seed) not in paths}
    found = []
    for episode in scored:
        horizon, right = horizon_of(episode), math.inf
        if horizon is None or episode.task_id in pathless:
            continue
        if not episode.success:
            path = paths[episode.task_id, episode.seed]
            right = _passed(path[:-1], [turn.state_key for turn in episode.turns])
        found.append(FirstError(episode.task_id, int(min(right + 1, horizon)), seen=right < horizon))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Survival:
    """Share of attempts without an error after k steps, with its pointwise 95 % band. Arrays are [steps]."""

    steps: Array  # from 1 to the last: those around which an attempt ended; between two of them nothing changes
    share: Array
    low: Array
    high: Array
    num_attempts: int
    num_errors: int

    def horizon(self, level: float = 0.5) -> HalfHorizon:
        """H50 and the like, by inverting the band (Brookmeyer & Crowley 1982); interpolated in log k."""
        value, low, high = (crossing(self.steps, curve, level) for curve in (self.share, self.low, self.high))
        return bounded(value, low, high, float(self.steps[-1]), level)

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps.astype(int).tolist(), "share": self.share.tolist(), "low": self.low.tolist(),
            "high": self.high.tolist(), "num_attempts": self.num_attempts, "num_errors": self.num_errors,
        }  # fmt: skip


def kaplan_meier(errors: Sequence[FirstError], level: float = 0.95) -> Survival:
    """S(k) = Π (1 - errors / at risk) (Kaplan & Meier 1958) with log-log intervals (Kalbfleisch & Prentice 1980).

    The variance of log S sums each task's influence before it is squared (Ying & Wei 1994), since attempts on one task
    are alike; then it is multiplied by G/(G - 1) for G tasks, and the quantile is Student's with G - 1 degrees of
    freedom. It is at least that of independent attempts. With one attempt per task it is Greenwood's (1926), and the
    quantile the normal one. Where nobody or everybody has failed the band is Wilson's for the tasks that were not over
    before that step, and with a single task all of [0, 1]. Raises ConfigError without a single attempt."""
    if not errors:
        raise ConfigError("no attempt has a first-error time: the environment names no states, or no task a horizon")
    step = np.array([e.step for e in errors])
    seen = np.array([e.seen for e in errors])
    steps = np.unique(np.clip([0 * step, step - 1, step, step + 1], 1, step.max()))
    at_risk = step[:, None] >= steps
    wrong = (step[:, None] == steps) & seen[:, None]
    left, lost = at_risk.sum(0), wrong.sum(0)
    share = np.cumprod(1 - lost / left)
    names, task = np.unique([e.task_id for e in errors], return_inverse=True)
    num_tasks, z = len(names), quantile(level)
    if num_tasks < len(errors):
        z = quantile(level, num_tasks - 1) * math.sqrt(num_tasks / max(num_tasks - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        influence = np.cumsum((wrong - at_risk * (lost / left)) / (left - lost), axis=1)
        per_task = np.zeros((num_tasks, len(steps)))
        np.add.at(per_task, task, influence)
        variance = np.maximum((per_task**2).sum(0), (influence**2).sum(0))
        width = z * np.sqrt(variance) / np.abs(np.log(share))
        low, high = share ** np.exp(width), share ** np.exp(-width)
    known = at_risk | seen[:, None]  # not censored before the step
    for k in np.flatnonzero((share == 0) | (share == 1)):
        low[k], high[k] = score_bounds(float(share[k]), len(set(task[known[:, k]])), quantile(level))
    if num_tasks == 1:
        low, high = np.zeros_like(share), np.ones_like(share)
    return Survival(steps.astype(np.float64), share, low, high, len(errors), int(seen.sum()))


def _passed(path: Sequence[str | None], states: Sequence[str | None]) -> int:
    """How far along the path the states come: to the last of its states that they reach, those before reached in order.
    A step of the path that leads nowhere new is passed with the next one that does."""
    ends = [i for i, state in enumerate(path) if i == 0 or state != path[i - 1]]
    reached = 0
    for state in states:
        if reached < len(ends) and state == path[ends[reached]]:
            reached += 1
    return ends[reached - 1] + 1 if reached else 0
