"""Run 28: Boxoban levels in Game-v0, played at random and by its solver."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import numpy as np

from acceptance_runs.base import Found, Setup, run
from agentgym import Message, assistant, call
from agentgym.registry import make

GAME = "agentgym/Game-v0"
SETS = ("unfiltered", "medium", "hard")  # by difficulty
NUM_CALLS = 20  # of a random plan
NUM_BOXES = 4  # of every published level


class Level:
    """One level and what its plans showed."""

    def __init__(self, env: Any, task_id: str) -> None:
        self.env, self.task_id = env, task_id

    def play(self, plan: list[Message] | None) -> tuple[list[Message], list[str], list[float]]:
        """The messages (gold's own where no plan is given), every board from the first on, and the rewards."""
        world = self.env.unwrapped
        observation, _ = self.env.reset(seed=0, options={"task": self.task_id})
        said, boards, rewards = [], [board(observation)], []
        while world.stop_reason is None:
            message = world.gold() if plan is None else plan[len(said)] if len(said) < len(plan) else assistant("")
            if message is None:
                break
            observation, reward, *_ = self.env.step(message)
            said.append(message)
            rewards.append(reward)
            if observation["messages"]:
                boards.append(board(observation))
        return said, boards, rewards

    def random_plan(self, rng: np.random.Generator) -> list[Message]:
        return [assistant("", call("move", moves="".join(rng.choice(list("udlr"), 10)))) for _ in range(NUM_CALLS)]

    def faults(self, number: int) -> Counter[str]:
        """What is wrong with it, by kind: nothing, one hopes."""
        found: Counter[str] = Counter()
        plan = self.random_plan(np.random.default_rng(number))
        said, boards, rewards = self.play(plan)
        found["random plan solved"] += rewards[-1] == 1.0
        found["random plan replayed otherwise"] += self.play(said) != (said, boards, rewards)
        found.update(broken(boards, rewards))
        said, boards, rewards = self.play(None)
        if not rewards or rewards[-1] != 1.0:
            found["no plan by the solver"] += 1
            return found
        found["solver plan replayed otherwise"] += self.play(said) != (said, boards, rewards)
        found.update(broken(boards, rewards))
        found["reward without the last push"] += self.play(shortened(said))[2][-1] != 0.0
        found["calls of solver plans"] += len(said)
        return found


def broken(boards: list[str], rewards: list[float]) -> Counter[str]:
    """Breaches of what holds for every board and every reward."""
    found: Counter[str] = Counter()
    for shown in boards:
        cells = Counter(shown)
        boxes, goals, players = cells["$"] + cells["*"], cells["."] + cells["*"] + cells["+"], cells["@"] + cells["+"]
        found["a box, goal or player lost"] += (boxes, goals, players) != (NUM_BOXES, NUM_BOXES, 1)
    early = sum(reward != 0.0 for reward in rewards[:-1]) + sum("$" not in shown for shown in boards[:-1])
    found["reward before the last box, or none at it"] += early + (rewards[-1] != float("$" not in boards[-1]))
    return found


def board(observation: Any) -> str:
    lines = observation["messages"][-1]["content"].split("\n")
    return "\n".join(line for line in lines if line.startswith("#"))


def shortened(plan: list[Message]) -> list[Message]:
    """The plan without its last move."""
    *before, last = plan
    moves = json.loads(last["tool_calls"][0]["function"]["arguments"])["moves"][:-1]  # type: ignore[index]
    return [*before, assistant("", call("move", moves=moves))] if moves else before


@run(28, "sokoban")
def sokoban(setup: Setup) -> Found:
    num_records = num_loaded = number = 0
    found: Counter[str] = Counter()
    for difficulty, name in enumerate(SETS):
        text = gzip.decompress((setup.data / "boxoban" / f"{name}.jsonl.gz").read_bytes()).decode()
        num_records += sum(bool(line.strip()) for line in text.splitlines())
        env = make(GAME, game="sokoban", data=str(setup.data), difficulty=difficulty)
        tasks = env.unwrapped.tasks
        for split in map(tasks.split, tasks.names):
            num_loaded += len(split)
            for index in range(len(split)):
                found.update(Level(env, split.id(index)).faults(number))
                number += 1
        env.close()
    lucky, unsolved = found.pop("random plan solved"), found["no plan by the solver"]
    num_calls = found.pop("calls of solver plans")
    faults = {kind: count for kind, count in found.items() if count}
    return Found(
        records=num_loaded,
        expected=f"{num_records} levels load; solver plans {num_records}/{num_records}; no fault",
        observed=f"{num_loaded} levels load; solver plans {num_loaded - unsolved}/{num_loaded}, "
        f"{num_calls / max(1, num_loaded - unsolved):.4f} calls each; random plans that solve {lucky}; "
        + ("; ".join(f"{kind} {count}" for kind, count in faults.items()) or "no fault"),
        passed=num_loaded == num_records > 0 and not faults,
        skipped={"left out by the loader": num_records - num_loaded} if num_records != num_loaded else {},
    )
