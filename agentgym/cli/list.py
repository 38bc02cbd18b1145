"""`agentgym list`: the environments that are installed, ours and third parties'.

Owns the table. Which there are is registry.py's business; one that cannot be made is a row that says why."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium.envs.registration import EnvSpec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agentgym.cli import say
from agentgym.cli.options import parse
from agentgym.env import AgentEnv
from agentgym.registry import list_envs, make

EXAMPLE = "agentgym list --json"
PEEK = 24  # tasks looked at for their horizons


@dataclass(frozen=True)
class ListConfig:
    """Show the environments that are installed: id, default horizons, splits, and what they are about."""

    json: bool = False
    """print as JSON"""


def main(argv: Sequence[str]) -> int:
    config = parse(ListConfig, argv, "agentgym list", EXAMPLE)
    rows = [describe(spec) for spec in list_envs()]
    if config.json:
        say(json.dumps(rows, indent=2))
        return 0
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("environment", "horizon", "about", "splits"):
        table.add_column(heading, no_wrap=heading == "environment", overflow="fold")
    for row in rows:
        table.add_row(row["id"], row["horizon"], row["about"], ", ".join(row["splits"]))
    Console().print(table)
    say("Try one: agentgym play ENV; measure a policy: agentgym eval ENV --model gold; add your own: CONTRIBUTING.md")
    return 0


def describe(spec: EnvSpec) -> dict[str, Any]:
    """One row. An environment that fails to be made, whatever the reason, is listed with that reason."""
    row: dict[str, Any] = {"id": spec.id, "horizon": "", "splits": [], "about": ""}
    env = None
    try:
        env = make(spec.id)
        world = env.unwrapped
        row["about"] = (inspect.getdoc(type(world)) or "").split("\n", 1)[0].partition(" Horizon:")[0]
        if isinstance(world, AgentEnv):
            row["splits"] = list(world.tasks.names)
            row["horizon"] = _horizons(world)
    except Exception as error:  # a third party's code may raise anything; the others are still to be listed
        row["about"] = f"cannot be used: {type(error).__name__}: {error}"
    finally:
        if env is not None:
            env.close()
    return row


def _horizons(world: AgentEnv) -> str:
    split = world.tasks.split(world.split)
    seen = {split[i].horizon for i in range(min(PEEK, len(split)))} - {None}
    if not seen:
        return "–"
    low, high = min(seen), max(seen)  # type: ignore[type-var]
    return f"{low}" if low == high else f"{low}–{high}"
