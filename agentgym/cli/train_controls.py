"""The controls of a training claim: the same run again, taught by random and by format-only reward.

Owns their processes and their folders, `controls/<reward>` in the run's own, and the figures beside the claim's. What
such a reward is learner/controls.py says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from agentgym.cli.options import to_toml
from agentgym.errors import AgentGymError
from agentgym.evaluation.compare import by_place, compare
from agentgym.learner.alarms import AlarmConfig
from agentgym.learner.controls import Reward
from agentgym.rollout.store import Store

if TYPE_CHECKING:
    from agentgym.cli.train import TrainConfig

CONTROLS = tuple(reward for reward in get_args(Reward) if reward != "environment")
LOG = "log.txt"
RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of ours, which is not its


def run_controls(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Run what is not finished of the controls, one after the other -> figures by reward: success before and after, and
    the run's own gain over it, paired by task. Raises AgentGymError where one fails, with its last words."""
    return {reward: _figures(folder, _finished(config, folder / "controls" / reward, reward)) for reward in CONTROLS}


def _finished(config: TrainConfig, folder: Path, reward: Any) -> Path:
    if (folder / "summary.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    alarm = AlarmConfig(alarm_reward_std=0.0, alarm_gradient=0.0, alarm_entropy=0.0)  # any end is an answer
    plain = replace(config, controls=False, control_steps=0, output=None, resume=False, alarm=alarm)
    (folder / "asked.toml").write_text(to_toml(replace(plain, loop=replace(config.loop, reward=reward))), "utf-8")
    begun = (folder / "config.toml").is_file()
    _run([config.env, "--output", str(folder), *(["--resume"] if begun else ["--config", str(folder / "asked.toml")])])
    return folder


def _run(arguments: Sequence[str]) -> None:
    """`agentgym train` in a process of its own, whose words go to its folder. What ends us ends it as Ctrl-C would."""
    folder = Path(arguments[2])
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentgym.cli", "train", *arguments], stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in RANK},
        )  # fmt: skip
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()
    if code:
        said = (folder / LOG).read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise AgentGymError(f"the control in {folder} ended with {code}: {said[-1][:300]}")


def _figures(folder: Path, control: Path) -> dict[str, Any]:
    summary = json.loads((control / "summary.json").read_text("utf-8"))
    with Store(folder / "run.sqlite", readonly=True) as ours, Store(control / "run.sqlite", readonly=True) as theirs:
        (found,) = compare(by_place(theirs.episodes(run="after")), by_place(ours.episodes(run="after")))
    kept = ("success_before", "ci_before", "success_after", "ci_after", "h50_before", "h50_after")
    return {name: summary[name] for name in kept} | {"gain_over_it": found.success.as_json()}
