"""Runs 5 and 6: programs and predictions of public benchmarks, judged by Code-v0 in sandboxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from acceptance_runs.base import Found, Setup, num_solved, play, run
from agentgym import AgentEnv, Message, assistant, call
from agentgym.ledger import Episode
from agentgym.policies.builtin import Gold, Scripted
from agentgym.registry import make

CODE = "agentgym/Code-v0"
NUM_HOSTILE = 8  # records of each set that a hostile program is tried on
OUTSIDE = ("/usr/agentgym-outside", "/etc/agentgym-outside", "/agentgym-outside")
HOSTILE: Mapping[str, str] = {
    "endless loop": "while True: pass\n",
    "fork bomb": "import os\nwhile True: os.fork()\n",
    "write outside": f"for path in {OUTSIDE!r}:\n    open(path, 'w').write('here')\n",
    "sys.exit(0)": "import sys\nsys.exit(0)\n",
}


class Changed:
    """Plays gold, with the program it hands in changed by `change(program, task)`."""

    def __init__(self, change: Callable[[str, Any], str]) -> None:
        self.change = change

    def begin(self, env: Any, *, seed: int) -> Any:
        world: AgentEnv = env.unwrapped

        def answer(_: Any) -> Message:
            (message,) = world.task.gold or ()
            code = json.loads(message["tool_calls"][0]["function"]["arguments"])["code"]  # type: ignore[index]
            return assistant("", call("submit", code=self.change(code, world.task)))

        return Scripted([answer]).begin(env, seed=seed)


def everywhere(setup: Setup, policy: Any, layout: str, limit: int | None = None) -> list[Episode]:
    """The policy on every record of a layout, or on about `limit` of them, spread evenly."""
    kwargs: dict[str, Any] = {"layout": layout, "data": str(setup.data)}
    env = make(CODE, sandbox=setup.backend, **kwargs)
    ids = {name: env.unwrapped.tasks.split(name) for name in env.unwrapped.tasks.names}
    tasks = {name: [split.id(index) for index in range(len(split))] for name, split in ids.items()}
    env.close()
    stride = max(1, sum(map(len, tasks.values())) // limit) if limit else 1
    return [
        episode
        for name, found in tasks.items()
        for episode in play(setup, CODE, policy, split=name, only=found[::stride], **kwargs)
    ]


def return_none(code: str, task: Any) -> str:
    """The task's program with a body that only returns None."""
    return task.data["prelude"] + "    return None\n"


def no_file_outside() -> bool:
    return not any(Path(path).exists() for path in OUTSIDE)


@run(5, "code sandbox")
def code_sandbox(setup: Setup) -> Found:
    gold = {name: everywhere(setup, Gold(), name) for name in ("humaneval", "mbpp", "mbpp_sanitized")}
    nothing = everywhere(setup, Changed(return_none), "humaneval")
    hostile: dict[str, list[Episode]] = {}
    for name, attack in HOSTILE.items():
        before = Changed(lambda code, task, attack=attack: attack + code)
        hostile[name] = [
            e for layout in ("humaneval", "mbpp") for e in everywhere(setup, before, layout, limit=NUM_HOSTILE)
        ]
    expected = [f"{name} {len(found)}/{len(found)}" for name, found in gold.items()]
    observed = [f"{name} {num_solved(found)}/{len(found)}" for name, found in gold.items()]
    expected += [f"return None 0/{len(nothing)}"] + [f"{name} 0/{len(found)}" for name, found in hostile.items()]
    observed += [f"return None {num_solved(nothing)}/{len(nothing)}"]
    observed += [f"{name} {num_solved(found)}/{len(found)}" for name, found in hostile.items()]
    clean = no_file_outside()
    return Found(
        records=sum(map(len, gold.values())),
        expected="; ".join([*expected, "no file outside"]),
        observed="; ".join([*observed, "no file outside" if clean else "A FILE OUTSIDE"]),
        passed=expected == observed and clean and all(gold.values()),
    )


@run(6, "output prediction")
def output_prediction(setup: Setup) -> Found:
    gold = everywhere(setup, Gold(), "cruxeval")
    wrong = everywhere(setup, Scripted([lambda _: assistant("('no', 'such', 'value')")]), "cruxeval")
    expected = f"{len(gold)}/{len(gold)}; another value 0/{len(wrong)}"
    observed = f"{num_solved(gold)}/{len(gold)}; another value {num_solved(wrong)}/{len(wrong)}"
    return Found(len(gold), expected, observed, passed=expected == observed and bool(gold))
