import json
from pathlib import Path

import pytest

from agentgym.cli.horizon import HorizonConfig, measured
from agentgym.errors import ConfigError
from agentgym.loop import run_sync
from agentgym.rollout.store import Store

LOOKUP = ("horizon", "agentgym/Lookup-v0", "--horizon", "1", "2", "4", "8", "--limit", "10", "--attempts", "2")


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_policy_and_the_one_before_it_stand_in_one_table_and_one_picture(here, tmp_path):
    done = here(*LOOKUP, "--before", "demonstrator", "--model", "gold", "--history", "6", "--difficulty", "0", "1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/horizon-Lookup-v0-1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.toml", "lock", "report.html", "run.sqlite", "summary.json",
    ]  # fmt: skip
    # gold never fails: 20 attempts on 10 tasks that all agree are worth 10, Wilson's 10 / (10 + 3.841459)
    assert "100.0 % [72.2, 100.0] of 20" in done.stdout
    assert "H50 ≥ 8.0 [8.0, ≥ 8.0], H80 ≥ 8.0" in done.stdout
    summary = summary_of(folder)
    assert [row["horizon"] for row in summary["by_horizon"]] == [1, 2, 4, 8]
    assert summary["h50_before"]["not_reached"]
    assert summary["h50_after"]["at_least"]
    assert summary["survival"]["after"]["num_errors"] == 0
    assert summary["hazard"]["after"]["verdict"] == "cannot tell"
    assert summary["conditioning"]["after"]["verdict"] == "none seen"
    assert [level["difficulty"] for level in summary["map"]["before"]] == [0, 1]
    page = (folder / "report.html").read_text()
    for title in ("Before the first error", "After planted errors", "Difficulty and horizon", "horizon report"):
        assert title in page
    assert page.count("<svg") == 5  # the curve, first errors, planted errors, two maps


def test_an_interrupted_measurement_goes_on_to_the_same_figures(here, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = (*LOOKUP, "--model", "demonstrator", "--history", "4")
    assert here(*flags, "--output", str(whole)).returncode == 0
    assert here(*flags, "--output", str(cut)).returncode == 0
    with Store(cut / "run.sqlite") as store:  # as if the last phases had never been played
        for run in store.runs():
            if "planted" in run:
                store.reopen(run, from_update=0)
    refused = here(*flags, "--output", str(cut))
    assert refused.returncode == 2
    assert "add --resume to go on" in refused.stderr
    changed = here(*flags, "--seed", "3", "--output", str(cut), "--resume")
    assert changed.returncode == 2
    assert "was begun with seed 0, not 3" in changed.stderr
    assert here(*flags, "--output", str(cut), "--resume").returncode == 0
    for name in ("by_horizon", "h50_after", "survival", "hazard", "conditioning"):
        assert summary_of(cut)[name] == summary_of(whole)[name]


def test_of_a_run_the_episodes_that_are_there_are_measured(here, tmp_path):
    evaluated = tmp_path / "evaluated"
    flags = ("--horizon", "2", "4", "8", "--limit", "8", "--attempts", "2", "--output", str(evaluated))
    assert here("eval", "agentgym/Lookup-v0", "--model", "demonstrator", *flags).returncode == 0
    done = here("horizon", str(evaluated), "--output", str(tmp_path / "measured"))
    assert done.returncode == 0, done.stderr
    found = summary_of(tmp_path / "measured")
    with Store(evaluated / "run.sqlite", readonly=True) as store:
        episodes = list(store.episodes(run="eval"))
    again = run_sync(measured("agentgym/Lookup-v0", {"horizon": (2, 4, 8), "split": "test"}, episodes))
    assert found["survival"]["after"] == json.loads(json.dumps(again["survival"]))
    assert [row["after"] for row in found["by_horizon"]] == again["by_horizon"]
    assert not (tmp_path / "measured/run.sqlite").exists()


def test_an_environment_that_names_no_states_has_a_curve_and_says_why_it_has_no_first_errors(here, tmp_path):
    done = here(
        "horizon", "agentgym/Search-v0", "--model", "nop", "--horizon", "1", "2", "--limit", "3", "--history", "0"
    )
    assert done.returncode == 0, done.stderr
    assert "first errors: not measured; no attempt has a first-error time" in done.stdout
    assert "self-conditioning" not in done.stdout


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"horizon": ()}, "--horizon: give one or more"),
        ({"history": 3}, "--history 3: give at least 4 steps"),
        ({"planted": (0, 60)}, "--planted: give two or more"),
        ({"planted": (25,)}, "--planted: give two or more"),
        ({"attempts": 0}, "--attempts 0: give at least 1"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        HorizonConfig("agentgym/Lookup-v0", **given)


def test_an_environment_without_the_dial_is_refused_before_anything_is_written(here, tmp_path):
    done = here("horizon", "agentgym/Door-v0", "--model", "gold")
    assert done.returncode == 2
    assert "unexpected keyword argument 'horizon'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_no_evaluation_by_horizon_is_refused(here, tmp_path):
    door = tmp_path / "door"
    here("eval", "agentgym/Door-v0", "--model", "gold", "--limit", "2", "--output", str(door))
    done = here("horizon", str(door))
    assert done.returncode == 2
    assert "holds no evaluation by horizon" in done.stderr
