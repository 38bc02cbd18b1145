"""Wrappers of environments, with both faces: TextEnv, from strings to strings.

Owns the way through a chain of wrappers to the async face. How calls are spelt in text is syntax.py's business."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

import gymnasium
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from agentgym.env import AgentEnv
from agentgym.errors import ConfigError
from agentgym.spaces import Action, Observation, TextSpace
from agentgym.syntax import get_syntax

Obs = TypeVar("Obs")
Act = TypeVar("Act")


class AsyncFace(Protocol):
    """What a driver awaits."""

    async def areset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]: ...

    async def astep(self, action: Any) -> tuple[Any, float, bool, bool, dict]: ...

    async def aclose(self) -> None: ...


class Wrapper(gymnasium.Wrapper, Generic[Obs, Act]):
    """Base of wrappers that change observations and actions: a subclass writes `see` and `do`; both faces follow."""

    def see(self, observation: Any) -> Obs:
        """The wrapped environment's observation, as this one shows it."""
        raise NotImplementedError

    def do(self, action: Act) -> Any:
        """This environment's action, as the wrapped one takes it."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self.see(observation), info

    def step(self, action: Act) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(self.do(action))
        return self.see(observation), float(reward), terminated, truncated, info

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        observation, info = await self._inner.areset(seed=seed, options=options)
        return self.see(observation), info

    async def astep(self, action: Act) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = await self._inner.astep(self.do(action))
        return self.see(observation), reward, terminated, truncated, info

    async def aclose(self) -> None:
        await self._inner.aclose()

    @property
    def _inner(self) -> AsyncFace:
        face = async_face(self.env)
        if face is None:
            raise ConfigError(f"{self.env} holds a wrapper without an async face; use reset() and step()")
        return face


class TextEnv(Wrapper[str, str], RecordConstructorArgs):
    """From strings to strings: tools are explained and called in text, by a named syntax.

    Raises ConfigError for an unknown syntax, and for "structured", which spells no calls."""

    def __init__(self, env: gymnasium.Env[Observation, Action], syntax: str = "hermes") -> None:
        RecordConstructorArgs.__init__(self, syntax=syntax)  # so that the spec can make it again
        super().__init__(env)
        self.syntax = get_syntax(syntax)
        if syntax == "structured":
            raise ConfigError("syntax='structured' has no text form; use hermes, xml, react or code")
        self.observation_space = TextSpace()
        self.action_space = TextSpace()

    def see(self, observation: Observation) -> str:
        told = [] if observation["tools"] is None else [self.syntax.instructions(observation["tools"])]
        return "\n".join(part for part in (*told, *map(self.syntax.reply, observation["messages"])) if part)

    def do(self, action: str) -> Action:
        if not isinstance(action, str):
            raise ConfigError(f"an action of a TextEnv is a str, not {type(action).__name__}: {action!r:.80}")
        return self.syntax.parse(action)


def async_face(env: gymnasium.Env) -> AsyncFace | None:
    """The outermost object with `areset`, `astep` and `aclose` that skips nobody's wrapper; None where there is none.

    Gymnasium's checker and order enforcer are passed by: an AgentEnv itself refuses a step before reset."""
    while isinstance(env, gymnasium.Wrapper) and type(env) in (PassiveEnvChecker, OrderEnforcing):
        env = env.env
    if isinstance(env, AgentEnv):
        return env
    return env if isinstance(env, Wrapper) and async_face(env.env) is not None else None
