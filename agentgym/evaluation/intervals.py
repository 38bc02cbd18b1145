"""How sure a success rate is: intervals for independent attempts and for attempts clustered in tasks.

Owns the statistics of one rate. Which episodes belong in its denominator is `Episode.counts`; success against
task length is horizon.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agentgym.errors import ConfigError
from agentgym.ledger import Episode

Method = Literal["wilson", "cluster bootstrap"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A success rate, its denominator and its confidence interval."""

    rate: float  # successes / n; NaN where nothing was scored
    low: float
    high: float
    n: int  # scored episodes: the denominator
    successes: int
    level: float = 0.95
    method: Method = "wilson"

    def __str__(self) -> str:
        if not self.n:
            return "none scored"
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"

    def as_json(self) -> dict[str, Any]:
        """For summary.json, where a rate over nothing is null."""
        rate = None if math.isnan(self.rate) else self.rate
        return {"rate": rate, "low": self.low, "high": self.high, "n": self.n, "successes": self.successes}


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for independent attempts (Wilson 1927; Brown, Cai & DasGupta 2001 on why not Wald).
    n = 0 knows nothing: rate NaN, interval [0, 1]."""
    from scipy.stats import binomtest  # noqa: PLC0415  0.7 s to import

    _check_level(level)
    if not 0 <= successes <= n:
        raise ConfigError(f"{successes} successes of {n} attempts; give 0 <= successes <= n")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, 0, level)
    bounds = binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), n, successes, level)


def cluster_bootstrap(
    outcomes: Mapping[str, Sequence[bool]], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap over tasks for attempts that are clustered in them (Cameron, Gelbach & Miller 2008).

    Attempts on one task resemble each other, so tasks are drawn with replacement and each brings all its attempts;
    the rate of a draw is its successes over its attempts. Where every task has the same rate a bootstrap sees no
    spread at all; then the interval is Wilson's on the number of tasks, as if attempts told nothing beyond the first.
    outcomes: task id -> success per attempt. Own generator; the process-wide ones stay untouched."""
    _check_level(level)
    won = np.array([sum(map(bool, attempts)) for attempts in outcomes.values()], dtype=np.int64)
    tried = np.array([len(attempts) for attempts in outcomes.values()], dtype=np.int64)
    won, tried = won[tried > 0], tried[tried > 0]
    if not len(tried):
        return Interval(math.nan, 0.0, 1.0, 0, 0, level, "cluster bootstrap")
    n, successes = int(tried.sum()), int(won.sum())
    rate = successes / n
    if np.all(won * n == successes * tried):
        flat = wilson(round(rate * len(tried)), len(tried), level)
        return Interval(rate, min(flat.low, rate), max(flat.high, rate), n, successes, level, "cluster bootstrap")
    picks = np.random.default_rng(seed).integers(len(tried), size=(draws, len(tried)))
    rates = won[picks].sum(axis=1) / tried[picks].sum(axis=1)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(rate, float(low), float(high), n, successes, level, "cluster bootstrap")


def success_interval(episodes: Iterable[Episode], level: float = 0.95) -> Interval:
    """The success rate of the episodes that count: Wilson's interval with one attempt per task, clusters with more."""
    outcomes: dict[str, list[bool]] = {}
    for episode in episodes:
        if episode.counts:
            outcomes.setdefault(episode.task_id, []).append(episode.success)
    if any(len(attempts) > 1 for attempts in outcomes.values()):
        return cluster_bootstrap(outcomes, level)
    return wilson(sum(won for [won] in outcomes.values()), len(outcomes), level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"confidence level {level}; give a share between 0 and 1, such as 0.95")
