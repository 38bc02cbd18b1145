"""`agentgym score`: verdicts again, without the agent."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from agentgym.cli import main


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "run"
    assert main(["eval", "agentgym/Lookup-v0", "--limit", "4", "--horizon", "2", "--output", str(folder)]) == 0
    capsys.readouterr()
    return folder


def test_a_run_judged_again_has_the_same_verdicts(run, capsys):
    assert main(["score", str(run)]) == 0
    assert "4 of 4 judged again, success 100.0 %" in capsys.readouterr().out


def test_a_verdict_that_differs_is_named_and_ends_with_one(run, capsys):
    with sqlite3.connect(run / "run.sqlite") as store:
        store.execute("UPDATE episodes SET reward = 0.25 WHERE rowid = (SELECT min(rowid) FROM episodes)")
    assert main(["score", str(run), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(line["stored"], line["reward"]) for line in lines if line["changed"]] == [(0.25, 1.0)]
    assert main(["score", str(run)]) == 1
    assert "0.25 -> 1" in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_fewer_than_one_episode_is_refused(run, capsys, limit):
    assert main(["score", str(run), "--limit", limit]) == 2
    assert f"--limit {limit}: give at least 1" in capsys.readouterr().err


def test_every_environment_of_a_run_is_judged(tmp_path, capsys):
    (tmp_path / "two.toml").write_text(
        '[[part]]\nenv = "agentgym/Lookup-v0"\nlimit = 2\n[part.set]\nhorizon = 2\n'
        '[[part]]\nenv = "agentgym/Door-v0"\nlimit = 3\n'
    )
    folder = str(tmp_path / "run")
    assert main(["eval", "--suite", str(tmp_path / "two.toml"), "--output", folder]) == 0
    capsys.readouterr()
    assert main(["score", folder]) == 0
    told = capsys.readouterr().out
    assert "phase agentgym/Lookup-v0: 2 of 2 judged again" in told
    assert "phase agentgym/Door-v0: 3 of 3 judged again" in told


def test_what_has_no_final_state_is_told_and_not_judged(run, capsys):
    with sqlite3.connect(run / "run.sqlite") as store:
        store.execute("DELETE FROM tasks")
    assert main(["score", str(run)]) == 0
    assert "its task is not stored" in capsys.readouterr().out
