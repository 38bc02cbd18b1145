"""How sure a rate or a mean is: intervals for independent attempts and for attempts clustered in tasks.

Owns the statistics of one mean. Which episodes belong in its denominator is `Episode.counts`; two runs beside one
another are compare.py's business, success against task length horizon.py's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from agentgym.errors import ConfigError
from agentgym.ledger import Episode

Array = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over attempts, its denominator and its confidence interval; of successes, their rate."""

    mean: float  # NaN where nothing was scored
    low: float  # -inf and inf where a single task says nothing of how tasks differ, and nothing bounds the values
    high: float
    n: int  # scored attempts: the denominator
    num_tasks: int
    successes: int | None = None  # None where the values are no successes

    @property
    def rate(self) -> float:
        return self.mean

    def __str__(self) -> str:
        if not self.n:
            return "none scored"
        if self.successes is None:
            return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n}, {self.num_tasks} tasks)"
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"

    def as_json(self) -> dict[str, Any]:
        """For summary.json, where what is not known is null."""
        bounds = {"low": or_null(self.low), "high": or_null(self.high), "n": self.n}
        if self.successes is None:
            return {"mean": or_null(self.mean), **bounds, "num_tasks": self.num_tasks}
        return {"rate": or_null(self.rate), **bounds, "successes": self.successes}


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for independent attempts (Wilson 1927; Brown, Cai & DasGupta 2001 on why not Wald).
    n = 0 knows nothing: rate NaN, interval [0, 1]."""
    if not 0 <= successes <= n:
        raise ConfigError(f"{successes} successes of {n} attempts; give 0 <= successes <= n")
    bounds = score_bounds(successes / n, n, quantile(level)) if n else (0.0, 1.0)
    return Interval(successes / n if n else math.nan, *bounds, n, n, successes)


def cluster_wilson(outcomes: Mapping[str, Sequence[bool]], level: float = 0.95) -> Interval:
    """Success over attempts that are clustered in tasks: `mean_interval` of 0 and 1, or where no task has several
    attempts Wilson's own. outcomes: task id -> success per attempt."""
    successes = sum(sum(map(bool, attempts)) for attempts in outcomes.values())
    if all(len(attempts) < 2 for attempts in outcomes.values()):
        return wilson(successes, sum(map(len, outcomes.values())), level)
    return replace(mean_interval(outcomes, level, within_unit=True), successes=successes)


def mean_interval(values: Mapping[str, Sequence[float]], level: float = 0.95, *, within_unit: bool = False) -> Interval:
    """The mean over all attempts. values: task id -> one number per attempt; a task without any is passed over.

    Attempts on one task resemble each other, so the variance is that of G tasks, G/(G - 1) of their squared sums of
    residuals (Liang & Zeger 1986), and the quantile Student's with G - 1 degrees of freedom. Near a bound that covers
    too seldom, and equal values look certain: `within_unit` is for values that cannot leave [0, 1], such as rewards,
    and gives `unit_mean` of them. Raises ConfigError where one does."""
    sizes = np.array([len(attempts) for attempts in values.values() if len(attempts)], dtype=np.int64)
    flat = np.array([value for attempts in values.values() for value in attempts], dtype=np.float64)
    n, num_tasks = len(flat), len(sizes)
    if not n:
        return Interval(math.nan, *((0.0, 1.0) if within_unit else (-math.inf, math.inf)), 0, 0)
    mean = float(flat.mean())
    residuals = np.add.reduceat(flat - mean, np.cumsum(sizes) - sizes)
    variance = float(residuals @ residuals) / n**2
    if within_unit:
        if not (flat.min() >= 0 and flat.max() <= 1):
            raise ConfigError(f"values from {flat.min():g} to {flat.max():g} leave [0, 1]; leave within_unit out")
        return unit_mean(mean, variance, n, num_tasks, level)
    half = math.inf
    if num_tasks > 1:
        half = quantile(level, num_tasks - 1) * math.sqrt(variance * num_tasks / (num_tasks - 1))
    return Interval(mean, mean - half, mean + half, n, num_tasks)


def unit_mean(mean: float, variance: float, n: int, num_tasks: int, level: float = 0.95) -> Interval:
    """Wilson's interval for a mean within [0, 1], with the attempts it is worth in place of n (after Korn & Graubard
    1998, and Franco et al. 2019 on clustered proportions). variance: of the mean, without the factor G/(G - 1).

    A mean m is worth m(1 - m) / variance attempts, at most n; at 0 or 1 it is worth one for each task, since tasks that
    all agree say nothing of the others. The quantile is Student's with a degree of freedom less than tasks; at 0 or 1,
    and with one 0 or 1 per task, it is Wilson's own. With 5 to 100 tasks x 2 to 8 attempts this covered 91 to 99 %
    where a percentile bootstrap of the tasks covered 33 to 96 %."""
    mean = min(max(mean, 0.0), 1.0)  # rounding
    spread = mean * (1 - mean)
    if spread <= 0:
        worth, z = float(num_tasks), quantile(level)
    else:
        worth = min(float(n), spread / variance) if variance > 0 else float(n)
        single = n == num_tasks and math.isclose(worth, n, rel_tol=1e-9)
        z = quantile(level, None if single else num_tasks - 1)
    return Interval(mean, *score_bounds(mean, worth, z), n, num_tasks)


def success_interval(episodes: Iterable[Episode]) -> Interval:
    """The success rate of the episodes that count: Wilson's interval with one attempt per task, clusters with more."""
    return cluster_wilson(by_task(episodes, lambda episode: episode.success))


def by_task(episodes: Iterable[Episode], value: Callable[[Episode], T]) -> dict[str, list[T]]:
    """Task -> a value of each of its attempts that count."""
    found: dict[str, list[T]] = {}
    for episode in episodes:
        if episode.counts:
            found.setdefault(episode.task_id, []).append(value(episode))
    return found


def quantile(level: float, degrees: int | None = None) -> float:
    """How many standard deviations either side hold `level` of a normal distribution, 1.96 for 0.95; or of Student's
    with so many degrees of freedom, at least one."""
    from scipy.special import ndtri, stdtrit  # noqa: PLC0415  0.1 s to import

    if not 0 < level < 1:
        raise ConfigError(f"confidence level {level}; give a share between 0 and 1, such as 0.95")
    below = (1 + level) / 2
    return float(ndtri(below) if degrees is None else stdtrit(max(degrees, 1), below))


def or_null(number: float) -> float | None:
    """For JSON, which has neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def is_number(said: Any) -> TypeGuard[float]:
    """Whether what an environment or a model said is a number that a float can hold."""
    return isinstance(said, int | float) and not isinstance(said, bool) and abs(said) < 1e300


def score_bounds(rate: float, n: float, z: float) -> tuple[float, float]:
    """Where the score test of a proportion turns at z standard deviations: (low, high) within [0, 1]."""
    squared = z**2
    centre = (rate + squared / (2 * n)) / (1 + squared / n)
    half = z / (1 + squared / n) * math.sqrt(rate * (1 - rate) / n + squared / (4 * n * n))
    low = 0.0 if rate == 0 else max(centre - half, 0.0)
    return low, 1.0 if rate == 1 else min(centre + half, 1.0)
