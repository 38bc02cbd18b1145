"""Reliability over repeated attempts: pass@k, that one of k succeeds, and pass^k, that all k do.

Owns these two estimators. The interval of their mean over tasks is intervals.py's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentgym.evaluation.intervals import Array, Interval, unit_mean


@dataclass(frozen=True, slots=True)
class Passes:
    """Both rates at one k, each a mean over tasks with at least k scored attempts."""

    k: int
    at_least_one: Interval  # pass@k; its n are the attempts of those tasks
    all: Interval  # pass^k
    left_out: int  # tasks with fewer scored attempts than k: in no denominator

    def as_json(self) -> dict[str, Any]:
        """For summary.json: `pass@k` and `pass^k` with their bounds, and the denominator in tasks."""
        both = ("pass@k", self.at_least_one), ("pass^k", self.all)
        rates = {name: {"rate": of.mean, "low": of.low, "high": of.high} for name, of in both}
        return {"k": self.k, **rates, "num_tasks": self.all.num_tasks, "num_left_out": self.left_out}


def pass_at_k(n: int, c: int) -> Array:
    """[n] float64: for k = 1 to n the chance that k of n attempts, drawn without replacement, hold at least one of the
    c successes: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""
    return 1.0 - pass_hat_k(n, n - c)


def pass_hat_k(n: int, c: int) -> Array:
    """[n] float64: for k = 1 to n the chance that all of k are successes: C(c, k) / C(n, k) (Yao et al. 2024,
    arXiv:2406.12045)."""
    drawn = np.arange(n, dtype=np.float64)
    return np.cumprod(np.maximum(c - drawn, 0) / (n - drawn), dtype=np.float64)


def passes(outcomes: Mapping[str, Sequence[bool]]) -> list[Passes]:
    """Both rates for k = 1 to the most attempts that a task has. outcomes: task id -> success per scored attempt; a
    task without any is left out of every k."""
    rates = [(pass_at_k(len(won), sum(won)), pass_hat_k(len(won), sum(won))) for won in outcomes.values()]
    return [_at(k, rates) for k in range(1, max((len(each) for each, _ in rates), default=0) + 1)]


def _at(k: int, rates: Sequence[tuple[Array, Array]]) -> Passes:
    """Of one number per task. A task is worth at most as many attempts as it has disjoint sets of k."""
    kept = [pair for pair in rates if len(pair[0]) >= k]
    n, num_tasks = sum(len(each) for each, _ in kept), len(kept)
    values = np.array([(each[k - 1], every[k - 1]) for each, every in kept])
    at_least_one, every = (
        replace(unit_mean(mean, variance / num_tasks, max(n // k, num_tasks), num_tasks), n=n)
        for mean, variance in zip(values.mean(0).tolist(), values.var(0).tolist(), strict=True)
    )
    return Passes(k, at_least_one, every, len(rates) - num_tasks)
