"""Does the chance of the next error fall with every step survived, or do some tasks merely have more errors?

Owns the Weibull shape of first-error times, pooled and within instance, and the verdict. Where first-error times come
from is survival.py. A shape below 1 is a falling hazard, 1 a constant one, above 1 a rising one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from agentgym.evaluation.intervals import Array
from agentgym.evaluation.survival import FirstError

Verdict = Literal["constant", "falling", "rising", "only a mixture", "cannot tell"]
CONSTANT = (2 / 3, 3 / 2)  # an interval must lie in here before a shape is called constant
SURE = 0.99  # level of the intervals behind a verdict, so that fewer than one in twenty is wrong
MIN_ERRORS = 10  # and as many tasks with several attempts: below, nothing is estimated
SHAPES = (0.1, 8.0)  # where a shape is looked for


@dataclass(frozen=True, slots=True)
class Shape:
    """A Weibull shape with its 95 % interval, and the wider one that the verdict uses."""

    value: float
    low: float
    high: float
    sure: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Hazard:
    """What first-error times say of the rate of errors. A shape is None where there is too little to estimate it."""

    pooled: Shape | None
    within: Shape | None
    verdict: Verdict
    why: str
    num_tasks: int
    num_errors: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def hazard(errors: Sequence[FirstError]) -> Hazard:
    """Both shapes and what they come to. Attempts of one `task_id` are repeats of one instance."""
    times = _Times(errors)
    enough = times.num_errors >= MIN_ERRORS and times.num_tasks > 1 and times.num_steps > 1
    pooled = _pooled(times) if enough else None
    within = _within(times) if enough and times.num_repeated >= MIN_ERRORS else None
    return Hazard(pooled, within, *_verdict(pooled, within, times), times.num_tasks, times.num_errors)


def _verdict(pooled: Shape | None, within: Shape | None, times: _Times) -> tuple[Verdict, str]:
    if pooled is None:
        found = f"{times.num_errors} errors on {times.num_tasks} tasks, at {times.num_steps} different steps"
        return "cannot tell", f"{found}; {MIN_ERRORS} at least are needed, on two tasks and at two steps"
    if within is None:
        if pooled.sure[0] > 1:
            return "rising", "tasks that differ can only hide a rise"
        found = f"{times.num_repeated} tasks have several attempts, {MIN_ERRORS} at least are needed"
        return "cannot tell", f"{found}: tasks that differ look like a falling hazard"
    low, high = within.sure
    if high < 1:
        return "falling", "within a task, every step survived makes the next one safer"
    if low > 1:
        return "rising", "within a task, every step survived makes the next one riskier"
    if low < CONSTANT[0] or high > CONSTANT[1]:
        return "cannot tell", f"the shape within a task may be {low:.2f} or {high:.2f}: more tasks are needed"
    if pooled.sure[1] < 1:
        return "only a mixture", "tasks differ in their rate of errors; within a task it does not fall"
    return "constant", "the rate of errors is the same at every step"


class _Times:
    """First-error times as arrays, an attempt each: free of errors through `before`, the error within `steps` more."""

    def __init__(self, errors: Sequence[FirstError]) -> None:
        step = np.array([e.step for e in errors], dtype=np.float64)
        self.seen = np.array([e.seen for e in errors], dtype=bool)
        self.before, self.after = step - self.seen, step
        names, self.task = np.unique([e.task_id for e in errors], return_inverse=True)
        self.num_tasks, self.num_errors = len(names), int(self.seen.sum())
        self.num_steps = len(set(step[self.seen].tolist()))  # at which there were errors
        self.num_repeated = int((np.bincount(self.task, minlength=1) > 1).sum())

    def loglik(self, shape: float, log_rates: Array) -> Array:
        """Log-likelihood of each task's attempts together, for each rate: [tasks, rates].

        P(T > k) = exp(-rate · k^shape): the discrete Weibull law (Nakagawa & Osaki 1975), geometric where shape is 1.
        """
        rates = np.exp(log_rates)
        each = -(self.before**shape)[:, None] * rates
        width = (self.after**shape - self.before**shape)[self.seen, None] * rates
        each[self.seen] += np.log(-np.expm1(-np.maximum(width, 1e-300)))
        total = np.zeros((self.num_tasks, len(rates)))
        np.add.at(total, self.task, each)
        return total


def _pooled(times: _Times) -> Shape:
    """One rate for all tasks; the interval is the sandwich with tasks as clusters (Liang & Zeger 1986)."""
    from scipy.optimize import minimize  # noqa: PLC0415  0.4 s to import

    def loglik(at: Array) -> Array:
        return times.loglik(math.exp(at[0]), at[1:])[:, 0]

    start = np.array([0.0, math.log(times.num_errors / times.after.sum())])
    top = minimize(lambda at: -loglik(at).sum(), start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-8}).x
    steps = np.eye(2) * 1e-4

    def scores(at: Array) -> Array:
        return np.stack([(loglik(at + step) - loglik(at - step)) / 2e-4 for step in steps], axis=1)

    curvature = np.stack([(scores(top + step) - scores(top - step)).sum(0) / 2e-4 for step in steps])
    bread, tasks = np.linalg.pinv(curvature), times.num_tasks
    error = math.sqrt((bread @ (scores(top).T @ scores(top)) @ bread)[0, 0] * tasks / (tasks - 1))
    bounds = [math.exp(top[0] + z * error) for z in (-1.959964, 1.959964, -2.575829, 2.575829)]
    return Shape(math.exp(top[0]), bounds[0], bounds[1], (bounds[2], bounds[3]))


def _within(times: _Times) -> Shape:
    """One shape, and rates that differ between tasks in any way at all: their distribution is estimated by maximum
    likelihood too, as weights on a grid (Heckman & Singer 1984). Intervals by the profile likelihood ratio."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415  0.4 s to import

    def profile(log_shape: float) -> float:
        return _mixed(times, math.exp(log_shape))

    ends = math.log(SHAPES[0]), math.log(SHAPES[1])
    best: Any = minimize_scalar(lambda x: -profile(x), bounds=ends, method="bounded", options={"xatol": 1e-3})
    low, high, *sure = (
        math.exp(_where(profile, -best.fun - drop, best.x, end))
        for drop in (1.920729, 3.317448)  # half of χ²'s 95 % and 99 % points with one degree of freedom
        for end in ends
    )
    return Shape(math.exp(best.x), low, high, (sure[0], sure[1]))


def _where(profile: Callable[[float], float], level: float, inside: float, outside: float) -> float:
    """Where the profile falls to `level` between its top and an end; that end where it does not."""
    from scipy.optimize import brentq  # noqa: PLC0415  0.4 s to import

    if profile(outside) > level:
        return outside
    return float(brentq(lambda x: profile(x) - level, *sorted((inside, outside)), xtol=2e-3))  # type: ignore[arg-type]


def _mixed(times: _Times, shape: float, num_rates: int = 50, rounds: int = 150) -> float:
    """Log-likelihood under the best distribution of rates, found by expectation-maximisation from equal weights."""
    reach = shape * math.log(20 * times.after.max())  # from rates that nobody meets to those that fail at once
    loglik = times.loglik(shape, np.linspace(-reach, math.log(5), num_rates))
    top = loglik.max(1, keepdims=True)
    likelihood = np.exp(loglik - top)
    weights = np.full(num_rates, 1 / num_rates)
    for _ in range(rounds):
        weights = weights * (likelihood / (likelihood @ weights)[:, None]).mean(0)
    return float((np.log(likelihood @ weights) + top[:, 0]).sum())
