"""Short programs told step by step: what a procedural task is made of.

Owns the dials: horizon (steps) and difficulty (which steps there are, and whether the editor shows what is left)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from agentgym import ConfigError, Task, TaskSet
from agentgym_envs.code.records import plan

NUM_TESTS = 4
Value = Any  # an int, or a list of them


@dataclass(frozen=True)
class Step:
    """One step: how it is told, a line that does it, and what it does."""

    told: str  # `{n}` is its number
    line: str
    does: Callable[[Value, int], Value]


@dataclass(frozen=True)
class Level:
    """One step of difficulty."""

    steps: tuple[Step, ...]
    of_lists: bool  # what x is
    shows_left: bool  # whether `write` answers with the steps that are left


NUMBERS = (
    Step("add {n}", "x += {n}", lambda x, n: x + n),
    Step("subtract {n}", "x -= {n}", lambda x, n: x - n),
)
MORE_NUMBERS = (
    *NUMBERS,
    Step("multiply by {n}", "x *= {n}", lambda x, n: x * n),
    Step("keep the remainder by {n}", "x %= {n}", lambda x, n: x % n),
    Step("negate", "x = -x", lambda x, n: -x),
)
LISTS = (
    Step("append {n}", "x.append({n})", lambda x, n: [*x, n]),
    Step("put {n} first", "x.insert(0, {n})", lambda x, n: [n, *x]),
    Step("sort", "x.sort()", lambda x, n: sorted(x)),
    Step("reverse", "x.reverse()", lambda x, n: x[::-1]),
    Step("drop the first", "x = x[1:]", lambda x, n: x[1:]),
    Step("add {n} to each", "x = [y + {n} for y in x]", lambda x, n: [y + n for y in x]),
)
LEVELS = (
    Level(NUMBERS, of_lists=False, shows_left=True),
    Level(MORE_NUMBERS, of_lists=False, shows_left=True),
    Level(MORE_NUMBERS, of_lists=False, shows_left=False),
    Level(LISTS, of_lists=True, shows_left=False),
)


@lru_cache
def programs(horizons: tuple[int, ...], difficulty: int) -> TaskSet:
    """The task set of one setting of the dials; one per process. Raises ConfigError."""
    if not 0 <= difficulty < len(LEVELS):
        raise ConfigError(f"difficulty={difficulty}: Code-v0 has the levels 0 to {len(LEVELS) - 1}")

    def make(rng: np.random.Generator, horizon: int) -> Task:
        return program(rng, horizon, difficulty)

    return TaskSet.procedural(make, horizons=horizons)


def program(rng: np.random.Generator, horizon: int, difficulty: int) -> Task:
    """`horizon` steps, and hidden tests over values of x that no step-by-step guess meets by chance."""
    level = LEVELS[difficulty]
    chosen = [level.steps[int(i)] for i in rng.integers(len(level.steps), size=horizon)]
    numbers = rng.integers(10, 100, size=horizon).tolist()
    tests = []
    for _ in range(NUM_TESTS):
        value: Value = rng.integers(10, 100, size=4).tolist() if level.of_lists else int(rng.integers(100, 1000))
        after = value
        for step, number in zip(chosen, numbers, strict=True):
            after = step.does(after, number)
        tests.append(f"assert f({value}) == {after}")
    told = [step.told.format(n=number) for step, number in zip(chosen, numbers, strict=True)]
    lines = [step.line.format(n=number) for step, number in zip(chosen, numbers, strict=True)]
    return Task(
        prompt=f"Write f(x), a line for each step, then submit. Steps: {'; '.join(told)}.",
        data={"told": told, "lines": lines, **plan("asserts", remote=["f"], tests="\n".join(tests))},
        metadata={"horizon": horizon, "difficulty": difficulty},
    )


def assembled(lines: list[str]) -> str:
    """The program that lines for f make; a line may itself be several."""
    body = [f"    {line}" for text in lines for line in text.split("\n")]
    return "\n".join(["def f(x):", *body, "    return x", ""])
