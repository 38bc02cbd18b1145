"""Do 95 % intervals hold the truth 95 times in a hundred, and are verdicts on simulated agents right?

Each row repeats one experiment whose truth is known, with the sizes it states, and counts the intervals that hold it.
92 to 98 % is asked for; a row outside is told with its reason. Then agents whose errors come at a constant rate, at
rates that differ between tasks, at a falling rate, or in the wake of other errors, and what is said of them.

example: python benchmarks/coverage.py --experiments 500 --draws 200
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.random import Generator

from agentgym.evaluation.compare import paired_difference
from agentgym.evaluation.conditioning import SHARES, conditioned
from agentgym.evaluation.hazard import hazard
from agentgym.evaluation.horizon import Point, effective_n, half_horizon
from agentgym.evaluation.intervals import cluster_wilson, mean_interval, wilson
from agentgym.evaluation.passes import passes
from agentgym.evaluation.survival import FirstError, kaplan_meier

RESULTS = Path(__file__).parent / "results" / "coverage.json"
ASKED = (0.92, 0.98)
CAP = 64  # steps for which simulated agents are watched
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One experiment: draw(rng) gives the bounds of an interval."""

    name: str
    sizes: str
    truth: float
    draw: Callable[[Generator], Bounds]
    why: str = ""  # what to say where it falls short


def tasks_of(values: np.ndarray) -> dict[str, list[Any]]:
    return {str(i): row.tolist() for i, row in enumerate(values)}


def rate_rows() -> list[Row]:
    """Rates, means, differences, passes. Success of a task is Beta(2, 2): tasks are of all sorts."""

    def clustered(rng: Generator, n: int, k: int) -> np.ndarray:
        return rng.random((n, k)) < rng.beta(2, 2, n)[:, None]

    def bounds(found: Any) -> Bounds:
        return found.low, found.high

    def paired(rng: Generator, n: int, k: int) -> Bounds:
        rate = rng.beta(2, 2, n)[:, None]
        a, b = rng.random((n, k)) < rate, rng.random((n, k)) < rate + 0.2 * (1 - rate)
        return bounds(paired_difference([(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)]))

    def reward(rng: Generator, n: int, k: int) -> Bounds:
        return bounds(mean_interval(tasks_of(rng.normal(rng.normal(0, 1, n)[:, None], 1, (n, k)))))

    def at_k(rng: Generator, n: int, k: int, name: str) -> Bounds:
        return bounds(getattr(passes(tasks_of(clustered(rng, n, k)))[3], name))

    made = [
        Row("Wilson", f"n = {n}, k = 1", p, lambda rng, n=n, p=p: bounds(wilson(int(rng.binomial(n, p)), n)))
        for n, p in ((50, 0.1), (100, 0.5), (200, 0.95))
    ]
    for n, k in ((20, 4), (40, 8), (200, 2)):
        sizes = f"n = {n}, k = {k}"
        made += [
            Row("cluster", sizes, 0.5, lambda rng, n=n, k=k: bounds(cluster_wilson(tasks_of(clustered(rng, n, k))))),
            Row("mean reward", sizes, 0.0, lambda rng, n=n, k=k: reward(rng, n, k)),
            Row("paired difference", sizes, 0.1, lambda rng, n=n, k=k: paired(rng, n, k)),
        ]
    for n, k in ((20, 8), (100, 8)):  # the fourth moment of Beta(2, 2) is 2·3·4·5 / (4·5·6·7) = 1/7
        sizes = f"n = {n}, k = {k}"
        made += [
            Row("pass@4", sizes, 6 / 7, lambda rng, n=n, k=k: at_k(rng, n, k, "at_least_one")),
            Row("pass^4", sizes, 1 / 7, lambda rng, n=n, k=k: at_k(rng, n, k, "all")),
        ]
    return made


def errors_of(rng: Generator, rates: np.ndarray, attempts: int, shape: float = 1.0) -> list[FirstError]:
    """First errors of agents that survive k steps with chance exp(-rate · k^shape)."""
    waits = rng.exponential(size=(len(rates), attempts)) / rates[:, None]
    steps = np.minimum(np.ceil(waits ** (1 / shape)), CAP + 1).astype(int)
    return [FirstError(str(i), min(k, CAP), k <= CAP) for i, row in enumerate(steps.tolist()) for k in row]


def horizon_rows() -> list[Row]:
    """H50 and H80 of an agent that is right with chance p at every step: ln s / ln p; and shares at one step."""

    def by_curve(rng: Generator, horizons: Sequence[int], n: int, p: float, level: float) -> Bounds:
        points = [Point(k, wilson(int(rng.binomial(n, p**k)), n)) for k in horizons]
        return ends(half_horizon(points, level, seed=int(rng.integers(2**31))))

    def by_tasks(rng: Generator, horizons: Sequence[int], n: int, k: int, spread: float, median: float) -> Bounds:
        points = []
        for horizon in horizons:  # rates of errors are lognormal over tasks
            alive = np.exp(-horizon * np.exp(rng.normal(math.log(median), spread, n)))
            outcomes = tasks_of(rng.random((n, k)) < alive[:, None])
            points.append(Point(horizon, cluster_wilson(outcomes), effective_n=effective_n(outcomes)))
        return ends(half_horizon(points, seed=int(rng.integers(2**31))))

    def by_errors(rng: Generator, n: int, k: int, spread: float, median: float, level: float) -> Bounds:
        rates = np.exp(rng.normal(math.log(median), spread, n))
        return ends(kaplan_meier(errors_of(rng, rates, k)).horizon(level))

    def band(rng: Generator, n: int, k: int, spread: float, median: float, step: int) -> Bounds:
        found = kaplan_meier(errors_of(rng, np.exp(rng.normal(math.log(median), spread, n)), k))
        at = int(found.steps.searchsorted(step, side="right")) - 1
        return float(found.low[at]), float(found.high[at])

    def ends(found: Any) -> Bounds:
        return found.low, math.inf if found.high_at_least else found.high

    even = 0.0834  # -ln 0.92, or the median of such rates: H50 = 8.3
    p, mixed = math.exp(-even), _mixed_half(1.0, even)
    doubling, dense = (1, 2, 4, 8, 16, 32), tuple(range(1, 21, 2))
    made = []
    for name, level in (("H50", 0.5), ("H80", 0.8)):
        truth = math.log(level) / -even
        made += [
            Row(
                f"{name}, success curve", f"horizons 1 to {max(horizons)}, n = 40, k = 1", truth,
                lambda rng, horizons=horizons, level=level: by_curve(rng, horizons, 40, p, level),
            )
            for horizons in (doubling, dense)
        ]  # fmt: skip
        by = lambda rng, level=level: by_errors(rng, 90, 1, 0.0, even, level)  # noqa: E731
        made.append(Row(f"{name}, Kaplan-Meier", "n = 90, k = 1", truth, by))
    coarse = Row(
        "H50, success curve", "horizons 1, 8, 64, n = 40, k = 1", math.log(0.5) / math.log(0.8),
        lambda rng: by_curve(rng, (1, 8, 64), 40, 0.8, 0.5),
        why="between horizons a factor of 8 apart the curve is a guess; H50 is printed with that warning above 2",
    )  # fmt: skip
    made.append(coarse)
    for n in (20, 40):
        curve = lambda rng, n=n: by_tasks(rng, doubling, n, 4, 1.0, even)  # noqa: E731
        first = lambda rng, n=n: by_errors(rng, n, 4, 1.0, even, 0.5)  # noqa: E731
        made.append(Row("H50, success curve", f"horizons 1 to 32, n = {n}, k = 4", mixed, curve))
        made.append(Row("H50, Kaplan-Meier", f"n = {n}, k = 4", mixed, first))
    for step, share in ((8, 0.92), (1, 0.08)):  # one draw in five has no error, or nothing but errors
        rate = -math.log(share) / step
        at = lambda rng, step=step, rate=rate: band(rng, 20, 1, 0.0, rate, step)  # noqa: E731
        why = "20 tasks give 21 bands: what they hold moves in steps"
        made.append(Row("share, Kaplan-Meier", f"step {step}, n = 20, k = 1", share, at, why))
    alone = Row(
        "share, Kaplan-Meier", "step 8, n = 1, k = 8", _alive(8, 1.0, even), lambda rng: band(rng, 1, 8, 1.0, even, 8),
        why="one task tells nothing of the others: its band is all of [0, 1]",
    )  # fmt: skip
    return [*made, alone]


def _alive(step: float, spread: float, median: float) -> float:
    """The share of all attempts without an error, where rates are lognormal over tasks; by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights / weights.sum() @ np.exp(-median * np.exp(spread * nodes) * step))


def _mixed_half(spread: float, median: float) -> float:
    """The step at which half of them are."""
    low, high = 0.1, 1000.0
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _alive(middle, spread, median) > 0.5 else (low, middle)
    return low


AGENTS = {  # verdicts that are right: of the hazard, of planted errors; and the shape within a task
    "constant": ("constant", "none seen", 1.0),
    "tasks that differ": ("only a mixture", "none seen", 1.0),
    "falling": ("falling", "none seen", 0.55),
    "falling, tasks that differ": ("falling", "none seen", 0.55),
    "errors breed errors": ("constant", "errors breed errors", 1.0),  # strict success never sees a second error
}
NUM_TASKS, NUM_ATTEMPTS, NUM_PLANTED = 40, 8, 100


def agent(name: str, rng: Generator) -> tuple[Any, Any]:
    """What is said of one draw of an agent: of its first errors, and of its steps after planted ones."""
    shape = AGENTS[name][2]
    centre = {"tasks that differ": 0.04, "falling": 0.25, "falling, tasks that differ": 0.25}.get(name, 0.05)
    spread = {"tasks that differ": 1.3, "falling, tasks that differ": 0.7}.get(name, 0.0)
    rates = np.exp(rng.normal(math.log(centre), spread, NUM_TASKS))
    errors = errors_of(rng, rates, NUM_ATTEMPTS, shape)
    wrong = np.exp(rng.normal(math.log(0.05), spread, NUM_PLANTED)).clip(0, 1)[:, None]
    worse = 1 + 9 * np.array(SHARES) * (name == "errors breed errors")  # ten times as many where all before is wrong
    right = rng.random((NUM_PLANTED, len(SHARES))) >= wrong * worse
    return hazard(errors), conditioned(tasks_of(right), SHARES, history=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--draws", type=int, default=200, help="of each simulated agent")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = perf_counter()
    covered = [coverage(row, args.experiments, args.seed + i) for i, row in enumerate(rate_rows() + horizon_rows())]
    agents = [verdicts(name, args.draws, args.seed) for name in AGENTS]
    found = {
        "experiments": args.experiments, "draws": args.draws, "seed": args.seed, "coverage": covered, "agents": agents,
        "python": platform.python_version(), "numpy": np.__version__, "seconds": perf_counter() - began,
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    short = [row for row in covered if not ASKED[0] <= row["covered"] <= ASKED[1]]
    wrong = [row for row in agents if min(row["hazard_right"], row["planted_right"]) < 0.95]
    print(
        f"{len(covered) - len(short)} of {len(covered)} intervals cover {100 * ASKED[0]:.0f} to "
        f"{100 * ASKED[1]:.0f} %, "
        f"{len(agents) - len(wrong)} of {len(agents)} agents are judged right in 95 % of {args.draws} draws; "
        f"{found['seconds']:.0f} s, {RESULTS.name}"
    )


def coverage(row: Row, experiments: int, seed: int) -> dict[str, Any]:
    """Run one row and print it."""
    rng = np.random.default_rng(seed)
    bounds = [row.draw(rng) for _ in range(experiments)]
    share = sum(low <= row.truth <= high for low, high in bounds) / experiments
    width = float(np.median([high - low for low, high in bounds]))
    is_short = not ASKED[0] <= share <= ASKED[1]
    said = f"  <- {row.why or 'outside what is asked for'}" if is_short else ""
    print(
        f"{row.name:<24}{row.sizes:<36}truth {row.truth:>6.3f}  covered {100 * share:5.1f} %  width {width:6.3f}{said}"
    )
    return {"name": row.name, "sizes": row.sizes, "truth": row.truth, "covered": share, "width": width}


def verdicts(name: str, draws: int, seed: int) -> dict[str, Any]:
    """Judge one agent over and over, and print it."""
    rng = np.random.default_rng(seed)
    said = [agent(name, rng) for _ in range(draws)]
    right, planted, shape = AGENTS[name]
    first = Counter(found.verdict for found, _ in said)
    after = Counter(found.verdict for _, found in said)
    within = [found.within for found, _ in said if found.within is not None]
    pooled = float(np.mean([found.pooled.value for found, _ in said if found.pooled is not None]))
    value = float(np.mean([each.value for each in within]))
    held = sum(each.low <= shape <= each.high for each in within) / len(within)
    print(
        f"agent: {name:<28}hazard {right!r} in {100 * first[right] / draws:.1f} %, planted errors {planted!r} in "
        f"{100 * after[planted] / draws:.1f} %; shape pooled {pooled:.2f}, within a task {value:.2f} (truth {shape:g}, "
        f"covered {100 * held:.0f} %); {NUM_TASKS} tasks x {NUM_ATTEMPTS}, {NUM_PLANTED} x {len(SHARES)} planted"
    )
    return {
        "name": name, "hazard_right": first[right] / draws, "planted_right": after[planted] / draws,
        "hazard": dict(first), "planted": dict(after), "pooled": pooled, "within": value, "truth": shape,
        "within_covered": held,
    }  # fmt: skip


if __name__ == "__main__":
    main()
