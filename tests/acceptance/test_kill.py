"""The real command, killed for good at any moment and resumed: the same weights, nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentgym.learner.metrics import read_metrics
from agentgym.rollout.store import Store

pytestmark = pytest.mark.acceptance

# Somebody's environment, in a module of his own: every update has something to teach, even to a model that babbles.
BABBLE = '''
from agentgym import AgentEnv, Rubric, Task, TaskSet, assistant, register

def said(outcome):
    return "".join(m["content"] for m in outcome.messages if m["role"] == "assistant")

class Babble(AgentEnv):
    """Two turns; the share of letters in what is said is the reward."""

    tasks = TaskSet.procedural(lambda rng: Task(f"Say {rng.integers(10**6)}.", metadata={"horizon": 2}))
    rubric = Rubric(letters=lambda o: sum(c in "aeiou" for c in said(o)) / max(1, len(said(o))))
    max_turns, blocking = 2, False

    def respond(self, message):
        return f"{len(message['content'])} letters, {self.np_random.integers(100)}."

    def demonstrate(self, rng):
        return assistant("".join(rng.choice(list("abcdefgh ,."), 6)))

    def state_key(self):
        return str(len(self.messages[1]["content"]) % 3)

register("acme/Babble-v0", "babble:Babble")
'''
COUNTS = {
    "updates": 4, "groups": 6, "group-size": 4, "warm-steps": 30, "demonstrations": 200, "eval-limit": 12,
    "checkpoint-every": 2, "threads": 1, "max-tokens": 24, "control-steps": 0, "seed": 5,
}  # fmt: skip
SMALL = [text for name, value in COUNTS.items() for text in (f"--{name}", str(value))]
RUNS = {
    "babble": ("babble:acme/Babble-v0", *SMALL),
    "lookup": ("agentgym/Lookup-v0", *SMALL, "--horizon", "1", "2", "--test-horizon", "1", "2"),
}


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[str]]:
    place = tmp_path_factory.mktemp("place")
    (place / "babble.py").write_text(BABBLE)

    def started(kind: str, folder: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agentgym.cli", "train", *RUNS[kind], "--output", str(folder), *more]
        path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )  # fmt: skip

    return started


def end(process: subprocess.Popen[str]) -> str:
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    return told


def outcome(folder: Path) -> dict[str, Any]:
    """All of a run that is no time and no memory."""
    summary = json.loads((folder / "summary.json").read_text())
    with Store(folder / "run.sqlite", readonly=True) as store:
        episodes = {e.key: (e.reward, e.stop_reason, e.ledger.fingerprint()) for e in store.episodes()}
        runs = store.runs()
    lines = [{k: v for k, v in r.items() if "seconds" not in k} for r in read_metrics(folder / "metrics.jsonl")]
    kept = {k: summary[k] for k in ("weights", "by_horizon", "success_before", "success_after", "ci_greedy_after")}
    return {"episodes": episodes, "runs": runs, "metrics": lines, "summary": kept}


@pytest.fixture(scope="module", params=list(RUNS))
def uninterrupted(request: pytest.FixtureRequest, begin, tmp_path_factory) -> tuple[str, dict[str, Any], float]:
    folder, start = tmp_path_factory.mktemp("whole") / request.param, time.monotonic()
    end(begin(request.param, folder))
    return request.param, outcome(folder), time.monotonic() - start


def stored(folder: Path) -> dict[str, int]:
    """Phase -> episodes so far; of the training phase, also each update's."""
    try:
        with Store(folder / "run.sqlite", readonly=True) as store:
            keys = [update for update, *_ in store.keys("train")]
            return store.runs() | {f"train {update}": keys.count(update) for update in set(keys)}
    except Exception:  # it is only being made
        return {}


def in_the_warm_start(process: subprocess.Popen[str], folder: Path) -> None:
    for line in process.stdout:
        if line.startswith("demonstrations: done"):
            time.sleep(0.3)
            return


def in_the_middle_of_an_update(process: subprocess.Popen[str], folder: Path) -> None:
    while not 0 < stored(folder).get("train 1", 0) < 24:
        assert process.poll() is None, process.stdout.read()
        assert stored(folder).get("train 2", 0) == 0, "the update was over before anybody saw its middle"


def in_the_last_evaluation(process: subprocess.Popen[str], folder: Path) -> None:
    while stored(folder).get("after", 0) == 0:
        assert process.poll() is None, process.stdout.read()


@pytest.mark.parametrize("moment", [in_the_warm_start, in_the_middle_of_an_update, in_the_last_evaluation])
def test_trap_46_a_run_killed_at_a_bad_moment_ends_as_if_it_had_not_been(uninterrupted, begin, tmp_path, moment):
    kind, whole, _ = uninterrupted
    process = begin(kind, tmp_path / "run")
    moment(process, tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "summary.json").exists()
    end(begin(kind, tmp_path / "run", "--resume"))
    assert outcome(tmp_path / "run") == whole


def test_trap_46_a_run_killed_again_and_again_at_any_moment_ends_as_if_it_had_not_been(uninterrupted, begin, tmp_path):
    kind, whole, seconds = uninterrupted
    chance = random.Random()
    pauses = []
    more: tuple[str, ...] = ()
    for _ in range(4):
        process = begin(kind, tmp_path / "run", *more)
        pauses.append(chance.uniform(0.3, 1.0) * seconds)
        time.sleep(pauses[-1])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        more = ("--resume",) if (tmp_path / "run" / "config.toml").exists() else ()
    print(f"killed after {pauses} of {seconds:.1f} s")
    end(begin(kind, tmp_path / "run", *more))
    assert outcome(tmp_path / "run") == whole


def test_trap_46_nothing_is_lost_and_nothing_twice(uninterrupted):
    kind, whole, _ = uninterrupted
    updates = [update for phase, update, *_ in whole["episodes"] if phase == "train"]
    assert {update: updates.count(update) for update in set(updates)} == dict.fromkeys(range(4), 24)
    tested = 24 if kind == "lookup" else 12  # per horizon
    assert whole["runs"] == {"train": 96} | dict.fromkeys(("before", "before-greedy", "after", "after-greedy"), tested)
    assert [line["update"] for line in whole["metrics"]] == [0, 1, 2, 3]
    for line in whole["metrics"]:
        assert list(line["staleness"]) == ["0"]
    if kind == "babble":
        assert all(line["tokens_trained"] > 0 for line in whole["metrics"])


def test_ctrl_c_saves_and_says_how_to_go_on(uninterrupted, begin, tmp_path):
    kind, whole, _ = uninterrupted
    process = begin(kind, tmp_path / "run")
    in_the_middle_of_an_update(process, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--output {tmp_path / 'run'} --resume" in told
    end(begin(kind, tmp_path / "run", "--resume"))
    assert outcome(tmp_path / "run") == whole
