import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentgym.cli.eval import EvalConfig, remarks
from agentgym.errors import ConfigError, Failure, FailureKind, StoreError
from agentgym.evaluation.run import summarise
from agentgym.rollout.store import Store

SLOW_DOOR = """
import time
from agentgym import register, tool
from agentgym_envs.door.env import DoorEnv

class SlowDoor(DoorEnv):
    blocking = True

    def setup(self):
        super().setup()
        time.sleep(0.1)

register("slow/Door-v0", "slow_envs:SlowDoor")
"""


def finished(folder: Path) -> int:
    """Episodes so far, of a run that may not have begun to write."""
    try:
        return len(keys(folder))
    except StoreError:
        return 0


def keys(folder: Path) -> list[tuple[str, int]]:
    store = Store(folder / "run.sqlite", readonly=True)
    try:
        return [(e.task_id, e.attempt) for e in store.episodes()]
    finally:
        store.close()


def test_gold_opens_every_door_and_the_table_says_of_how_many(agentgym, tmp_path):
    done = agentgym("eval", "agentgym/Door-v0", "--model", "gold", "--limit", "20")
    assert done.returncode == 0, done.stderr
    # Wilson, 20 of 20: lower bound 20 / (20 + 3.841459) = 83.9 %
    assert "│       2 │ 100.0 % │ [83.9, 100.0] │     20 │      0 │" in done.stdout
    assert "coverage 100.0 % (20 of 20 scored)" in done.stdout
    folder = tmp_path / "runs/eval-Door-v0-gold-1"
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "run.sqlite", "summary.json"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["success"]["successes"] == summary["num_planned"] == 20
    assert summary["versions"]["gymnasium"]


def test_json_is_all_that_stands_on_standard_output(here, tmp_path):
    done = here("eval", "agentgym/Door-v0", "--model", "nop", "--limit", "3", "--attempts", "2", "--json")
    summary = json.loads(done.stdout)
    assert (summary["success"]["n"], summary["success"]["successes"], summary["coverage"]) == (6, 0, 1.0)
    assert len(keys(tmp_path / "runs/eval-Door-v0-nop-1")) == 6


def test_the_limit_counts_per_horizon_and_each_stands_in_its_own_row(here):
    done = here("eval", "agentgym/Lookup-v0", "--limit", "3", "--horizon", "2", "3", "9", "--json")
    rows = json.loads(done.stdout)["by_horizon"]
    assert [(row["horizon"], row["n"], row["successes"]) for row in rows] == [(2, 3, 3), (3, 3, 3), (9, 3, 3)]


def test_an_interrupted_evaluation_keeps_its_episodes_and_goes_on(tmp_path, environment):
    (tmp_path / "slow_envs.py").write_text(SLOW_DOOR)
    code = "import sys, slow_envs; from agentgym.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "eval", "slow/Door-v0", "--limit", "40", "--concurrency", "2"]
    command += ["--output", "out"]
    environment = environment | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while finished(tmp_path / "out") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    kept = keys(tmp_path / "out")
    assert process.returncode == 130, error
    assert 5 <= len(kept) < 40
    assert error.rstrip().endswith("agentgym eval slow/Door-v0 --limit 40 --concurrency 2 --output out --resume")
    again = [*command, "--resume"]
    done = subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    both = keys(tmp_path / "out")
    assert both[: len(kept)] == kept  # finished episodes are not played again
    assert len(set(both)) == len(both) == 40


def test_a_resumed_run_gives_the_figures_of_an_uninterrupted_one(here):
    base = ("eval", "agentgym/Lookup-v0", "--model", "demonstrator", "--seed", "3")
    here(*base, "--limit", "10", "--output", "parts")
    resumed = json.loads(here(*base, "--limit", "30", "--output", "parts", "--resume", "--json").stdout)
    whole = json.loads(here(*base, "--limit", "30", "--output", "whole", "--json").stdout)
    for figure in ("success", "by_horizon", "stop_reasons", "mean_turns"):
        assert resumed[figure] == whole[figure]


def test_an_existing_output_is_refused_with_the_fix(here):
    here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out")
    done = here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out")
    assert done.returncode == 2
    assert done.stderr == "error: --output out is there already: add --resume to go on, or choose another\n"


def test_resuming_with_another_seed_is_refused_with_both(here):
    here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out")
    done = here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out", "--resume", "--seed", "1")
    assert done.returncode == 2
    assert "out was begun with --seed 0, not 1" in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("agentgym/Dor-v0",), "did you mean 'agentgym/Door-v0'?"),
        (("agentgym/Door-v0", "--model", "glod"), "did you mean 'gold'?"),
        (("agentgym/Door-v0", "--model", "./no/such/model"), "no/such/model"),
        (("agentgym/Door-v0", "--split", "tset"), "did you mean 'test'?"),
        (("agentgym/Door-v0", "--horizon", "3"), "cannot be made with split='test', horizon=(3,)"),
        (("agentgym/Door-v0", "--set", "difficulty"), "write name=value"),
        (("agentgym/Door-v0", "--limit", "0"), "--limit 0: give at least 1"),
        (("agentgym/Door-v0", "--temperature", "-1"), "--temperature -1.0: give 0 (greedy) or more"),
        (("agentgym/Door-v0", "--resume"), "there is no run runs/eval-Door-v0-gold-*"),
        (("agentgym/Door-v0", "--config", "none.toml"), "none.toml: no such file"),
    ],
)
def test_wrong_input_is_one_message_with_the_fix_and_writes_nothing(here, tmp_path, args, words):
    done = here("eval", *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(here, tmp_path):
    (tmp_path / "file").write_text("")
    done = here("eval", "agentgym/Door-v0", "--limit", "1", "--output", "file/out")
    assert done.returncode == 1
    assert done.stderr == "error: Not a directory (file/out): choose another --output or mend its permissions.\n"


def test_a_policy_that_the_environment_lacks_ends_the_run_and_is_named(here):
    done = here("eval", "agentgym/Arithmetic-v0", "--set", "generator=rubiks_cube", "--model", "gold", "--limit", "3")
    assert done.returncode == 2
    assert "ArithmeticEnv.gold() has nothing to say on turn 0" in done.stderr


def test_the_remarks_of_a_thin_evaluation_say_undecided():
    evaluation = summarise("a/B-v0", "test", [], num_planned=10)
    lines = remarks(evaluation, [Failure(FailureKind.INFRASTRUCTURE, "SandboxError", "gone")] * 2)
    assert "coverage 0.0 % (0 of 10 scored)" in lines
    assert any(line.startswith("verdict: undecided") for line in lines)
    assert lines[-1] == "  2 x SandboxError, the first: gone"


def test_negative_horizons_are_refused_with_the_value():
    with pytest.raises(ConfigError, match="--horizon 2 -1: a horizon is at least 1 turn"):
        EvalConfig("a/B-v0", horizon=(2, -1))
