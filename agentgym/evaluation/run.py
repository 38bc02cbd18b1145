"""Evaluate a policy: attempts over a split's first tasks, resumable, summed up with denominators and coverage.

Owns which tasks are attempted and what the figures count. Playing an episode is rollout/driver.py's business, keeping
it rollout/store.py's, the statistics intervals.py's and horizon.py's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentgym.env import AgentEnv
from agentgym.errors import ConfigError
from agentgym.evaluation.horizon import Point, success_curve
from agentgym.evaluation.intervals import Interval, success_interval
from agentgym.ledger import Episode
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot, derive_seed
from agentgym.tasks import Task

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
    start: int = 0,
    attempts: int = 1,
    seed: int = 0,
    concurrency: int = 64,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Play `attempts` episodes on each of `limit` distinct tasks of the split, from position `start` on, and sum up.

    `horizons` becomes the environment's `horizon` argument, whose tasks take them in turn; `limit` is then per horizon.
    Attempts that the store already holds under `run` are not played again: resuming is the same call.
    The seed of an episode depends on `seed`, its task and its attempt only, never on the limit, the order or `run`:
    two evaluations face the same episodes. Raises ConfigError for an environment or split that cannot be evaluated."""
    for name, value in (("limit", limit), ("attempts", attempts), ("concurrency", concurrency)):
        if value < 1:
            raise ConfigError(f"{name} {value}: give at least 1")
    kwargs = arguments(split, horizons, env_kwargs)
    count = limit * len(kwargs["horizon"]) if horizons else limit
    tasks = await asyncio.to_thread(first_tasks, env_id, kwargs, count, start)  # environments are closed in there
    slots = [
        Slot(task_id=task, attempt=attempt, group=group, seed=derive_seed(seed, task, attempt))
        for group, task in enumerate(tasks)
        for attempt in range(attempts)
    ]
    keys = {(slot.task_id, slot.attempt) for slot in slots}
    kept = set() if store is None else {(task, attempt) for _, task, attempt in store.keys(run)} & keys
    tally = _Tally(len(kept), len(slots), progress)
    driver = Driver(env_id, policy, run=run, env_kwargs=kwargs, store=store, concurrency=concurrency)
    try:
        open_slots = [slot for slot in slots if (slot.task_id, slot.attempt) not in kept]
        episodes = await driver.collect(open_slots, on_episode=tally)
    finally:
        await asyncio.to_thread(driver.close)
    if store is not None:  # the record is what counts: resumed and uninterrupted give the same figures
        episodes = [e for e in store.episodes(run=run) if (e.task_id, e.attempt) in keys]
    # a world that could not be built has told the episode nothing of its task: its horizon lost it all the same
    told = [e if e.metadata else replace(e, metadata=tasks[e.task_id].metadata) for e in episodes]
    return summarise(env_id, split, told, num_planned=len(slots))


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


def arguments(split: str, horizons: Sequence[int] | None, env_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an evaluated environment is made with."""
    return dict(env_kwargs or {}) | {"split": split} | ({"horizon": tuple(dict.fromkeys(horizons))} if horizons else {})


def first_tasks(env_id: str, env_kwargs: Mapping[str, Any], limit: int, start: int = 0) -> dict[str, Task]:
    """`limit` distinct tasks, by id, of the split `env_kwargs` names, from position `start` on; at most all of them.
    Raises ConfigError."""
    try:
        env = make(env_id, **env_kwargs)
    except TypeError as error:
        reason = str(error).partition(" was raised from")[0]
        given = ", ".join(f"{name}={value!r}" for name, value in env_kwargs.items())
        raise ConfigError(f"{env_id} cannot be made with {given}: {reason}") from error
    try:
        if not isinstance(env.unwrapped, AgentEnv):
            raise ConfigError(f"{env_id} is no agentgym.AgentEnv: it has no tasks to evaluate on")
        split = env.unwrapped.tasks.split(env_kwargs["split"])
        return dict(split.take(min(limit, len(split)), start=start % len(split)))
    finally:
        env.close()


def _sampled_tokens(episode: Episode) -> int:
    if episode.ledger is not None:
        return episode.ledger.num_sampled
    return sum(message.get("num_tokens", 0) for message in episode.messages)
