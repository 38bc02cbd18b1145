"""`agentgym play`: be the policy yourself.

Owns the dialogue at the terminal. The world's answers are the environment's, the spelling of calls
policies/builtin.py's."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from agentgym.cli import Interrupted, say
from agentgym.cli.options import parse, settings
from agentgym.env import AgentEnv
from agentgym.errors import ConfigError
from agentgym.messages import transcript
from agentgym.policies.builtin import read_line
from agentgym.registry import make

EXAMPLE = "agentgym play agentgym/Door-v0 --task 3"


@dataclass(frozen=True)
class PlayConfig:
    """Play an environment yourself: read what the model would read, type what it would say."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """environment id; `agentgym list` shows them"""
    split: str = "train"
    """split of the task"""
    task: str | None = None
    """task id, or its index in the split; drawn by the seed without it"""
    seed: int = 0
    """seed of the task and of the environment's chance"""
    set: tuple[str, ...] = ()
    """arguments of the environment, name=JSON: --set horizon=8"""


def main(argv: Sequence[str]) -> int:
    config = parse(PlayConfig, argv, "agentgym play", EXAMPLE)
    env = make(config.env, **{"split": config.split, **settings(config.set)})
    try:
        if not isinstance(env.unwrapped, AgentEnv):
            raise ConfigError(f"{config.env} is no agentgym.AgentEnv: it does not speak in messages")
        play(env, config)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted("\nLeft; nothing is recorded.") from None
    finally:
        env.close()
    return 0


def play(env: Any, config: PlayConfig) -> None:
    """One episode, line by line."""
    observation, info = env.reset(seed=config.seed, options=_options(config.task))
    say(f"task {info['task_id']}, horizon {info['metadata'].get('horizon', '–')}")
    tools: list[str] = []
    done, reward = False, 0.0
    while not done:
        say(transcript(observation["messages"]))
        if observation["tools"] is not None:
            tools = [tool["function"]["name"] for tool in observation["tools"]]
            say("\n".join(map(_usage, observation["tools"])))
            say("A line that begins with a tool's name calls it; any other line is your answer.")
        sys.stdout.write("> ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            raise Interrupted("\nThe input has ended; nothing is recorded.")
        observation, gained, terminated, truncated, info = env.step(read_line(line, tools))
        reward += gained
        done = terminated or truncated
    say(transcript(observation["messages"]))
    parts = ", ".join(f"{name} {value:g}" for name, value in info["reward_parts"].items())
    verdict = f"not scored: {info['unscored']}" if "unscored" in info else f"reward {reward:g} ({parts})"
    say(f"ended: {info['stop_reason']}; {verdict}")


def _options(task: str | None) -> dict[str, Any]:
    if task is None:
        return {}
    return {"task": int(task) if task.lstrip("-").isdecimal() else task}


def _usage(tool: Mapping[str, Any]) -> str:
    function = tool["function"]
    fields = function["parameters"].get("properties", {})
    wanted = " ".join(f"{name}={field.get('type', json.dumps(field))}" for name, field in fields.items())
    return f"  {function['name']} {wanted}".rstrip() + f"    {function.get('description', '')}".rstrip()
