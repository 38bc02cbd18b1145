"""Add up a sum term by term with a calculator that keeps a running total."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from agentgym import AgentEnv, ConfigError, Message, Rubric, assistant, call, tool
from agentgym_envs.arithmetic.tasks import CHAIN_SUM, items, solved, sums

Display = Literal["terms", "total"]
DEMONSTRATOR: Mapping[str, float] = {
    "notice": 0.35,  # chance to answer once no term is left; else it goes on with any number
    "give_up": 0.15,  # chance to answer before each call while terms are left
    "slip": 0.05,  # chance of a wrong operand or operator at each call
}


class ArithmeticEnv(AgentEnv):
    """Tasks and verdicts of reasoning-gym. Horizon: `horizon` calls, one per term, and an answer.

    Dials: `horizon` (terms of a chain_sum), `display` ("terms": the calculator also shows the terms left; "total":
    the running total only), `generator` and `config` (any other of the package's; its horizon is not known)."""

    rubric = Rubric(solved=solved)
    blocking = False
    max_turns = 30

    def __init__(
        self,
        *,
        generator: str = CHAIN_SUM,
        config: Mapping[str, Any] | None = None,
        horizon: int | Sequence[int] = (2, 3, 4, 5),
        display: Display = "terms",
        demonstrator: Mapping[str, float] | None = None,
        split: str = "train",
        max_turns: int | None = None,
        max_tokens: int | None = None,
        max_time_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`demonstrator` changes constants of DEMONSTRATOR. `max_turns` defaults to a sum's terms + 4 (not told)."""
        if display not in get_args(Display):
            raise ConfigError(f"display={display!r}: use 'terms' or 'total'")
        unknown = set(demonstrator or {}) - set(DEMONSTRATOR)
        if unknown:
            raise ConfigError(f"demonstrator has no {min(unknown)!r}; it has {', '.join(DEMONSTRATOR)}")
        if generator == CHAIN_SUM and config:
            raise ConfigError(
                f"config={dict(config)!r}: {CHAIN_SUM} is set by `horizon`; other generators take a config"
            )
        terms = (horizon,) if isinstance(horizon, int) else tuple(horizon)
        self.tasks = sums(terms) if generator == CHAIN_SUM else items(generator, repr(dict(config or {})))
        self.display = display
        self.demonstrator = {**DEMONSTRATOR, **(demonstrator or {})}
        super().__init__(
            split=split, max_turns=max_turns, max_tokens=max_tokens, max_time_s=max_time_s, render_mode=render_mode
        )

    def setup(self) -> None:
        is_sum = self.task.data["generator"] == CHAIN_SUM
        self.terms = read_terms(self.task.prompt) if is_sum else []
        self.total = 0
        self.num_calls = 0

    def turn_limit(self) -> int | None:
        return len(self.terms) + 4 if self.terms else self.max_turns

    @tool
    def add(self, x: int) -> str:
        """Add a number to the running total, which starts at 0.

        Args:
            x: The number to add.
        """
        return self._pressed(x)

    @tool
    def sub(self, x: int) -> str:
        """Subtract a number from the running total, which starts at 0.

        Args:
            x: The number to subtract.
        """
        return self._pressed(-x)

    def _pressed(self, change: int) -> str:
        self.total += change
        self.num_calls += 1
        if self.display == "total" or not self.terms:
            return str(self.total)
        left = " ".join(f"{'-' if term < 0 else '+'} {abs(term)}" for term in self.terms[self.num_calls :])
        return f"{self.total} left {left or 'nothing'}"

    def state_key(self) -> str:
        return f"{self.num_calls}:{self.total}"

    def gold(self) -> Message | None:
        if self.num_calls < len(self.terms):
            return press(self.terms[self.num_calls])
        return None if self.task.answer is None else assistant(str(self.task.answer))

    def demonstrate(self, rng: np.random.Generator) -> Message | None:
        """A distracted clerk: gives up now and then, slips, and past the last term goes on more often than not."""
        if not self.terms:
            return None
        chances = self.demonstrator
        past_end = self.num_calls >= len(self.terms)
        if rng.random() < chances["notice" if past_end else "give_up"]:
            return assistant(str(self.total))
        term = int(rng.integers(10, 100)) if past_end else self.terms[self.num_calls]
        if rng.random() < chances["slip"]:
            term = -term if rng.random() < 0.5 else int(rng.integers(10, 100))
        return press(term)


def read_terms(question: str) -> list[int]:
    """The signed terms of `…: 46 - 23 + 81 =`, in order."""
    expression = question.rpartition(":")[2].partition("=")[0]
    return [int(sign + digits) for sign, digits in re.findall(r"([+-]?) *(\d+)", expression)]


def press(term: int) -> Message:
    return assistant("", call("add", x=term) if term >= 0 else call("sub", x=-term))
