"""Success against task length: the curve, and the horizons at which success crosses one half and four fifths.

Owns the success curve, and H50 and H80 read off a falling curve. What a horizon means is the environment's
(`Task.metadata["horizon"]`: turns that a good solution needs); the interval of one rate is intervals.py, the curve
from first errors survival.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from agentgym.errors import ConfigError
from agentgym.evaluation.intervals import Array, Interval, by_task, cluster_wilson, is_number
from agentgym.ledger import Episode
from agentgym.messages import MAX_COUNT

WIDE = 2.0  # factor between tested horizons above which the interval of a crossing is too narrow


@dataclass(frozen=True, slots=True)
class Point:
    """Success at one horizon."""

    horizon: int
    success: Interval
    num_failed: int = 0  # broken by us or by the data: no part of success.n
    effective_n: float | None = None  # independent attempts that would tell as much; None: each of success.n is one

    def as_json(self) -> dict[str, Any]:
        return {"horizon": self.horizon, **self.success.as_json(), "num_failed": self.num_failed}


@dataclass(frozen=True, slots=True)
class HalfHorizon:
    """The horizon up to which at least `level` of the tasks succeed, with its 95 % interval.

    0 is "not reached": below the level at the first horizon already. An end that lies beyond the last horizon tested is
    that horizon, flagged."""

    value: float
    low: float
    high: float
    at_least: bool  # success never falls below the level: the value is only the last horizon tested
    high_at_least: bool = False  # the same of the interval's upper end
    level: float = 0.5
    gap: float = 1.0  # the tested horizons on either side lie this factor apart

    @property
    def not_reached(self) -> bool:
        return self.value == 0

    def __str__(self) -> str:
        value = "not reached" if self.not_reached else f"{'≥ ' if self.at_least else ''}{self.value:.1f}"
        note = f" (tested only at horizons a factor of {self.gap:.0f} apart: too sure)" if self.gap > WIDE else ""
        return f"{value} [{self.low:.1f}, {'≥ ' if self.high_at_least else ''}{self.high:.1f}]{note}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"not_reached": self.not_reached}


def success_curve(episodes: Iterable[Episode]) -> list[Point]:
    """Success per horizon, shortest first. Episodes whose task names no horizon have no place on it."""
    by_horizon: dict[int, list[Episode]] = {}
    for episode in episodes:
        if horizon := horizon_of(episode):
            by_horizon.setdefault(horizon, []).append(episode)
    return [
        Point(horizon, cluster_wilson(outcomes), sum(not e.counts for e in members), effective_n(outcomes))
        for horizon, members in sorted(by_horizon.items())
        for outcomes in [by_task(members, lambda e: e.success)]
    ]


def horizon_of(episode: Episode) -> int | None:
    """The horizon that the task of an episode names, at least 1; None where it names none, or nonsense."""
    told: Any = episode.metadata.get("horizon")
    return int(told) if is_number(told) and 1 <= told < MAX_COUNT else None


def half_horizon(curve: Sequence[Point], level: float = 0.5, draws: int = 500, seed: int = 0) -> HalfHorizon:
    """H50: where a non-increasing fit of the curve crosses `level`, interpolated in log k between tested horizons.

    The fit is the isotonic regression weighted by n (Barlow et al. 1972). The 95 % interval holds the middle of `draws`
    curves, refitted, whose rates are drawn from Beta(won + 1/2, lost + 1/2) (Jeffreys; Brown, Cai & DasGupta 2001):
    unlike a bootstrap it knows that 20 of 20 is not certainty. Attempts clustered in tasks count as the
    `effective_n` of their point; horizons at which nothing was scored are left out. Between horizons more than a factor
    of 2 apart the curve is a guess, and the interval too narrow: 83 to 90 % coverage was seen at a factor of 4 to 8.
    Raises ConfigError."""
    tested = sorted((point for point in curve if point.success.n), key=lambda point: point.horizon)
    if not tested:
        raise ConfigError("a curve without scored episodes has no half horizon; evaluate at least one horizon")
    if not 0 < level < 1:
        raise ConfigError(f"level {level}: give the success rate to cross, between 0 and 1, such as 0.5")
    horizons = np.array([point.horizon for point in tested], dtype=np.float64)
    n = np.array([point.effective_n or point.success.n for point in tested], dtype=np.float64)
    rates = np.array([point.success.rate for point in tested])
    fitted = np.random.default_rng(seed).beta(rates * n + 0.5, (1 - rates) * n + 0.5, size=(draws, len(n)))
    crossings = [crossing(horizons, _non_increasing(drawn, n), level) for drawn in fitted]
    low, high = np.quantile(crossings, [0.025, 0.975], method="closest_observation")
    value = crossing(horizons, _non_increasing(rates, n), level)
    found = bounded(value, float(low), float(high), float(horizons[-1]), level)
    after = int(np.searchsorted(horizons, found.value, side="right"))
    is_between = 0 < after < len(horizons)
    return replace(found, gap=float(horizons[after] / horizons[after - 1])) if is_between else found


def crossing(horizons: Array, rates: Array, level: float) -> float:
    """Where a non-increasing curve first falls below `level`: 0 if it begins there, infinity if it never does.
    horizons [K] ascending from 1 or more, rates [K]; interpolated in log k."""
    below = np.flatnonzero(rates < level - 1e-12)  # a pool of 0.6 and 0.4 may come out at 0.49999999999999994
    if not len(below):
        return math.inf
    k = int(below[0])
    if k == 0:
        return 0.0
    share = max(rates[k - 1] - level, 0.0) / (rates[k - 1] - rates[k])
    return float(horizons[k - 1] * (horizons[k] / horizons[k - 1]) ** share)


def bounded(value: float, low: float, high: float, last: float, level: float) -> HalfHorizon:
    """A crossing and its interval, with what lies beyond the `last` horizon brought back to it and flagged."""
    ends = (min(value, last), min(low, last), min(high, last))
    return HalfHorizon(*ends, at_least=math.isinf(value), high_at_least=math.isinf(high), level=level)


def effective_n(outcomes: Mapping[str, Sequence[bool]]) -> float | None:
    """Attempts over the design effect (Kish 1965), which is the variance of the rate with tasks as clusters over that
    of independent attempts; between the number of tasks and that of attempts. None where each task has one attempt.
    outcomes: task id -> success per attempt."""
    tried = np.array([len(attempts) for attempts in outcomes.values()], dtype=np.float64)
    n, tasks = float(tried.sum()), len(tried)
    if n == tasks:
        return None
    won = np.array([sum(attempts) for attempts in outcomes.values()], dtype=np.float64)
    rate = won.sum() / n
    if tasks < 2 or not 0 < rate < 1:
        return float(tasks)  # nothing shows how alike the attempts on a task are
    clustered = ((won - rate * tried) ** 2).sum() * tasks / (tasks - 1) / n**2
    return float(np.clip(rate * (1 - rate) / max(clustered, 1e-12), tasks, n))


def _non_increasing(rates: Array, weights: Array) -> Array:
    from scipy.optimize import isotonic_regression  # noqa: PLC0415  0.4 s to import

    return isotonic_regression(rates, weights=weights, increasing=False).x
