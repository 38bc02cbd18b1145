"""Kills an evaluation at every statement that it sends to its store, one session after the other, until it is done.

argument: number of episodes. Prints one line of JSON: sessions, and whether union, records and figures are those of an
uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import agentgym_envs  # noqa: F401  registers, before the first fork

from agentgym.evaluation.intervals import wilson
from agentgym.evaluation.run import evaluate
from agentgym.loop import run_sync
from agentgym.policies.builtin import builtin
from agentgym.rollout.store import Store

KILLED = -signal.SIGKILL


def played(path: Path, episodes: int, kill_at: int | None = None) -> dict[str, Any]:
    """The evaluation, from what is stored on. Dies before statement number `kill_at`."""
    store, seen = Store(path), 0

    def count(statement: str) -> None:
        nonlocal seen
        seen += statement.startswith(("BEGIN", "INSERT", "DELETE", "COMMIT"))
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    store._db.set_trace_callback(count)
    evaluation = run_sync(
        evaluate(
            "agentgym/Lookup-v0", builtin("demonstrator"), store=store, run="eval", limit=episodes // 2, attempts=2,
            seed=3, concurrency=4,
        )
    )  # fmt: skip
    store.close()
    return {name: value for name, value in evaluation.as_json().items() if name != "seconds_episodes"}


def forked(path: Path, episodes: int, kill_at: int) -> int:
    """The exit code of a session in a process of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            played(path, episodes, kill_at)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rows(path: Path) -> dict[tuple, tuple]:
    """Key -> record, of what is stored now."""
    with Store(path, readonly=True) as store:
        found = store._db.execute("SELECT run, task_id, attempt, reward, record FROM episodes").fetchall()
    return {row[:3]: row[3:] for row in found}


def main(episodes: int) -> dict[str, Any]:
    wilson(1, 2)  # imports what the children would import again and again
    with tempfile.TemporaryDirectory() as folder:
        path, whole = Path(folder) / "killed.sqlite", Path(folder) / "whole.sqlite"
        Store(path).close()
        before: dict[tuple, tuple] = {}
        sessions, num_lost, kill_at = 0, 0, 1
        while True:
            code = forked(path, episodes, kill_at)
            sessions += 1
            now = rows(path)
            num_lost += any(now.get(key) != record for key, record in before.items())
            if code == 0:
                break
            assert code == KILLED, code
            # the next boundary: one statement further, or the first again after an episode was finished
            kill_at = 1 if len(now) > len(before) else kill_at + 1
            before = now
        uninterrupted = played(whole, episodes)
        return {
            "sessions": sessions, "num_lost": num_lost, "same_union": set(rows(path)) == set(rows(whole)),
            "num_stored": len(rows(path)), "same_figures": played(path, episodes) == uninterrupted,
        }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
