"""Two runs beside one another: what changed, and whether it is more than chance.

Owns the paired difference, its tests, and what makes two runs incomparable. Tasks are the units: each is paired with
itself, and its attempts are averaged first. The interval of one rate is intervals.py's; reading runs, the caller's."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from agentgym.evaluation.figures import MIN_COVERAGE
from agentgym.evaluation.intervals import Interval, cluster_wilson, or_null, quantile
from agentgym.ledger import Episode
from agentgym.rollout.store import Result, opening

Played = Episode | Result
Attempts = dict[str, list[Any]]  # of one environment and split: episodes, or what their columns say, by task
Places = dict[tuple[str, str], Attempts]  # by environment, without its version, and split
TARGET = 0.02  # the difference that a comparison should have been able to see
POWER = 0.8
LEVEL = 0.95  # of the intervals; a p below 1 - LEVEL is a difference
UNTOLD = opening(())  # of an episode that ended before anybody was told anything


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A, the mean over tasks of the difference of their means, with its interval."""

    a: float  # means over the tasks; NaN where none was scored in both
    b: float
    value: float
    low: float
    high: float
    p: float  # two-sided, for a difference of 0
    num_tasks: int
    num_needed: int | None  # tasks at which a difference of TARGET would be seen with POWER; None for under two tasks

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: or_null(getattr(self, name)) for name in ("a", "b", "value", "low", "high")}, "p": self.p,
            "num_tasks": self.num_tasks, f"tasks_needed_for_{TARGET:g}": self.num_needed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flip:
    """A task on which the rates of success differ, and an attempt of each run that shows it."""

    task_id: str
    a: float
    b: float
    shows_a: tuple[str, int, str, int]  # keys of episodes
    shows_b: tuple[str, int, str, int]

    def as_json(self) -> dict[str, Any]:
        keys = {"episode_a": list(self.shows_a), "episode_b": list(self.shows_b)}
        return {"task_id": self.task_id, "success_a": self.a, "success_b": self.b, **keys}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the tasks of one environment and split that were scored in both."""

    name: str  # of the environment, without its version
    split: str
    a: Interval  # success on those tasks
    b: Interval
    success: Difference
    reward: Difference
    test: str  # what the p of success is from
    flips: tuple[Flip, ...]  # the largest differences first
    coverage_a: float  # share of the episodes on tasks of both runs that could be scored
    coverage_b: float
    num_unpaired: int  # tasks that are missing, or without a scored attempt, in one of the two
    p_holm: float  # p of success, corrected for the comparisons made together

    def verdict(self) -> str:
        """Which is better, as far as this can tell."""
        if not self.success.num_tasks or min(self.coverage_a, self.coverage_b) < MIN_COVERAGE:
            return "undecided"
        if self.p_holm >= 1 - LEVEL:
            return "no difference seen"
        return "B is better" if self.success.value > 0 else "A is better"

    def as_json(self) -> dict[str, Any]:
        return {
            "env": self.name, "split": self.split, "success_a": self.a.as_json(), "success_b": self.b.as_json(),
            "success": self.success.as_json(), "test": self.test, "p_holm": self.p_holm,
            "reward": self.reward.as_json(), "coverage_a": self.coverage_a, "coverage_b": self.coverage_b,
            "num_unpaired": self.num_unpaired, "verdict": self.verdict(), "flips": [f.as_json() for f in self.flips],
        }  # fmt: skip


def compare(a: Places, b: Places) -> list[Comparison]:
    """One comparison for each environment and split that both runs played, in the order of the first run."""
    return corrected([_compared(*place, a[place], b[place]) for place in a if place in b])


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with `p_holm` for all of them together."""
    adjusted = holm([each.success.p for each in comparisons])
    return [replace(each, p_holm=p) for each, p in zip(comparisons, adjusted, strict=True)]


def paired_difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """What the means of tasks differ by. pairs: for each task the values of its attempts in A and in B, at least one.

    Student's interval and test over the G differences of the tasks, which are independent where attempts are not. Where
    values are 0 and 1, or all differences equal, the squared deviations count one attempt more that was lost and one
    that was won: without them a few tasks that never differed would be certain never to differ (after Bonett & Price
    2012, who shrink the value as well). With 8 to 200 tasks x 1 to 16 attempts this covered 93 to 100 % of the truths,
    a percentile bootstrap of the tasks 23 to 99 %; where success is rare and B far better, 20 tasks are not enough for
    it (88 %)."""
    from scipy.special import stdtr  # noqa: PLC0415  0.1 s to import

    if not pairs:
        return Difference(math.nan, math.nan, math.nan, -1.0, 1.0, 1.0, 0, None)
    means = np.array([(sum(a) / len(a), sum(b) / len(b)) for a, b in pairs])
    differences = means[:, 1] - means[:, 0]
    values = {value for pair in pairs for side in pair for value in side}
    num_tasks, mean = len(pairs), float(differences.mean())
    deviations = float(((differences - mean) ** 2).sum())
    largest = max(1.0, *map(abs, values))
    if values <= {0.0, 1.0} or deviations <= 1e-12 * num_tasks * largest**2:  # equal but for rounding
        per_task = sum(len(a) + len(b) for a, b in pairs) / (2 * num_tasks)
        deviations += 2 * (largest / per_task) ** 2
    low, high, p, needed = -math.inf, math.inf, 1.0, None
    if num_tasks > 1:
        error = math.sqrt(deviations / (num_tasks - 1) / num_tasks)
        half = quantile(LEVEL, num_tasks - 1) * error
        low, high, p = mean - half, mean + half, float(2 * stdtr(num_tasks - 1, -abs(mean / error)))
        per_unit = (quantile(LEVEL) + quantile(2 * POWER - 1)) / TARGET
        needed = math.ceil(per_unit**2 * deviations / (num_tasks - 1))
    if min(values) >= 0 and max(values) <= 1:
        low, high = max(low, -1.0), min(high, 1.0)
    mean_a, mean_b = means.mean(axis=0).tolist()
    return Difference(mean_a, mean_b, mean, low, high, p, num_tasks, needed)


def mcnemar(num_lost: int, num_won: int) -> float:
    """Exact two-sided p that a task which changed was as likely to change the other way (McNemar 1947)."""
    from scipy.special import bdtr  # noqa: PLC0415  0.1 s to import

    return min(1.0, 2 * float(bdtr(min(num_lost, num_won), num_lost + num_won, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p corrected for being one of several (Holm 1979): the chance of any false alarm stays below the level."""
    adjusted, last = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        last = adjusted[index] = min(1.0, max(last, (len(p_values) - rank) * p_values[index]))
    return adjusted


def by_place(played: Iterable[Played]) -> Places:
    """(environment without its version, split) -> task -> attempts."""
    places: Places = {}
    for each in played:
        tasks = places.setdefault((_unversioned(each.env_id), each.split), {})
        tasks.setdefault(each.task_id, []).append(each)
    return places


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Why two runs are not the same experiment. `keys` are two episodes that were told different things."""

    text: str
    keys: tuple[tuple[str, int, str, int], tuple[str, int, str, int]] | None = None


def mismatches(a: Places, b: Places) -> list[Mismatch]:
    """What differs of tasks, environment versions and prompts; nothing where the runs can be compared.

    A prompt is all that an episode is told before the policy speaks. Those of one task are compared between episodes
    with the same seed, on which an environment may let it depend; where there are none, between any two."""
    found = [Mismatch(f"{name}, split {split}: only in A") for name, split in a if (name, split) not in b]
    found += [Mismatch(f"{name}, split {split}: only in B") for name, split in b if (name, split) not in a]
    for place in (place for place in a if place in b):
        tasks_a, tasks_b = a[place], b[place]
        about = f"{place[0]}, split {place[1]}: "
        for side, more in (("A", [*tasks_a.keys() - tasks_b]), ("B", [*tasks_b.keys() - tasks_a])):
            if more:
                found.append(Mismatch(f"{about}{len(more)} tasks only in {side}, such as {min(more)}"))
        versions = [sorted({_version(e) for es in tasks.values() for e in es}) for tasks in (tasks_a, tasks_b)]
        if versions[0] != versions[1]:
            found.append(Mismatch(f"{about}environment {', '.join(versions[0])} in A, {', '.join(versions[1])} in B"))
        told = [pair for task in tasks_a if (pair := _told_apart(tasks_a[task], tasks_b.get(task, [])))]
        if told:
            text = f"{about}{len(told)} tasks begin with another prompt, such as {told[0][0].task_id}"
            found.append(Mismatch(text, (told[0][0].key, told[0][1].key)))
    return found


def _compared(name: str, split: str, a: Attempts, b: Attempts) -> Comparison:
    common = [task for task in a if task in b]
    scored = {task: ([e for e in a[task] if e.counts], [e for e in b[task] if e.counts]) for task in common}
    paired = {task: pair for task, pair in scored.items() if pair[0] and pair[1]}
    wins = {task: ([e.success for e in x], [e.success for e in y]) for task, (x, y) in paired.items()}
    success = paired_difference([*wins.values()])
    test = "Student's t over tasks"
    if all(len(won_a) == len(won_b) == 1 for won_a, won_b in wins.values()):
        test = "exact McNemar"
        changes = Counter(won_b[0] - won_a[0] for won_a, won_b in wins.values())
        success = replace(success, p=mcnemar(changes[-1], changes[1]))
    rewards = [([e.reward for e in x], [e.reward for e in y]) for x, y in paired.values()]
    reward = success if rewards == [*wins.values()] else paired_difference(rewards)
    rates = {task: (sum(won_a) / len(won_a), sum(won_b) / len(won_b)) for task, (won_a, won_b) in wins.items()}
    flips = [_flip(task, *rates[task], *paired[task]) for task in paired if rates[task][0] != rates[task][1]]
    flips.sort(key=lambda flip: (-abs(flip.b - flip.a), flip.task_id))
    coverage_a, coverage_b = (
        sum(len(pair[side]) for pair in scored.values()) / max(sum(len(played[task]) for task in common), 1)
        for side, played in enumerate((a, b))
    )
    rate_a, rate_b = (cluster_wilson({task: pair[side] for task, pair in wins.items()}) for side in (0, 1))
    return Comparison(
        name, split, rate_a, rate_b, success, reward, test, tuple(flips), coverage_a, coverage_b,
        len(a.keys() | b.keys()) - len(paired), success.p,
    )  # fmt: skip


def _flip(task: str, rate_a: float, rate_b: float, a: Sequence[Played], b: Sequence[Played]) -> Flip:
    shows_a = next((e for e in a if e.success == (rate_a > rate_b)), a[0])
    shows_b = next((e for e in b if e.success == (rate_b > rate_a)), b[0])
    return Flip(task, rate_a, rate_b, shows_a.key, shows_b.key)


def _told_apart(a: Sequence[Result], b: Sequence[Result]) -> tuple[Result, Result] | None:
    """Two episodes of a task that were told different things before they spoke."""
    if [(e.seed, e.opening) for e in a] == [(e.seed, e.opening) for e in b]:
        return None
    told_a, told_b = ({e.seed: e for e in side if e.opening != UNTOLD} for side in (a, b))
    pairs = [(told_a[seed], told_b[seed]) for seed in told_a if seed in told_b]
    if not pairs and told_a and told_b:
        pairs = [(next(iter(told_a.values())), next(iter(told_b.values())))]
    return next(((x, y) for x, y in pairs if x.opening != y.opening), None)


@cache
def _unversioned(env_id: str) -> str:
    return re.sub(r"-v\d+$", "", env_id)


def _version(played: Played) -> str:
    return f"{played.env_id} ({played.env_version})"
