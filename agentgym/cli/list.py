"""`agentgym list`: the environments that are installed, ours and third parties'; and what the learner can combine.

Owns the tables. Which environments there are is registry.py's business (one that cannot be made is a row that says
why), which objectives go with what is learner/composition.py's."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from gymnasium.envs.registration import EnvSpec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agentgym.cli import say
from agentgym.cli.options import parse
from agentgym.env import AgentEnv
from agentgym.registry import list_envs, make

EXAMPLE = "agentgym list learner"
PEEK = 24  # tasks looked at for their horizons


@dataclass(frozen=True)
class ListConfig:
    """Show the environments that are installed (id, default horizons, splits, what they are about), or what the learner
    can combine: objectives, scopes, corrections, credits, and why the rest is refused."""

    what: Annotated[Literal["environments", "learner"], tyro.conf.Positional] = "environments"
    """environments or learner"""
    json: bool = False
    """print as JSON"""


def main(argv: Sequence[str]) -> int:
    config = parse(ListConfig, argv, "agentgym list", EXAMPLE)
    if config.what == "learner":
        return _learner(config.json)
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


def _learner(as_json: bool) -> int:
    from agentgym.learner import composition, credit  # noqa: PLC0415  torch, seconds

    rows = composition.combinations()
    if as_json:
        say(json.dumps(rows, indent=2))
        return 0
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("objective", "scopes", "corrections", "refused"):
        table.add_column(heading, overflow="fold")
    for name in dict.fromkeys(row["objective"] for row in rows):
        mine = [row for row in rows if row["objective"] == name]
        legal = [row for row in mine if not row["refused"]]
        reasons = dict.fromkeys(row["refused"].partition(":")[0] for row in mine if row["refused"])
        found = [", ".join(dict.fromkeys(row[column] for row in legal)) for column in ("scope", "correction")]
        table.add_row(name, *found, "\n".join(reasons))
    Console().print(table)
    for _, reason in composition.RULES:
        say(f"  refused: {reason}")
    say(f"Each objective goes with every credit: {', '.join(credit.CREDITS)}.")
    say(f"{' and '.join(credit.NEEDS_STATES)} need an environment that names its states, all but rebn groups of two.")
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
