"""Run by a test: a training run whole, then ten that are killed at a random moment and started again. One line of JSON
each. Children are forked from a process that has imported everything and started no thread."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import torch
from test_loop import Letters, Run  # the harness of the tests beside this file

from agentgym.engines.causal import CausalLM, load_model, load_tokenizer
from agentgym.learner.loop import LoopConfig
from agentgym.loop import run_sync
from agentgym.rollout.store import Store

torch.set_num_threads(1)
gymnasium.register("tests/Killed-v0", entry_point=Letters)
KILLED = LoopConfig(updates=8, groups=4, group_size=4, minibatches=2, checkpoint_every=3)


def play(model: str, folder: Path) -> None:
    torch.use_deterministic_algorithms(True)
    run = Run(folder, CausalLM(load_model(model)), load_tokenizer(model), "tests/Killed-v0", config=KILLED)
    run_sync(run.go())
    weights, episodes, lines = run.end()
    ledgers = hashlib.sha256(repr(episodes).encode()).hexdigest()
    found = {"weights": weights, "episodes": len(episodes), "ledgers": ledgers}
    found["lines"] = [line["update"] for line in lines]  # type: ignore[assignment]
    (folder / "found.tmp").write_text(json.dumps(found))
    (folder / "found.tmp").replace(folder / "found.json")


def child(model: str, folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            play(model, folder)
        finally:
            sys.stderr.flush()
            os._exit(0)
    return pid


def result(folder: Path, **more: Any) -> None:
    print(json.dumps(json.loads((folder / "found.json").read_text()) | more), flush=True)


def main(model: str, path: str) -> None:
    chance, whole = random.Random(0), Path(path) / "whole"
    began = time.perf_counter()
    os.waitpid(child(model, whole), 0)
    took = time.perf_counter() - began
    result(whole)
    made = 0
    for attempt in range(40):
        folder = Path(path) / f"cut-{attempt}"
        pid = child(model, folder)
        time.sleep(chance.uniform(0.15, 0.95) * took)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if (folder / "found.json").exists() or not (folder / "run.sqlite").exists():
            continue  # too late, or too soon
        with Store(folder / "run.sqlite", readonly=True) as store:
            reached = max((update for update, *_ in store.keys("train")), default=0)
        os.waitpid(child(model, folder), 0)
        result(folder, killed_in=reached)
        made += 1
        if made == 10:
            return


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(*sys.argv[1:])
