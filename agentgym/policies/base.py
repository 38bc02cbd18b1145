"""What a policy is: observations in, messages out, and (where it samples tokens) a ledger of exactly what happened.

Owns the two protocols. A Policy serves many episodes at once; an Actor is its side of one episode."""

from __future__ import annotations

from typing import Protocol

import gymnasium

from agentgym.env import Observation
from agentgym.ledger import Ledger
from agentgym.messages import Message


class Actor(Protocol):
    """One episode's worth of a policy."""

    @property
    def ledger(self) -> Ledger | None:
        """The tokens so far; None for a policy that has none (gold, human, HTTP)."""
        ...

    async def act(self, observation: Observation) -> Message:
        """The next assistant message. Model failures become messages, never exceptions."""
        ...

    async def close(self) -> None:
        """The episode is over: `observation` of its last step was never answered."""
        ...


class Policy(Protocol):
    """Opens an actor per episode. The environment is handed over for gold, demonstrator and human policies;
    a policy that learns or is evaluated has no business with it."""

    def begin(self, env: gymnasium.Env, *, seed: int) -> Actor: ...
