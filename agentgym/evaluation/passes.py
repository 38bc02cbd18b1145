"""Reliability over repeated attempts: pass@k, that one of k succeeds, and pass^k, that all k do.

Owns these two estimators. The interval of their mean over tasks is intervals.py's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from agentgym.evaluation.intervals import MeanInterval, or_null, unit_mean


@dataclass(frozen=True, slots=True)
class Passes:
    """Both rates at one k, each a mean over tasks with at least k scored attempts."""

    k: int
    at_least_one: MeanInterval  # pass@k; its n are the attempts of those tasks
    all: MeanInterval  # pass^k
    left_out: int  # tasks with fewer scored attempts than k: in no denominator

    def as_json(self) -> dict[str, Any]:
        """For summary.json: `pass@k` and `pass^k` with their bounds, and the denominator in tasks."""
        return {
            "k": self.k,
            "pass@k": _rate(self.at_least_one),
            "pass^k": _rate(self.all),
            "num_tasks": self.at_least_one.num_tasks,
            "num_left_out": self.left_out,
        }


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n attempts, drawn without replacement, hold at least one of the c successes:
    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """The chance that all of k are successes: C(c, k) / C(n, k) (Yao et al. 2024, arXiv:2406.12045)."""
    return comb(c, k) / comb(n, k)


def passes(outcomes: Mapping[str, Sequence[bool]], level: float = 0.95) -> list[Passes]:
    """Both rates for k = 1 to the most attempts that a task has. outcomes: task id -> success per scored attempt."""
    counts = [(len(attempts), sum(map(bool, attempts))) for attempts in outcomes.values()]
    return [_at(k, counts, level) for k in range(1, max((n for n, _ in counts), default=0) + 1)]


def _at(k: int, counts: Sequence[tuple[int, int]], level: float) -> Passes:
    kept = [(n, c) for n, c in counts if n >= k]
    num_attempts = sum(n for n, _ in kept)

    def mean(rates: Sequence[float]) -> MeanInterval:
        """Of one number per task. A task is worth at most as many attempts as it has disjoint sets of k."""
        variance = float(np.var(rates)) / len(rates)
        found = unit_mean(float(np.mean(rates)), variance, max(num_attempts // k, len(rates)), len(rates), level)
        return MeanInterval(found.mean, found.low, found.high, num_attempts, len(rates), level)

    at_least_one = mean([pass_at_k(n, c, k) for n, c in kept])
    return Passes(k, at_least_one, mean([pass_hat_k(n, c, k) for n, c in kept]), len(counts) - len(kept))


def _rate(of: MeanInterval) -> dict[str, float | None]:
    return {"rate": or_null(of.mean), "low": of.low, "high": of.high}
