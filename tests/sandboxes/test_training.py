"""Training on code that runs in containers, while somebody kills the containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from agentgym_sandboxes import owners

from agentgym.errors import FailureKind
from agentgym.learner.metrics import read_metrics
from agentgym.rollout.store import Store

SMALL = {
    "updates": 3, "groups": 4, "group-size": 4, "concurrency": 16, "demonstrations": 60, "warm-steps": 40,
    "control-steps": 0, "eval-limit": 2, "test-horizon": 1, "width": 32, "layers": 1, "heads": 2,
}  # fmt: skip


def test_containers_killed_in_the_middle_of_updates_cost_retries_and_no_run(docker_backend, tmp_path: Path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "agentgym.cli", "train", "agentgym/Code-v0", "--output", str(run)]
    command += [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    command += ["--set", "judge_uses=1", 'sandbox="docker"']
    log = (tmp_path / "log").open("wb")
    training = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "120"})
    api, killed = docker_backend.client.api, 0
    while training.poll() is None:
        mine = {"label": f"{owners.LABEL}.owner"}
        in_update = (run / "metrics.jsonl").exists()
        for found in api.containers(filters=mine) if in_update and killed < 6 else ():
            if f":{training.pid}:" in owners.owner_in(found["Labels"]):
                subprocess.run(["docker", "kill", found["Id"]], capture_output=True)
                killed += 1
        time.sleep(0.05)
    assert training.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert killed == 6
    assert [line["update"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1, 2]
    assert json.loads((run / "summary.json").read_text())["env_share"] > 0
    with Store(run / "run.sqlite") as store:
        episodes = list(store.episodes(run="train"))
    assert len(episodes) == 3 * 16
    failures = [e.failure for e in episodes if e.failure is not None and e.failure.kind != FailureKind.POLICY]
    assert all(failure.kind == FailureKind.INFRASTRUCTURE for failure in failures)
    assert all(e.reward == 0 for e in episodes if e.failure is not None)
    assert len(failures) <= 2  # what was killed is played again
    assert not [one for one in docker_backend.listed() if f":{training.pid}:" in one.owner]
