"""Chains of keys and colours: what a look-up task is made of.

Owns the dials: horizon and difficulty."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from agentgym import ConfigError, Task, TaskSet

RED_AFTER = 0.3  # chance of a key behind the first red one to be red too: walking on may end well by luck only


@dataclass(frozen=True)
class Level:
    """One step of difficulty."""

    keys: int  # in the chain
    digits: int  # of a key
    distractors: int  # keys with colours that a look-up tells besides, and that lead nowhere
    words: int  # of idle text before the link


LEVELS = (Level(90, 2, 0, 0), Level(90, 2, 1, 8), Level(300, 3, 2, 20), Level(900, 4, 4, 60))


@lru_cache
def chains(horizons: tuple[int, ...], difficulty: int) -> TaskSet:
    """The task set of one setting of the dials; one per process, so that its memory of ids is shared. ConfigError."""
    if not 0 <= difficulty < len(LEVELS):
        raise ConfigError(f"difficulty={difficulty}: Lookup-v0 has the levels 0 to {len(LEVELS) - 1}")
    level = LEVELS[difficulty]
    if max(horizons, default=0) >= level.keys:
        raise ConfigError(f"horizon={max(horizons)}: level {difficulty} has {level.keys} keys; stay below")

    def make(rng: np.random.Generator, horizon: int) -> Task:
        return chain(rng, horizon, difficulty)

    return TaskSet.procedural(make, horizons=horizons)


def chain(rng: np.random.Generator, horizon: int, difficulty: int) -> Task:
    """One random cycle of all keys. From the start on, the first `horizon` - 1 are blue and the next is red."""
    level = LEVELS[difficulty]
    low = 10 ** (level.digits - 1)
    keys = (low + rng.permutation(9 * low)[: level.keys]).tolist()
    red = rng.random(level.keys) < RED_AFTER
    red[1:horizon] = False
    red[horizon] = True
    return Task(
        prompt=f"Start at {keys[0]}. Follow the links to the first red key.",
        answer=str(keys[horizon]),
        data={"keys": keys, "colours": "".join("r" if is_red else "b" for is_red in red)},
        metadata={"horizon": horizon, "difficulty": difficulty},
    )
