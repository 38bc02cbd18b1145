"""Episodes lost to infrastructure: three estimates of the mean reward, with and without faults, for learning.py.

Owns an environment that breaks by chance, whatever the reward would have been, and the estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from agentgym_envs.lookup.env import LookupEnv

from agentgym import InfrastructureError, register
from agentgym.ledger import Episode
from agentgym.loop import run_sync
from agentgym.policies.builtin import builtin
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot, derive_seed

ENV = "learning_faults:bench/FaultyLookup-v0"
EPISODES = 3000
RATE = 0.1  # of episodes that break at their start
TURN_RATE = 0.02  # of turns that break
chance = np.random.default_rng()  # of the machine, not of the task: a second try may go well


class FaultyLookup(LookupEnv):
    """Look-ups on a machine that breaks: at the start of an episode, or at any turn of it."""

    def __init__(self, *, breaks: Literal["never", "start", "turn"] = "start", **kwargs: Any) -> None:
        self.breaks = breaks
        super().__init__(**kwargs)

    def setup(self) -> None:
        super().setup()
        if self.breaks == "start" and chance.random() < RATE:
            raise InfrastructureError("the machine broke before the first turn")

    def state_key(self) -> str:
        if self.breaks == "turn" and chance.random() < TURN_RATE:  # asked once per turn
            raise InfrastructureError("the machine broke in the middle")
        return super().state_key()


register("bench/FaultyLookup-v0", "learning_faults:FaultyLookup")


def estimates(seeds: Sequence[int]) -> dict[str, dict[str, dict[int, float]]]:
    """How often the demonstrator succeeds, in points: faults and retries -> estimate -> seed -> rate."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, breaks, retries in (
        ("none", "never", 2), ("start, retried", "start", 2), ("start, not retried", "start", 0),
        ("turn, retried", "turn", 2), ("turn, not retried", "turn", 0),
    ):  # fmt: skip
        found[name] = {"left out": {}, "counted as zero": {}, "coverage": {}}
        for seed in seeds:
            episodes = played(breaks, retries, seed)
            counted = [e for e in episodes if e.counts]
            found[name]["left out"][seed] = 100 * sum(e.reward for e in counted) / len(counted)
            found[name]["counted as zero"][seed] = 100 * sum(e.reward for e in counted) / len(episodes)
            found[name]["coverage"][seed] = 100 * len(counted) / len(episodes)
        print(f"{name:<20}" + "  ".join(f"{kind} {np.mean([*by.values()]):6.2f} %" for kind, by in found[name].items()),
              flush=True)  # fmt: skip
    return found


def played(breaks: str, retries: int, seed: int) -> list[Episode]:
    """The same tasks and the same demonstrator's chance, whatever breaks."""
    kwargs = {"breaks": breaks}
    split = make(ENV, **kwargs).unwrapped.tasks.split("train")  # type: ignore[attr-defined]
    tasks = [split.id((seed * EPISODES + i) % len(split)) for i in range(EPISODES)]
    slots = [Slot(task, 0, i, derive_seed(seed, task) >> 32) for i, task in enumerate(tasks)]
    driver = Driver(ENV, builtin("demonstrator"), run="faults", env_kwargs=kwargs, concurrency=64, retries=retries)
    try:
        return run_sync(driver.collect(slots))
    finally:
        driver.close()


def claims(found: dict[str, dict[str, dict[int, float]]], claim: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    true = found["none"]["left out"]
    return [
        claim("10 % of episodes fail and are retried: same mean reward within 0.5 points",
              found["start, retried"]["left out"], true, same=0.5),
        claim("10 % fail, are not retried and are left out: same within 0.5 points",
              found["start, not retried"]["left out"], true, same=0.5),
        claim("10 % fail and are counted as zero: less than it is", true,
              found["start, not retried"]["counted as zero"]),
        claim("2 % of turns fail and are retried: same within 0.5 points",
              found["turn, retried"]["left out"], true, same=0.5),
        claim("2 % of turns fail and are left out: short episodes are preferred, more than it is",
              found["turn, not retried"]["left out"], true),
    ]  # fmt: skip
