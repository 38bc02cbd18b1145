"""Policies that need no model: gold, nop, random, scripted, demonstrator, human.

Owns what they do; what a policy is says base.py. `builtin(name)` finds one by its name."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from agentgym.env import AgentEnv, Observation
from agentgym.errors import ConfigError, nearest
from agentgym.messages import JSON, Message, assistant, raw_call, transcript
from agentgym.policies.base import Policy
from agentgym.spaces import sample_text

Answer = Callable[[Observation], Message | str | Any]


class _FunctionActor:
    """An actor that is one plain or async function, and has no tokens."""

    ledger = None

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def act(self, observation: Observation) -> Message:
        message = self._answer(observation)
        if inspect.isawaitable(message):
            message = await message
        return assistant(message) if isinstance(message, str) else message

    async def close(self) -> None:
        """Nothing is held."""


class Gold:
    """Plays the environment's own solution."""

    def begin(self, env: gymnasium.Env, *, seed: int) -> _FunctionActor:
        world = _agent_env(env)

        async def answer(observation: Observation) -> Message:
            return _given(await _settled(world.gold()), world, "gold()")

        return _FunctionActor(answer)


class Demonstrator:
    """Plays the environment's deliberately weak demonstrator: what a warm start imitates."""

    def begin(self, env: gymnasium.Env, *, seed: int) -> _FunctionActor:
        world, rng = _agent_env(env), np.random.default_rng(seed)

        async def answer(observation: Observation) -> Message:
            return _given(await _settled(world.demonstrate(rng)), world, "demonstrate()")

        return _FunctionActor(answer)


class Nop:
    """Says nothing, which ends the episode."""

    def begin(self, env: gymnasium.Env, *, seed: int) -> _FunctionActor:
        return _FunctionActor(lambda observation: assistant(""))


class Random:
    """Calls random tools with random arguments of the right types, and at times answers at random."""

    def begin(self, env: gymnasium.Env, *, seed: int) -> _FunctionActor:
        rng = np.random.default_rng(seed)
        tools: list[dict[str, JSON]] = []

        def answer(observation: Observation) -> Message:
            nonlocal tools
            tools = tools if observation["tools"] is None else observation["tools"]
            if not tools or rng.random() < 0.2:
                return assistant(sample_text(rng))
            function = tools[int(rng.integers(len(tools)))]["function"]
            fields: Mapping[str, JSON] = function["parameters"].get("properties", {})
            arguments = {name: _sample(field, rng) for name, field in fields.items()}
            return assistant("", raw_call(function["name"], json.dumps(arguments, ensure_ascii=False)))

        return _FunctionActor(answer)


class Scripted:
    """Says what it is told to, turn by turn: messages, texts, or functions of the observation; then nothing."""

    def __init__(self, script: Sequence[Message | str | Answer]) -> None:
        self.script = list(script)

    def begin(self, env: gymnasium.Env, *, seed: int) -> _FunctionActor:
        lines = iter(self.script)

        def answer(observation: Observation) -> Message | str | Any:
            line = next(lines, "")
            return line(observation) if callable(line) else line

        return _FunctionActor(answer)


class Human:
    """Shows each observation on the terminal and reads a line: an answer, or a call such as `lookup key=33`."""

    def begin(self, env: gymnasium.Env, *, seed: int) -> _FunctionActor:
        names: list[str] = []

        async def answer(observation: Observation) -> Message:
            if observation["tools"] is not None:
                names[:] = [tool["function"]["name"] for tool in observation["tools"]]
            _say(transcript(observation["messages"]))
            _say(f"(tools: {', '.join(names) or 'none'}; `tool name=value …` calls one, anything else is your answer)")
            return read_line(await asyncio.to_thread(sys.stdin.readline), names)

        return _FunctionActor(answer)


def read_line(line: str, tools: Sequence[str]) -> Message:
    """What a person typed, as a message: `lookup key=33` is a call where `lookup` is a tool, else the text is meant."""
    name, _, rest = line.strip().partition(" ")
    if name not in tools:
        return assistant(line.strip())
    pairs = (word.partition("=") for word in rest.split())
    arguments = {key: int(value) if _is_integer(value) else value for key, _, value in pairs}
    return assistant("", raw_call(name, json.dumps(arguments, ensure_ascii=False)))


def _is_integer(text: str) -> bool:
    """Whether a text is how an integer is written: 44 and -7, but not the code 0044."""
    digits = text.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and (digits == "0" or not digits.startswith("0"))


_POLICIES: Mapping[str, Callable[[], Policy]] = {
    "gold": Gold, "nop": Nop, "random": Random, "demonstrator": Demonstrator, "human": Human,
}  # fmt: skip
NAMES = tuple(_POLICIES)


def builtin(name: str) -> Policy:
    """The policy of that name (`Scripted` needs its script, so it has none). Raises ConfigError naming the nearest."""
    if name not in _POLICIES:
        raise ConfigError(f"no built-in policy {name!r}{nearest(name, NAMES)} There are {', '.join(NAMES)}")
    return _POLICIES[name]()


def _agent_env(env: gymnasium.Env) -> AgentEnv:
    if not isinstance(env.unwrapped, AgentEnv):
        raise ConfigError(f"{env.unwrapped!r:.80} is no AgentEnv: it has no gold or demonstrator to play")
    return env.unwrapped


def _given(message: Message | None, world: AgentEnv, method: str) -> Message:
    if message is None:
        raise ConfigError(
            f"{type(world).__name__}.{method} has nothing to say on turn {world.num_turns} of {world.task_id}"
        )
    return message


async def _settled(message: Any) -> Any:
    return await message if inspect.isawaitable(message) else message


def _sample(field: Mapping[str, JSON], rng: np.random.Generator) -> JSON:
    """A random value of a JSON schema's simple type."""
    if choices := field.get("enum"):
        return choices[int(rng.integers(len(choices)))]
    match field.get("type"):
        case "integer":
            return int(rng.integers(100))
        case "number":
            return float(rng.normal())
        case "boolean":
            return bool(rng.integers(2))
        case "array":
            return [_sample(field.get("items", {}), rng) for _ in range(int(rng.integers(3)))]
        case "object":
            return {}
        case "null":
            return None
    return sample_text(rng)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
