"""Success against the minutes that a task takes people: METR's time horizon.

Owns the weighted logistic fit and its bootstrap (Kwa et al. 2025, arXiv:2503.14499). A horizon in turns is
horizon.py's business."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentgym.errors import ConfigError
from agentgym.evaluation.intervals import Array, is_number, or_null
from agentgym.ledger import Episode

CELLS = 600_000  # weights that are fitted at once: a few megabytes
REGULARISATION = 100.0  # C of METR's fit: the inverse strength of the penalty on the slope


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a task with known human minutes."""

    family: str
    task: str
    minutes: float
    success: bool


@dataclass(frozen=True, slots=True)
class Minutes:
    """Task lengths at which success crosses a level, in people's minutes; each with its 95 % interval."""

    p50: float  # 0 and inf where success is on one side of the level at every length, or does not fall with it
    p50_interval: tuple[float, float]
    p80: float
    p80_interval: tuple[float, float]
    num_runs: int
    num_tasks: int
    num_families: int

    def as_json(self) -> dict[str, Any]:
        """For summary.json, where infinity is null."""
        return {
            "p50_minutes": or_null(self.p50), "p50_interval": [*map(or_null, self.p50_interval)],
            "p80_minutes": or_null(self.p80), "p80_interval": [*map(or_null, self.p80_interval)],
            "num_runs": self.num_runs, "num_tasks": self.num_tasks, "num_families": self.num_families,
        }  # fmt: skip


def time_horizon(
    runs: Sequence[Run], weights: Sequence[float] | None = None, draws: int = 1000, seed: int = 0
) -> Minutes:
    """p50 and p80 of the fit, with percentile intervals of a bootstrap of families, of their tasks and of the runs on
    these: few families make it wide, whatever the runs. weights: one per run, else those of `invsqrt_task_weights`.
    Raises ConfigError."""
    if not runs or min(run.minutes for run in runs) <= 0:
        raise ConfigError("a time horizon needs runs, on tasks that take people more than 0 minutes")
    w = invsqrt_task_weights(runs).tolist() if weights is None else weights
    kinds = Counter(sorted((r.family, r.task, r.minutes, r.success, each) for r, each in zip(runs, w, strict=True)))
    minutes, y, each = np.array([kind[2:] for kind in kinds], dtype=np.float64).T
    x, random = np.log2(minutes), np.random.default_rng(seed)
    fits = np.vstack([fit_logistic(x, y, times * each) for times in _resampled(kinds, draws, random)])
    p50, p80 = (_crossing(fits, level) for level in (0.5, 0.8))
    # order statistics, since an infinite value has no place between two others
    ends = np.quantile([p50[1:], p80[1:]], (0.025, 0.975), axis=1, method="nearest")
    (low50, low80), (high50, high80) = ends.tolist()
    return Minutes(
        float(p50[0]), (low50, high50), float(p80[0]), (low80, high80), len(runs),
        len({(run.family, run.task) for run in runs}), len({run.family for run in runs}),
    )  # fmt: skip


def runs_of(episodes: Iterable[Episode]) -> list[Run]:
    """The attempts that count, on tasks whose metadata name `human_minutes`. Their family is that of the metadata, or
    else the task itself."""
    told = [(e, e.metadata.get("human_minutes")) for e in episodes if e.counts]
    return [
        Run(str(e.metadata.get("family", e.task_id)), e.task_id, float(minutes), e.success)
        for e, minutes in told
        if is_number(minutes) and minutes > 0
    ]


def invsqrt_task_weights(runs: Sequence[Run]) -> Array:
    """[n] weights that sum to 1: a task counts once however often it ran, a family as the root of its tasks."""
    attempts = Counter((run.family, run.task) for run in runs)
    tasks = Counter(family for family, _ in attempts)
    weights = np.array([1 / attempts[run.family, run.task] / math.sqrt(tasks[run.family]) for run in runs])
    return weights / weights.sum()


def fit_logistic(x: Array, y: Array, weights: Array, c: float = REGULARISATION) -> Array:
    """Logistic regressions of y on x by Newton's method, one per row of weights: the minima of
    sum_i w_i loss_i + slope^2 / (2 c), the intercept free. x, y [n], weights [k, n] -> [k, 2] intercept and slope.
    A row whose weighted y are all equal has no minimum: its intercept is infinite and its slope 0."""
    fits = np.zeros((len(weights), 2))
    won, lost = weights @ y > 0, weights @ (1 - y) > 0
    open_rows = won & lost
    fits[:, 0] = np.where(won, np.inf, -np.inf)
    w, beta = weights[open_rows], np.zeros((int(open_rows.sum()), 2))
    design = np.stack([np.ones_like(x), x], axis=1)
    squares, penalty = (design[:, :, None] * design[:, None]).reshape(-1, 4), np.diag([0.0, 1.0 / c])

    def at(beta: Array) -> tuple[Array, Array]:
        """The losses, and the chances of success."""
        z = beta @ design.T
        soft = np.logaddexp(0, z)
        return (w * (soft - y * z)).sum(axis=1) + (beta[:, 1] ** 2) / (2 * c), np.exp(z - soft)

    loss, p = at(beta)
    for _ in range(100):
        gradient = (w * (p - y)) @ design + beta @ penalty
        hessian = ((w * p * (1 - p)) @ squares).reshape(-1, 2, 2) + penalty
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        size, before = np.ones(len(beta)), loss
        for _ in range(30):  # halve the steps that overshoot
            loss, p = at(beta - size[:, None] * step)
            worse = loss > before * (1 + 1e-12)
            if not worse.any():
                break
            size[worse] /= 2
        beta = beta - size[:, None] * step
        if not len(beta) or (np.abs(step) < 1e-8 * (1 + np.abs(beta))).all():
            break  # the next step would be its square
    fits[open_rows] = beta
    return fits


def _crossing(fits: Array, level: float) -> Array:
    """Minutes at which each fit crosses the level."""
    above = math.log(level / (1 - level))
    intercept, slope = fits.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        minutes = np.exp2((above - intercept) / slope)
    return np.where(slope < 0, minutes, np.where(intercept >= above, np.inf, 0.0))


def _resampled(kinds: Mapping[tuple, int], draws: int, random: np.random.Generator) -> Iterator[Array]:
    """[.., kinds] how often runs of each kind occur: as they are, then in every draw of families, of each the tasks, of
    each the runs, with replacement. kinds: (family, task, …), sorted -> runs that are alike in all of it."""
    yield np.array([[*kinds.values()]], dtype=np.float64)
    tree: dict[str, dict[str, dict[tuple, int]]] = {}
    for kind, num_runs in kinds.items():
        tree.setdefault(kind[0], {}).setdefault(kind[1], {})[kind] = num_runs
    for once in np.array_split(np.ones(draws, dtype=np.int64), -(-draws * len(kinds) // CELLS)):
        yield np.array(_drawn(tree, once, random), dtype=np.float64).T


def _drawn(tree: Mapping[Any, Any], times: Any, random: np.random.Generator) -> list[Any]:
    """How often each leaf of a tree is drawn, where its branch is drawn `times` [draws], each time as often as it has
    members: a leaf stands for its number of them."""
    sizes = [branch if isinstance(branch, int) else 1 for branch in tree.values()]
    all_times = times * sum(sizes)
    drawn = random.multinomial(all_times, np.array(sizes) / sum(sizes)).T if len(sizes) > 1 else [all_times]
    leaves = []
    for branch, often in zip(tree.values(), drawn, strict=True):
        leaves += [often] if isinstance(branch, int) else _drawn(branch, often, random)
    return leaves
