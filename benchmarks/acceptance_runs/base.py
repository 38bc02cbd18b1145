"""What an acceptance run is given, what it gives back, and how episodes are played for it.

Owns the registry: `@run(5, "code")` over a function from Setup to Found. Every module of this package is imported by
../acceptance.py, so that a new module needs no other line."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from agentgym.ledger import Episode
from agentgym.loop import run_sync
from agentgym.policies.base import Policy
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot


@dataclass(frozen=True)
class Setup:
    """What every run is given."""

    data: Path  # a folder per set
    workers: int  # episodes in flight
    backend: str  # of the sandboxes


@dataclass(frozen=True)
class Found:
    """What a run came to. Counts are of records really run; `skipped` has a reason for each of the others."""

    records: int
    expected: str
    observed: str
    passed: bool
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    no: int
    name: str
    records: int
    skipped: Mapping[str, int]
    expected: str
    observed: str
    passed: bool
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Run = Callable[[Setup], Found]
RUNS: dict[int, tuple[str, Run]] = {}


def run(no: int, name: str) -> Callable[[Run], Run]:
    def keep(function: Run) -> Run:
        RUNS[no] = (name, function)
        return function

    return keep


def row(no: int, setup: Setup) -> Row:
    """The run of that number; an exception in it is a failed row that names it."""
    name, function = RUNS[no]
    began = perf_counter()
    try:
        found = function(setup)
    except Exception as error:
        traceback.print_exc()
        found = Found(0, "no error", f"{type(error).__name__}: {error}", passed=False)
    return Row(
        no, name, found.records, found.skipped, found.expected, found.observed, found.passed,
        round(perf_counter() - began, 1),
    )  # fmt: skip


def play(
    setup: Setup, env_id: str, policy: Policy, *, split: str = "test", only: Sequence[str] | None = None, **kwargs: Any
) -> list[Episode]:
    """One episode per task of the split (or per id of `only`), `setup.workers` in flight, in the order of the tasks.

    Raises RuntimeError naming the first one that was not played fairly."""
    kwargs = {"split": split, "sandbox": setup.backend, **kwargs}
    if only is None:
        env = make(env_id, **kwargs)
        found = env.unwrapped.tasks.split(split)
        only = [found.id(index) for index in range(len(found))]
        env.close()
    driver = Driver(env_id, policy, run="acceptance", env_kwargs=kwargs, concurrency=setup.workers)
    try:
        slots = [Slot(task_id, attempt=0, group=index, seed=0) for index, task_id in enumerate(only)]
        episodes = run_sync(driver.collect(slots)) if slots else []
    finally:
        driver.close()
    for episode in episodes:
        if not episode.counts:
            raise RuntimeError(f"{episode.task_id} was not played fairly: {episode.failure}")
    return episodes


def num_solved(episodes: Sequence[Episode]) -> int:
    return sum(episode.success for episode in episodes)
