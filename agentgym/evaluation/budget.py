"""What an evaluation may spend: nothing is begun that could not be paid for.

Owns prices, limits and reservations. An episode begins while the budget holds it beside those under way, each taken to
cost as much as the dearest so far; a reply is asked for while the budget holds the most it can cost. Who plays is
rollout/driver.py's business."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gymnasium

from agentgym.env import Observation
from agentgym.errors import ConfigError
from agentgym.ledger import NONE, Episode, Ledger, Tokens
from agentgym.messages import Message
from agentgym.policies.base import Actor, Policy

PILOT = 4  # episodes that are played before the rest, where there is a limit: their cost is the first estimate
_EPISODE: ContextVar[object] = ContextVar("_EPISODE")  # the one that is played here; its many replies share it
AROUND, AROUND_TOOLS = 32, 1024  # most tokens that a chat template writes around a message, and around the tools


@dataclass(frozen=True)
class Budget:
    """Prices and limits of an evaluation. Limits hold for all of a run, those it was resumed with included; time for
    one call."""

    price_in: float | None = None
    """money per million prompt tokens"""
    price_out: float | None = None
    """money per million sampled tokens"""
    max_cost: float | None = None
    """most money; needs the prices"""
    max_total_tokens: int | None = None
    """most tokens of all episodes, prompts included"""
    max_time: float | None = None
    """most seconds from now"""

    def __post_init__(self) -> None:
        for name in ("price_in", "price_out", "max_cost", "max_total_tokens", "max_time"):
            value, is_price = getattr(self, name), name.startswith("price")
            if value is not None and not (0 < value < float("inf") or (is_price and value == 0)):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: give a number above 0")
        prices = self.price_in, self.price_out
        if prices.count(None) == 1 or (self.max_cost is not None and not any(prices)):
            raise ConfigError("money needs both --price-in and --price-out, per million tokens, and not both 0")

    def cost(self, tokens: Tokens) -> float | None:
        """Money; None where no price is known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens.prompt * self.price_in + tokens.sampled * self.price_out) / 1e6

    @property
    def limits_tokens(self) -> bool:
        return self.max_cost is not None or self.max_total_tokens is not None

    @property
    def has_limit(self) -> bool:
        return self.limits_tokens or self.max_time is not None

    def holds(self, tokens: Tokens) -> bool:
        """Whether so much may be spent."""
        return (self.max_total_tokens is None or tokens.total <= self.max_total_tokens) and (
            self.max_cost is None or (self.cost(tokens) or 0.0) <= self.max_cost
        )


class Meter:
    """Counts what a run spends, and says what it may still begin."""

    def __init__(
        self, budget: Budget, reply_tokens: int, spent: Tokens = NONE, *, before: Iterable[Episode] = (),
        record: Callable[[Tokens], object] = lambda tokens: None,
    ) -> None:  # fmt: skip
        """`reply_tokens` is the most that a reply can have; `before` what the run holds, `spent` what it has cost, if
        more. `record` is told, before it is, what will have been spent if all under way costs as much as it can."""
        self.budget = budget
        self.is_spent = asyncio.Event()
        self._reply_tokens, self._record = reply_tokens, record
        self._open: dict[object, Tokens] = {}  # what the episodes have paid that were admitted and have not ended
        self._dearest, self._slowest_s = NONE, 0.0
        self._asking: dict[object, Tokens] = {}  # the most that an episode's replies under way can cost
        self._largest = NONE  # of these so far, where they must fit at once
        self.spent = NONE  # tries that were thrown away included, and replies that were cut: the most they can cost
        for episode in before:
            self.spent += episode.tokens
            self._learn(episode, episode.tokens)
        self._num_uncounted = float("-inf") if self.spent.total else 0  # replies, until one has been counted
        self.spent = self.spent.at_least(spent)
        self._began = monotonic()
        self._asked = NONE  # the most that the replies under way can cost
        self._settled = asyncio.Event()

    def wrap(self, policy: Policy) -> Policy:
        """The same policy, paying as it goes."""
        return _Payer(self, policy)

    def admits(self) -> bool:
        """Whether another episode may begin; it counts as under way from here on."""
        limit_s = self.budget.max_time
        if limit_s is not None and monotonic() - self._began + self._slowest_s > limit_s:
            return False
        if self.budget.limits_tokens:
            paid = self._open.values()
            whole = sum((self._dearest.at_least(tokens + self._largest) - tokens for tokens in paid), self.spent)
            if not self.budget.holds(whole + self._dearest.at_least(self._largest)):
                return False
        _EPISODE.set(key := object())
        self._open[key] = NONE
        return True

    def ended(self, episode: Episode) -> None:
        """An admitted episode has ended."""
        self._asking.pop(_EPISODE.get(), None)
        self._learn(episode, self._open.pop(_EPISODE.get()))

    def cut(self) -> int:
        """Give up the episodes under way; how many had asked for anything (all, where nobody counts)."""
        num_cut = sum(paid.total > 0 or not self.budget.limits_tokens for paid in self._open.values())
        self._open.clear()
        return num_cut

    def _learn(self, episode: Episode, tokens: Tokens) -> None:
        self._dearest = self._dearest.at_least(tokens)
        self._slowest_s = max(self._slowest_s, sum(turn.policy_s + turn.env_s for turn in episode.turns))

    async def within(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it until it is done or the budget is spent."""
        left_s = None if self.budget.max_time is None else max(0.0, self.budget.max_time - monotonic() + self._began)
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self.is_spent.wait())
        try:
            await asyncio.wait((task, stop), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)
        if not task.cancelled():
            task.result()

    async def reserve(self, most: Tokens, *, waits: bool) -> None:
        """Wait until a reply that costs at most this fits beside those under way; for ever, where it never will. One
        that `waits` for nobody, since others wait for it, must fit at once."""
        key = _EPISODE.get()
        self._asking[key] = self._asking.get(key, NONE) + most
        self._largest = self._largest if waits else self._largest.at_least(self._asking[key])
        while not self.budget.holds(self.spent + self._asked + most):
            if not (waits and self._asked.total):
                self.is_spent.set()
            self._settled.clear()
            await self._settled.wait()
        self._record(self.spent + self._asked + most)
        self._asked += most

    def settle(self, most: Tokens, tokens: Tokens) -> None:
        """A reply for which so much was reserved has cost so much."""
        self.spent += tokens
        self._asked -= most
        self._asking[_EPISODE.get()] -= most
        self._open[_EPISODE.get()] += tokens
        self._settled.set()
        self._record(self.spent + self._asked)

    def counted(self, tokens: Tokens, most: Tokens) -> Tokens:
        """What a reply has cost: as much as it could, where nobody counted it. Raises ConfigError where nobody does,
        and a limit needs it."""
        if not self.budget.limits_tokens:
            return tokens
        self._num_uncounted = float("-inf") if tokens.prompt else self._num_uncounted + 1
        if self._num_uncounted == PILOT:
            raise ConfigError("this policy or its server does not count tokens: leave --max-cost and the like out")
        return tokens if tokens.prompt else most

    def most(self, last: Tokens, observation: Observation) -> Tokens:
        """The most that a reply can cost after one that cost `last`: a token has at least one byte. Nothing where no
        limit asks for it."""
        if not self.budget.limits_tokens:
            return NONE
        written = (json.dumps(message, ensure_ascii=False) for message in observation["messages"])
        said = sum(len(text.encode(errors="surrogatepass")) + AROUND for text in written)
        offered = len(json.dumps(observation["tools"]).encode()) + AROUND_TOOLS if observation["tools"] else 0
        return Tokens(last.total + said + offered, self._reply_tokens)


class _Payer:
    """A policy whose every reply is paid for."""

    def __init__(self, meter: Meter, policy: Policy) -> None:
        self.meter, self.policy = meter, policy

    def begin(self, env: gymnasium.Env, *, seed: int) -> Actor:
        return _PayingActor(self.meter, self.policy.begin(env, seed=seed))


class _PayingActor:
    def __init__(self, meter: Meter, actor: Actor) -> None:
        self._meter, self._actor = meter, actor
        self._last = NONE

    @property
    def ledger(self) -> Ledger | None:
        return self._actor.ledger

    async def act(self, observation: Observation) -> Message:
        ledger = self._actor.ledger
        before = NONE if ledger is None else ledger.tokens
        # a reply reads all again at a server; an engine keeps what it has read, and its episodes wait for one another
        most = self._meter.most(self._last if ledger is None else NONE, observation)
        await self._meter.reserve(most, waits=ledger is None)
        tokens = most  # where it is cut: a server may go on, and nobody says what it has cost
        try:
            message = await self._actor.act(observation)
            if ledger is None:
                self._last = tokens = self._cost(message, most)
        except Exception:
            tokens = NONE
            raise
        finally:
            self._meter.settle(most, tokens if ledger is None else ledger.tokens - before)
        return message

    def _cost(self, message: Message, most: Tokens) -> Tokens:
        is_message = isinstance(message, dict)
        if is_message and message.get("finish_reason") == "context" and not message.get("prompt_tokens"):
            return NONE
        return self._meter.counted(Tokens.of(message) if is_message and "num_tokens" in message else NONE, most)

    async def close(self) -> None:
        await self._actor.close()
