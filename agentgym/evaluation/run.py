"""Evaluate a policy: attempts over a split's first tasks, resumable, summed up with denominators and coverage.

Owns which tasks are attempted and what the figures count. Playing an episode is rollout/driver.py's business, keeping
it rollout/store.py's, the statistics intervals.py's and horizon.py's."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentgym.errors import ConfigError
from agentgym.evaluation.horizon import Point, success_curve
from agentgym.evaluation.intervals import Interval, success_interval
from agentgym.ledger import Episode
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot

if TYPE_CHECKING:
    from agentgym.policies.base import Policy
    from agentgym.rollout.store import Store

MIN_COVERAGE = 0.9  # below it the verdict is "undecided": too much of the evaluation is missing
Progress = Callable[[int, int], None]  # episodes done, episodes planned


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the attempts over a split came to. Every rate carries its denominator."""

    env_id: str
    split: str
    overall: Interval
    by_horizon: tuple[Point, ...]
    num_planned: int
    failures: Mapping[str, int]  # by kind; policy failures count in every rate, the others in none
    stop_reasons: Mapping[str, int]
    mean_reward: float
    mean_turns: float
    sampled_tokens: int
    seconds: float  # summed over episodes: policy and environment

    @property
    def num_scored(self) -> int:
        return self.overall.n

    @property
    def coverage(self) -> float:
        """Share of the planned attempts that could be scored."""
        return self.num_scored / self.num_planned if self.num_planned else 0.0

    @property
    def undecided(self) -> bool:
        return self.coverage < MIN_COVERAGE

    def as_json(self) -> dict[str, Any]:
        return {
            "env": self.env_id,
            "split": self.split,
            "success": self.overall.as_json(),
            "by_horizon": [point.as_json() for point in self.by_horizon],
            "num_planned": self.num_planned,
            "num_scored": self.num_scored,
            "coverage": self.coverage,
            "verdict": "undecided" if self.undecided else "decided",
            "failures": dict(self.failures),
            "stop_reasons": dict(self.stop_reasons),
            "mean_reward": self.mean_reward,
            "mean_turns": self.mean_turns,
            "sampled_tokens": self.sampled_tokens,
            "seconds_episodes": self.seconds,
        }


async def evaluate(
    env_id: str,
    policy: Policy,
    *,
    store: Store | None,
    run: str,
    split: str = "test",
    horizons: Sequence[int] | None = None,
    limit: int = 100,
    attempts: int = 1,
    seed: int = 0,
    concurrency: int = 64,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Play `attempts` episodes on each of the split's first `limit` distinct tasks and sum them up.

    With `horizons` the environment is made once for each (its `horizon` argument) and `limit` counts per horizon.
    Attempts that the store already holds under `run` are not played again: resuming is the same call.
    The seed of an episode depends on `seed`, its task and its attempt only, never on the limit or the order."""
    for name, value in (("limit", limit), ("attempts", attempts), ("concurrency", concurrency)):
        if value < 1:
            raise ConfigError(f"{name} {value}: give at least 1")
    parts = _plan(env_id, split, horizons, limit, env_kwargs or {})
    keys = {(task, attempt) for part in parts for task in part.tasks for attempt in range(attempts)}
    kept = {(task, attempt) for _, task, attempt in store.keys(run)} & keys if store is not None else set()
    tally = _Tally(len(kept), len(keys), progress)

    async def play(part: _Part, slots: list[Slot]) -> list[Episode]:
        driver = Driver(env_id, policy, run=run, env_kwargs=part.env_kwargs, store=store, concurrency=concurrency)
        try:
            return await driver.collect(slots, on_episode=tally)
        finally:
            driver.close()

    played: list[Episode] = []
    for wave in _waves([(part, part.slots(attempts, seed, kept)) for part in parts], concurrency):
        for episodes in await _together(play(part, slots) for part, slots in wave):
            played += episodes
    if store is not None:  # the record is what counts: resumed and uninterrupted give the same figures
        played = [e for e in store.episodes(run=run) if (e.task_id, e.attempt) in keys]
    return summarise(env_id, split, played, num_planned=len(keys))


def summarise(env_id: str, split: str, episodes: Iterable[Episode], *, num_planned: int | None = None) -> Evaluation:
    """The figures of a set of episodes; without `num_planned`, they are all that was planned."""
    episodes = list(episodes)
    scored = [e for e in episodes if e.counts]
    return Evaluation(
        env_id=env_id,
        split=split,
        overall=success_interval(scored),
        by_horizon=tuple(success_curve(episodes)),
        num_planned=len(episodes) if num_planned is None else num_planned,
        failures=Counter(str(e.failure.kind) for e in episodes if e.failure is not None),
        stop_reasons=Counter(str(e.stop_reason) for e in episodes),
        mean_reward=sum(e.reward for e in scored) / max(len(scored), 1),
        mean_turns=sum(len(e.turns) for e in scored) / max(len(scored), 1),
        sampled_tokens=sum(map(_sampled_tokens, episodes)),
        seconds=sum(turn.policy_s + turn.env_s for e in episodes for turn in e.turns),
    )


class _Tally:
    """Counts finished episodes for a progress display."""

    def __init__(self, done: int, planned: int, progress: Progress | None) -> None:
        self.done, self.planned, self.progress = done, planned, progress
        if progress is not None:
            progress(done, planned)

    def __call__(self, _: Episode) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.planned)


@dataclass(frozen=True, slots=True)
class _Part:
    """The attempts that share one environment: one horizon."""

    env_kwargs: Mapping[str, Any]
    tasks: list[str]

    def slots(self, attempts: int, seed: int, kept: set[tuple[str, int]]) -> list[Slot]:
        return [
            Slot(task_id=task, attempt=attempt, group=group, seed=_episode_seed(seed, task, attempt))
            for group, task in enumerate(self.tasks)
            for attempt in range(attempts)
            if (task, attempt) not in kept
        ]


def _plan(
    env_id: str, split: str, horizons: Sequence[int] | None, limit: int, env_kwargs: Mapping[str, Any]
) -> list[_Part]:
    """One part per horizon (or one in all); no task is planned twice."""
    seen: set[str] = set()
    parts = []
    for horizon in horizons or (None,):
        kwargs = dict(env_kwargs) | {"split": split} | ({} if horizon is None else {"horizon": horizon})
        env = make(env_id, **kwargs)
        try:
            tasks = _first_distinct(env.unwrapped.tasks.split(split), limit, seen)  # type: ignore[attr-defined]
        finally:
            env.close()
        if not tasks:
            raise ConfigError(
                f"{env_id} has no task in split {split!r} with {kwargs}; `agentgym list` names its splits"
            )
        parts.append(_Part(kwargs, tasks))
    return parts


def _first_distinct(split: Any, limit: int, seen: set[str]) -> list[str]:
    """Ids of the first tasks by index that are new; a small procedural family repeats itself, so give up in time."""
    found: list[str] = []
    for index in range(min(len(split), 1000 + 20 * limit)):
        task_id = split.id(index)
        if task_id not in seen:
            seen.add(task_id)
            found.append(task_id)
            if len(found) == limit:
                break
    return found


def _episode_seed(seed: int, task_id: str, attempt: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{task_id}/{attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33  # 31 bits: what every generator takes


def _waves(jobs: list[tuple[_Part, list[Slot]]], concurrency: int) -> Iterator[list[tuple[_Part, list[Slot]]]]:
    """Neighbouring parts together as long as they fit: short parts must not leave an engine's batch half empty."""
    wave: list[tuple[_Part, list[Slot]]] = []
    for job in jobs:
        if wave and sum(len(slots) for _, slots in wave) + len(job[1]) > concurrency:
            yield wave
            wave = []
        if job[1]:
            wave.append(job)
    if wave:
        yield wave


async def _together(plays: Iterable[Coroutine[Any, Any, list[Episode]]]) -> list[list[Episode]]:
    """All of them; if one raises, or we are cancelled, none goes on behind the caller's back."""
    tasks = [asyncio.ensure_future(play) for play in plays]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _sampled_tokens(episode: Episode) -> int:
    if episode.ledger is not None:
        return episode.ledger.num_sampled
    return sum(message.get("num_tokens", 0) for message in episode.messages)
