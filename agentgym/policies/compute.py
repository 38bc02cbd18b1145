"""Test-time compute: more tokens for one message, by choosing among several or by asking again.

Owns the three wrappers of a policy and what they make it cost: a message counts the tokens of all that was said for
it. Any policy can be wrapped; each reply comes from an actor of its own, which finds the conversation so far in its
first observation. Nothing of that can train: the ledger is None."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium

from agentgym.env import Observation
from agentgym.errors import ConfigError, TaskError
from agentgym.messages import JSON, Message, canonical, user
from agentgym.plugins import called
from agentgym.policies.base import Policy
from agentgym.rollout.driver import derive_seed

Verifier = Callable[[Sequence[Message], Message], float | Awaitable[float]]  # conversation and reply -> how good
AGAIN = "Wait. Check this again, then give your answer."
NOW = "Time is up. Give your answer now."


class Ask(Protocol):
    """One more reply to the conversation, with `more` said after it."""

    def __call__(self, nth: int, *more: Message) -> Awaitable[Message]: ...


class Plan(Protocol):
    """How one message comes about -> all that was said for it, and which of it counts."""

    async def __call__(self, messages: Sequence[Message], ask: Ask) -> tuple[list[Message], int]: ...


@dataclass(frozen=True, slots=True)
class BestOf:
    """The reply that the verifier finds best, of `n` (best-of-n; Cobbe et al. 2021); the first of equals."""

    n: int
    verifier: Verifier

    async def __call__(self, messages: Sequence[Message], ask: Ask) -> tuple[list[Message], int]:
        said = await _several(ask, self.n)
        scores = [await _scored(self.verifier, messages, message) for message in said]
        return said, max(range(len(said)), key=lambda i: scores[i])


@dataclass(frozen=True, slots=True)
class Majority:
    """The reply that most of `n` agree on, the earliest where several do (self-consistency; Wang et al. 2023). Replies
    agree that make the same calls, or without calls have the same answer: their last line, spaces and case apart."""

    n: int

    async def __call__(self, messages: Sequence[Message], ask: Ask) -> tuple[list[Message], int]:
        said = await _several(ask, self.n)
        votes = [_vote(message) for message in said]
        ((winner, _),) = Counter(votes).most_common(1)  # of equals, the first that was met
        return said, votes.index(winner)


@dataclass(frozen=True, slots=True)
class Forced:
    """The last reply, after the policy was told `again` times to check itself; a reply that was cut by its limit is
    asked for the bare answer. Budget forcing (s1; Muennighoff et al. 2025) between messages, where a server lets
    nobody write into the thought itself."""

    again: int

    async def __call__(self, messages: Sequence[Message], ask: Ask) -> tuple[list[Message], int]:
        said = [await ask(0)]
        more: list[Message] = []
        for nth in range(1, self.again + 1):
            if said[-1].get("tool_calls") or said[-1].get("finish_reason") == "context":
                break  # it acts, or there is no room to think
            more += [said[-1], user(AGAIN)]
            said.append(await ask(nth, *more))
        if said[-1].get("finish_reason") == "length":
            said.append(await ask(self.again + 1, *more, said[-1], user(NOW)))
        return said, len(said) - 1


class Computed:
    """A policy whose every message comes about by a plan."""

    def __init__(self, policy: Policy, plan: Plan) -> None:
        for name in ("n", "again"):
            if getattr(plan, name, 1) < 1:
                raise ConfigError(f"{type(plan).__name__} with {name} {getattr(plan, name)}: give at least 1")
        self.policy = policy
        self.plan = plan

    def begin(self, env: gymnasium.Env, *, seed: int) -> ComputedActor:
        return ComputedActor(self, env, seed)


class ComputedActor:
    """One episode's conversation, of which the wrapped policy sees what was chosen."""

    ledger = None

    def __init__(self, owner: Computed, env: gymnasium.Env, seed: int) -> None:
        self._owner, self._env, self._seed = owner, env, seed
        self._messages: list[Message] = []
        self._tools: list[dict[str, JSON]] | None = None
        self._turn = 0

    async def act(self, observation: Observation) -> Message:
        self._tools = self._tools if observation["tools"] is None else observation["tools"]
        self._messages += observation["messages"]
        said, chosen = await self._owner.plan(tuple(self._messages), self._ask)
        self._turn += 1
        message: dict[str, Any] = dict(said[chosen])
        for name in ("num_tokens", "prompt_tokens"):
            if known := [count for each in said if isinstance(count := each.get(name), int)]:
                message[name] = sum(known)
        self._messages.append(message)  # type: ignore[arg-type]
        return message  # type: ignore[return-value]

    async def _ask(self, nth: int, *more: Message) -> Message:
        seed = self._seed if not self._turn and not nth else derive_seed(self._seed, self._turn, nth)
        actor = self._owner.policy.begin(self._env, seed=seed)
        try:
            message = await actor.act({"messages": [*self._messages, *more], "tools": self._tools})
            if actor.ledger is None:
                return message
            tokens = actor.ledger.tokens  # which goes with its actor
            return {**message, "num_tokens": tokens.sampled, "prompt_tokens": tokens.prompt}
        finally:
            await actor.close()

    async def close(self) -> None:
        """Nothing is held between messages."""


async def _several(ask: Ask, n: int) -> list[Message]:
    """So many replies at once; where one fails the others are not waited for, nor paid."""
    asked = [asyncio.ensure_future(ask(nth)) for nth in range(n)]
    try:
        return await asyncio.gather(*asked)
    finally:
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _scored(verifier: Verifier, messages: Sequence[Message], message: Message) -> float:
    score = await called(verifier, TaskError, *deepcopy((messages, message)))
    try:
        if math.isfinite(score):
            return float(score)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TaskError(f"the verifier gave {score!r:.80}, which is no number")  # which is not the policy's fault


def _vote(message: Message) -> object:
    if calls := message.get("tool_calls"):
        return tuple((call["function"]["name"], _meant(call["function"]["arguments"])) for call in calls)
    lines = message["content"].strip().splitlines()
    return "".join(lines[-1].split()).casefold() if lines else ""


def _meant(arguments: str) -> str:
    try:
        return canonical(json.loads(arguments))
    except (ValueError, RecursionError):
        return arguments
