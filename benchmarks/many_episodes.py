"""Two runs of 100,000 episodes: how large their files are, and how soon `agentgym show` and `agentgym compare` answer.

An episode has four turns, three of them with a tool call, and a ledger of 280 tokens, 120 of them sampled. Each command
is a process of its own, timed from its start to its end, the best of three.

example: python benchmarks/many_episodes.py --episodes 100000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn
from agentgym.messages import Message, assistant, call, system, tool_result, user
from agentgym.rollout.store import Store

RESULTS = Path(__file__).parent / "results" / "many_episodes.json"
LIMIT_S = 2.0
ATTEMPTS = 4
TOOL = {"type": "function", "function": {"name": "lookup", "description": "Look up.", "parameters": {"type": "object"}}}


def episode(number: int, won: bool, rng: np.random.Generator) -> Episode:
    said: list[Message] = [system("Use the tool."), user(f"Start at {number // ATTEMPTS}. Find the first red key.")]
    for turn in range(3):
        asked = call("lookup", key=int(rng.integers(10**6)))
        said.append(assistant(f"I look at entry {turn}.", asked))
        said.append(tool_result(asked, f"Blue; next {rng.integers(10**6)}, see also {rng.integers(10**6)}."))
    ledger = Ledger()
    for turn in range(4):
        ledger.append(Segment(rng.integers(0, 50_000, 40), Source.OBSERVED, turn))
        ledger.append(Segment(rng.integers(0, 50_000, 30), Source.SAMPLED, turn, -rng.random(30), 0))
    return Episode(
        run="eval", update=0, task_id=f"test:{number // ATTEMPTS:012x}", attempt=number % ATTEMPTS, seed=number,
        split="test", group=number // ATTEMPTS, env_id="agentgym/Lookup-v0", env_version="v0",
        messages=(*said, assistant("The answer is 7.")), turns=(Turn(0.0, "here", 0.1, 0.001),) * 4,
        reward=float(won), reward_parts={"right": float(won)}, terminated=True, truncated=False,
        stop_reason=StopReason.ANSWERED, ledger=ledger, metadata={"horizon": 3}, tools=(TOOL,),
    )  # fmt: skip


def write(folder: Path, count: int, better: float) -> tuple[float, float]:
    """A run of so many episodes: bytes and seconds of the store for each."""
    folder.mkdir()
    rng, seconds = np.random.default_rng(0), 0.0
    rates = rng.beta(1, 1, count // ATTEMPTS + 1)
    with Store(folder / "run.sqlite") as store:
        for number in range(count):
            made = episode(number, bool(rng.random() < rates[number // ATTEMPTS] + better), rng)
            began = perf_counter()
            store.add(made, {"prompt": made.messages[1]["content"], "answer": "1"})
            seconds += perf_counter() - began
    return (folder / "run.sqlite").stat().st_size / count, seconds / count


def timed(*args: str, cwd: Path) -> float:
    command = [Path(sys.executable).with_name("agentgym"), *args]
    best = float("inf")
    for _ in range(3):
        began = perf_counter()
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)
        best = min(best, perf_counter() - began)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100_000)
    count = parser.parse_args().episodes
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        size, add_s = write(here / "a", count, 0.0)
        write(here / "b", count, 0.02)
        took = {
            " ".join(args): timed(*args, cwd=here)
            for args in (("show", "a"), ("show", "a", "--episode", str(count - 1)), ("compare", "a", "b"))
        }
    print(f"{count:,} episodes a run: {size:,.0f} bytes and {1e3 * add_s:.2f} ms to store each")
    for command, seconds in took.items():
        print(f"agentgym {command:<26}{seconds:>7.2f} s")
    told = {"episodes": count, "bytes_each": size, "store_s_each": add_s, "seconds": took}
    told |= {"python": platform.python_version(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    return int(max(took.values()) >= LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
