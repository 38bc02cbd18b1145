"""How sure a rate or a mean is: intervals for independent attempts and for attempts clustered in tasks.

Owns the statistics of one mean. Which episodes belong in its denominator is `Episode.counts`; two runs beside one
another are compare.py's business, success against task length horizon.py's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agentgym.errors import ConfigError
from agentgym.ledger import Episode

Method = Literal["wilson", "cluster wilson"]


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
        return {
            "rate": or_null(self.rate), "low": self.low, "high": self.high, "n": self.n, "successes": self.successes
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean over attempts and its confidence interval, in which each task is one cluster."""

    mean: float  # NaN where there is no value
    low: float  # -inf and inf where a single task says nothing of how tasks differ, and nothing bounds the values
    high: float
    n: int  # values: the denominator
    num_tasks: int
    level: float = 0.95

    def __str__(self) -> str:
        if not self.n:
            return "none scored"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n}, {self.num_tasks} tasks)"

    def as_json(self) -> dict[str, Any]:
        """For summary.json, where what is not known is null."""
        return {
            "mean": or_null(self.mean), "low": or_null(self.low), "high": or_null(self.high), "n": self.n,
            "num_tasks": self.num_tasks,
        }  # fmt: skip


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for independent attempts (Wilson 1927; Brown, Cai & DasGupta 2001 on why not Wald).
    n = 0 knows nothing: rate NaN, interval [0, 1]."""
    if not 0 <= successes <= n:
        raise ConfigError(f"{successes} successes of {n} attempts; give 0 <= successes <= n")
    quantile = normal_quantile(level)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, 0, level)
    return Interval(successes / n, *_score_bounds(successes / n, n, quantile), n, successes, level)


def cluster_wilson(outcomes: Mapping[str, Sequence[bool]], level: float = 0.95) -> Interval:
    """Success over attempts that are clustered in tasks: `mean_interval` of 0 and 1.
    outcomes: task id -> success per attempt."""
    of = mean_interval(outcomes, level, within_unit=True)
    successes = sum(sum(map(bool, attempts)) for attempts in outcomes.values())
    return Interval(of.mean, of.low, of.high, of.n, successes, level, "cluster wilson")


def mean_interval(
    values: Mapping[str, Sequence[float]], level: float = 0.95, *, within_unit: bool = False
) -> MeanInterval:
    """The mean over all attempts. values: task id -> one number per attempt; a task without any is passed over.

    Attempts on one task resemble each other, so the variance is that of G tasks, G/(G - 1) of their squared sums of
    residuals (Liang & Zeger 1986), and the quantile Student's with G - 1 degrees of freedom. Near a bound that covers
    too seldom, and equal values look certain: `within_unit` is for values that cannot leave [0, 1], such as rewards,
    and gives `unit_mean` of them. Raises ConfigError where one does."""
    sizes = np.array([len(attempts) for attempts in values.values() if len(attempts)], dtype=np.int64)
    flat = np.array([value for attempts in values.values() for value in attempts], dtype=np.float64)
    n, num_tasks = len(flat), len(sizes)
    quantile = student_quantile(level, num_tasks - 1)
    if not n:
        return MeanInterval(math.nan, *((0.0, 1.0) if within_unit else (-math.inf, math.inf)), 0, 0, level)
    mean = float(flat.mean())
    residuals = np.add.reduceat(flat - mean, np.cumsum(sizes) - sizes)
    variance = float(residuals @ residuals) / n**2
    if within_unit:
        if not (flat.min() >= 0 and flat.max() <= 1):
            raise ConfigError(f"values from {flat.min():g} to {flat.max():g} leave [0, 1]; leave within_unit out")
        return unit_mean(mean, variance, n, num_tasks, level)
    half = math.inf if num_tasks == 1 else quantile * math.sqrt(variance * num_tasks / (num_tasks - 1))
    return MeanInterval(mean, mean - half, mean + half, n, num_tasks, level)


def unit_mean(mean: float, variance: float, n: int, num_tasks: int, level: float = 0.95) -> MeanInterval:
    """Wilson's interval for a mean within [0, 1], with the attempts it is worth in place of n (after Korn & Graubard
    1998, and Franco et al. 2019 on clustered proportions). variance: of the mean, without the factor G/(G - 1).

    A mean m is worth m(1 - m) / variance attempts, at most n; at 0 or 1 it is worth one for each task, since tasks that
    all agree say nothing of the others. The quantile is Student's with a degree of freedom less than tasks; at 0 or 1,
    and with one 0 or 1 per task, it is Wilson's own. With 5 to 100 tasks x 2 to 8 attempts this covered 91 to 99 %
    where a percentile bootstrap of the tasks covered 33 to 96 %."""
    mean = min(max(mean, 0.0), 1.0)  # rounding
    spread = mean * (1 - mean)
    if spread <= 0:
        worth, quantile = float(num_tasks), normal_quantile(level)
    else:
        worth = min(float(n), spread / variance) if variance > 0 else float(n)
        single = n == num_tasks and math.isclose(worth, n, rel_tol=1e-9)
        quantile = normal_quantile(level) if single else student_quantile(level, num_tasks - 1)
    return MeanInterval(mean, *_score_bounds(mean, worth, quantile), n, num_tasks, level)


def success_interval(episodes: Iterable[Episode], level: float = 0.95) -> Interval:
    """The success rate of the episodes that count: Wilson's interval with one attempt per task, clusters with more."""
    outcomes: dict[str, list[bool]] = {}
    for episode in episodes:
        if episode.counts:
            outcomes.setdefault(episode.task_id, []).append(episode.success)
    if any(len(attempts) > 1 for attempts in outcomes.values()):
        return cluster_wilson(outcomes, level)
    return wilson(sum(won for [won] in outcomes.values()), len(outcomes), level)


def normal_quantile(level: float) -> float:
    """How many standard deviations either side hold `level` of a normal distribution: 1.96 for 0.95."""
    from scipy.special import ndtri  # noqa: PLC0415  0.1 s to import

    _check_level(level)
    return float(ndtri((1 + level) / 2))


def student_quantile(level: float, degrees: int) -> float:
    """The same of Student's distribution, with at least one degree of freedom."""
    from scipy.special import stdtrit  # noqa: PLC0415  0.1 s to import

    _check_level(level)
    return float(stdtrit(max(degrees, 1), (1 + level) / 2))


def or_null(number: float) -> float | None:
    """For JSON, which has neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def _score_bounds(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Where the score test of a proportion turns: (low, high) within [0, 1]."""
    squared = quantile**2
    centre = (rate + squared / (2 * n)) / (1 + squared / n)
    half = quantile / (1 + squared / n) * math.sqrt(rate * (1 - rate) / n + squared / (4 * n * n))
    low = 0.0 if rate == 0 else max(centre - half, 0.0)
    return low, 1.0 if rate == 1 else min(centre + half, 1.0)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"confidence level {level}; give a share between 0 and 1, such as 0.95")
