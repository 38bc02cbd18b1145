"""Success against task length: the curve, and the horizon at which success crosses one half.

Owns the success curve and H50. What a horizon means is the environment's (`Task.metadata["horizon"]`: turns that a
good solution needs); the interval of one rate is intervals.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgym.errors import ConfigError
from agentgym.evaluation.intervals import Interval, success_interval
from agentgym.ledger import Episode


@dataclass(frozen=True, slots=True)
class Point:
    """Success at one horizon."""

    horizon: int
    success: Interval
    num_failed: int = 0  # broken by us or by the data: no part of success.n

    @property
    def coverage(self) -> float:
        """Share of the episodes that could be scored."""
        return self.success.n / max(self.success.n + self.num_failed, 1)

    def as_json(self) -> dict[str, Any]:
        return {"horizon": self.horizon, **self.success.as_json(), "num_failed": self.num_failed}


@dataclass(frozen=True, slots=True)
class HalfHorizon:
    """The horizon up to which at least `level` of the tasks succeed, with its interval."""

    value: float
    low: float
    high: float
    at_least: bool  # success never falls below the level: the value is only the last horizon tested

    def __str__(self) -> str:
        return f"{'≥ ' if self.at_least else ''}{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "at_least": self.at_least}


def success_curve(episodes: Iterable[Episode]) -> list[Point]:
    """Success per horizon, shortest first. Episodes whose task names no horizon have no place on it."""
    by_horizon: dict[int, list[Episode]] = {}
    for episode in episodes:
        horizon = episode.metadata.get("horizon")
        if horizon is not None:
            by_horizon.setdefault(int(horizon), []).append(episode)
    return [
        Point(horizon, success_interval(members), num_failed=sum(not e.counts for e in members))
        for horizon, members in sorted(by_horizon.items())
    ]


def half_horizon(curve: Sequence[Point], level: float = 0.5, draws: int = 500, seed: int = 0) -> HalfHorizon:
    """H50: where a non-increasing fit of the curve crosses `level`, linearly between tested horizons.

    The fit is the isotonic regression weighted by n (Barlow et al. 1972). 0 if the first horizon is already below
    the level; the last horizon tested, flagged `at_least`, if none is. The 95 % interval holds the middle of `draws`
    parametric resamples: at each horizon successes ~ Binomial(n, rate), refitted. It treats attempts as independent;
    horizons at which nothing was scored are left out."""
    tested = sorted((point for point in curve if point.success.n), key=lambda point: point.horizon)
    if not tested:
        raise ConfigError("a curve without scored episodes has no half horizon; evaluate at least one horizon")
    if not 0 < level < 1:
        raise ConfigError(f"level {level}: give the success rate to cross, between 0 and 1, such as 0.5")
    horizons = np.array([point.horizon for point in tested], dtype=np.float64)
    n = np.array([point.success.n for point in tested], dtype=np.int64)
    rates = np.array([point.success.successes for point in tested]) / n
    value, at_least = crossing(horizons, _non_increasing(rates, n), level)
    resampled = np.random.default_rng(seed).binomial(n, rates, size=(draws, len(n))) / n
    values = [crossing(horizons, _non_increasing(draw, n), level)[0] for draw in resampled]
    low, high = np.quantile(values, [0.025, 0.975])
    return HalfHorizon(value, float(low), float(high), at_least)


def crossing(horizons: NDArray[np.float64], rates: NDArray[np.float64], level: float) -> tuple[float, bool]:
    """Where a non-increasing curve first falls below `level`, and whether it never does (then: its last horizon).
    horizons [K] ascending, rates [K] -> (horizon, never below)."""
    below = np.flatnonzero(rates < level - 1e-12)  # a pool of 0.6 and 0.4 may come out at 0.49999999999999994
    if not len(below):
        return float(horizons[-1]), True
    k = int(below[0])
    if k == 0:
        return 0.0, False
    share = max(rates[k - 1] - level, 0.0) / (rates[k - 1] - rates[k])
    return float(horizons[k - 1] + share * (horizons[k] - horizons[k - 1])), False


def _non_increasing(rates: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    from scipy.optimize import isotonic_regression  # noqa: PLC0415  0.4 s to import

    return isotonic_regression(rates, weights=weights, increasing=False).x
