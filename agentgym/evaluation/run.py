"""Evaluate a policy: attempts over a split's first tasks, resumable, summed up with denominators and coverage.

Owns which tasks are attempted, and whether a run that is there may go on. Playing an episode is rollout/driver.py's
business, keeping it rollout/store.py's, the sums figures.py's, what it may cost budget.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentgym.env import AgentEnv
from agentgym.errors import ConfigError
from agentgym.evaluation.budget import PILOT, Budget, Meter
from agentgym.evaluation.figures import Evaluation, Tally, summarise
from agentgym.evaluation.suite import Part
from agentgym.ledger import Episode
from agentgym.messages import canonical
from agentgym.policies.base import Policy
from agentgym.policies.compute import Computed, Plan
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot, derive_seed, env_version
from agentgym.rollout.store import Store
from agentgym.tasks import Task

Progress = Callable[[int, int], None]  # episodes done, episodes planned


async def evaluate(
    env_id: str, policy: Policy, *, store: Store | None, run: str, split: str = "test",
    horizons: Sequence[int] | None = None, limit: int = 100, start: int = 0, task_ids: Sequence[str] = (),
    attempts: int = 1, seed: int = 0, concurrency: int = 64, env_kwargs: Mapping[str, Any] | None = None,
    steady: bool = True, meter: Meter | None = None, plan: Plan | None = None, num_parameters: int | None = None,
    tally: Tally | None = None, progress: Progress = lambda done, planned: None,
) -> Evaluation:  # fmt: skip
    """Play `attempts` episodes on each of `limit` distinct tasks of the split, from position `start` on (or on those of
    `task_ids`), and sum up.

    `horizons` becomes the environment's `horizon` argument, whose tasks take them in turn; `limit` is then per horizon.
    Attempts that the store already holds under `run` are not played again, but for those that infrastructure broke:
    resuming is the same call, which may ask for more tasks or attempts, and is refused for fewer, or where the
    environment is no longer what it was.
    A `meter` ends it when its budget is spent; what was played is summed up. A `plan` spends more replies on each
    message (policies/compute.py). `steady` is the Driver's.
    The seed of an episode depends on `seed`, its task and its attempt only, never on the limit, the order or `run`:
    two evaluations face the same episodes. Raises ConfigError for an environment or split that cannot be evaluated."""
    Part(env_id, limit=limit, attempts=attempts)  # checks them
    kwargs = arguments(split, horizons, env_kwargs)
    count = limit * len(kwargs["horizon"]) if horizons else limit
    tasks = await asyncio.to_thread(choose_tasks, env_id, kwargs, count, start, task_ids)  # which closes environments
    slots = [
        Slot(task_id=task, attempt=attempt, group=group, seed=derive_seed(seed, task, attempt))
        for group, task in enumerate(tasks)
        for attempt in range(attempts)
    ]
    order = {(slot.task_id, slot.attempt): number for number, slot in enumerate(slots)}
    tally = tally or Tally()
    tally.num_planned = len(slots)
    if store is not None:
        _refuse_fewer({(task, attempt) for _, task, attempt in store.keys(run)} - order.keys(), store)
        store.reopen_failed(run)
        kept = {(task, attempt) for _, task, attempt in store.keys(run)}
        for episode in store.episodes(run=run):
            if (episode.task_id, episode.attempt) in kept:
                tally.add(episode)
        await asyncio.to_thread(_refuse_changes, env_id, kwargs, tally.episodes)

    meter = meter or Meter(Budget(), 0)
    paying = meter.wrap(policy)
    driver = Driver(
        env_id, paying if plan is None else Computed(paying, plan), run=run, env_kwargs=kwargs, store=store,
        concurrency=concurrency, steady=steady,
    )  # fmt: skip
    try:
        num_cut = await _played(driver, slots, tally, meter, lambda: progress(len(tally.episodes), len(slots)))
    finally:
        await asyncio.to_thread(driver.close)
    tally.episodes.sort(key=lambda e: order[e.task_id, e.attempt])  # resumed and uninterrupted give the same figures
    # a world that could not be built has told the episode nothing of its task: its horizon lost it all the same
    told = [e if e.metadata else replace(e, metadata=tasks[e.task_id].metadata) for e in tally.episodes]
    return summarise(
        env_id, split, told, num_planned=len(slots), num_cut=num_cut, budget=meter.budget,
        num_parameters=num_parameters,
    )  # fmt: skip


async def _played(driver: Driver, slots: Sequence[Slot], tally: Tally, meter: Meter, show: Callable[[], None]) -> int:
    """Play the slots that the tally lacks, as far as the budget goes; how many episodes it cut. Where there is a limit
    a few go first, and where it is of tokens one before them."""

    def finished(episode: Episode) -> None:
        tally.add(episode)
        meter.ended(episode)
        show()

    def left() -> list[Slot]:
        done = {(episode.task_id, episode.attempt) for episode in tally.episodes}
        return [slot for slot in slots if (slot.task_id, slot.attempt) not in done]

    async def paid(slots: Sequence[Slot]) -> Sequence[Episode]:
        return await driver.collect(slots, on_episode=finished, admits=meter.admits)

    async def all_paid() -> None:
        if meter.budget.has_limit:
            tally.is_pilot = True
            first, alone = left()[:PILOT], int(meter.budget.limits_tokens)
            await paid(first[:alone])
            await paid(first[alone:])
            tally.is_pilot = False
            show()
        while await paid(left()):
            pass  # what had no room beside others may have it after them

    show()
    await meter.within(all_paid())
    return meter.cut()


def arguments(split: str, horizons: Sequence[int] | None, env_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an evaluated environment is made with."""
    return dict(env_kwargs or {}) | {"split": split} | ({"horizon": tuple(dict.fromkeys(horizons))} if horizons else {})


def choose_tasks(
    env_id: str, env_kwargs: Mapping[str, Any], limit: int, start: int = 0, task_ids: Sequence[str] = ()
) -> dict[str, Task]:
    """`limit` distinct tasks, by id, of the split `env_kwargs` names, from position `start` on, at most all of them; or
    those of `task_ids`. Raises ConfigError, also where no task is left."""
    env = _made(env_id, env_kwargs)
    try:
        split = env.tasks.split(env_kwargs["split"])
        if not len(split):
            raise ConfigError(f"{env_id}: split {split.name!r} has no tasks; give another with --split")
        if task_ids:
            for name in {task_id.partition(":")[0] for task_id in task_ids if ":" in task_id} - {split.name}:
                raise ConfigError(f"--task {name}:…: the split is {env.tasks.split(name) and split.name!r}")
            return {split.id_of(task): task for task in map(split.find, task_ids)}
        return dict(split.take(min(limit, len(split)), start=start % len(split)))
    finally:
        env.close()


def _made(env_id: str, env_kwargs: Mapping[str, Any]) -> AgentEnv:
    env = make(env_id, **env_kwargs)
    if not isinstance(env.unwrapped, AgentEnv):
        env.close()
        raise ConfigError(f"{env_id} is no agentgym.AgentEnv: it has no tasks to evaluate on")
    return env.unwrapped


def _refuse_fewer(beyond: set[tuple[str, int]], store: Store) -> None:
    """What is stored must be asked for again, or its figures would silently leave something out."""
    if beyond:
        task, attempt = min(beyond)
        raise ConfigError(
            f"{store.path} holds {len(beyond)} finished attempts that are not asked for now, such as attempt {attempt} "
            f"of task {task}: the tasks have changed, or --limit, --attempts or --task ask for less. "
            "Ask for at least what was asked for, or begin a new run with another --output"
        )


def _refuse_changes(env_id: str, env_kwargs: Mapping[str, Any], episodes: Sequence[Episode]) -> None:
    """An episode that is stored must begin today as it began then: version, first messages, tools."""
    old = next((e for e in episodes if e.messages), None)
    if old is None:
        return
    env = _made(env_id, env_kwargs)
    try:
        observation, _ = env.reset(seed=old.seed, options={"task": old.task_id})
        version = env_version(env)
    finally:
        env.close()
    pairs = [("version", old.env_version, version)]
    for was, new in zip(old.messages, observation["messages"], strict=False):
        pairs.append((f"{new['role']} message", was["content"], new["content"]))
    tools = {tool["function"]["name"]: tool for tool in old.tools}
    for tool in observation["tools"] or () if old.turns else ():
        name = tool["function"]["name"]
        pairs.append((f"tool {name}", canonical(tools.get(name)), canonical(tool)))
    for what, was, new in pairs:
        if was != new:
            raise ConfigError(
                f"{env_id}: the {what} has changed since this run began ({_differing(was, new)}): its episodes would "
                "not be comparable; begin a new run with another --output"
            )


def _differing(was: str, new: str, around: int = 30) -> str:
    """Where two texts part, in words for a message."""
    at = next((i for i, (a, b) in enumerate(zip(was, new, strict=False)) if a != b), min(len(was), len(new)))
    low = max(0, at - around)
    return f"it was {was[low : at + around]!r} and is {new[low : at + around]!r}"
