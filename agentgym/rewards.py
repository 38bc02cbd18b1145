"""From what happened to a reward: pure checks with names and weights.

Owns Outcome, Unscored, Rubric and the verifiers that many environments share. A stored episode can be judged again
with nothing but its Outcome. When an environment asks for its reward is env.py's business."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from agentgym.errors import AgentGymError, ConfigError, TaskError
from agentgym.messages import JSON, Message
from agentgym.tasks import Task


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a verifier may look at."""

    task: Task
    final: JSON
    messages: tuple[Message, ...]

    @property
    def answer(self) -> str | None:
        """Text of the closing assistant message, stripped; None where it holds calls or was cut, so is no answer."""
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                cut = message.get("finish_reason") in ("length", "context")
                return None if cut or message.get("tool_calls") else message["content"].strip()
        return None


@dataclass(frozen=True, slots=True)
class Unscored:
    """A verifier's way to say that it cannot judge, and why. Never a reward of zero."""

    reason: str


Verdict = float | Unscored
Verifier = Callable[[Outcome], Verdict | Awaitable[Verdict]]


@dataclass(frozen=True, slots=True)
class Score:
    """What a rubric made of an outcome: reward in [0, 1] (0.0, and void, where `unscored` is set)."""

    reward: float
    parts: Mapping[str, float]
    unscored: str | None = None


class Rubric:
    """Named verifiers, each alone or as `(verifier, weight)`: `Rubric(solved=answer_equals, short=(brief, 0.1))`.

    The reward is their weighted mean. Raises ConfigError for no verifier, or a weight that cannot be one."""

    def __init__(self, **verifiers: Verifier | tuple[Verifier, float]) -> None:
        self.verifiers: dict[str, Verifier] = {}
        self.weights: dict[str, float] = {}
        for name, given in verifiers.items():
            verifier, weight = given if isinstance(given, tuple) else (given, 1.0)
            if not callable(verifier):
                raise ConfigError(f"verifier {name!r} is {verifier!r}; give a function from Outcome to float")
            if not math.isfinite(weight) or weight < 0:
                raise ConfigError(f"verifier {name!r} has weight {weight!r}; a weight is a finite number of at least 0")
            self.verifiers[name] = cast(Verifier, verifier)
            self.weights[name] = float(weight)
        self._total = sum(self.weights.values())
        if self._total <= 0:
            raise ConfigError(
                "a rubric needs at least one verifier with a weight above 0: Rubric(solved=answer_equals)"
            )
        self.is_plain = not any(map(is_async, self.verifiers.values()))

    async def score(self, outcome: Outcome) -> Score:
        """Ask every verifier, in order. Raises TaskError where one fails or leaves [0, 1]."""
        parts: dict[str, float] = {}
        unscored: str | None = None
        for name, verifier in self.verifiers.items():
            verdict = await _ask(name, verifier, outcome)
            if isinstance(verdict, Unscored):
                unscored = unscored or f"{name}: {verdict.reason}"
            else:
                parts[name] = verdict
        if unscored is not None:
            return Score(0.0, parts, unscored)
        return Score(sum(self.weights[name] * part for name, part in parts.items()) / self._total, parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rubric:
        return self  # pure functions: snapshots share it


async def _ask(name: str, verifier: Verifier, outcome: Outcome) -> Verdict:
    try:
        verdict = verifier(outcome)
        if inspect.isawaitable(verdict):
            verdict = await verdict
    except AgentGymError:
        raise
    except Exception as error:
        raise TaskError(f"verifier {name!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(verdict, Unscored):
        return verdict
    try:
        reward = float(verdict)
    except (TypeError, ValueError):
        raise TaskError(
            f"verifier {name!r} gave {verdict!r}; it must give a float in [0, 1] or Unscored(reason)"
        ) from None
    if not 0.0 <= reward <= 1.0:  # NaN included
        raise TaskError(f"verifier {name!r} gave {reward}; a reward lies in [0, 1]")
    return reward


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine (functions, methods, and objects with an async `__call__`)."""
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def answer_equals(outcome: Outcome) -> float:
    """1.0 where the closing message is the task's answer, white space around it aside."""
    return float(outcome.answer is not None and outcome.answer == str(outcome.task.answer).strip())
