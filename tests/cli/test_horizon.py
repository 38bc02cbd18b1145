import json
import signal
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from agentgym.cli.horizon import HorizonConfig, measured
from agentgym.cli.horizon_table import rates_table
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
    assert (summary["sampled_tokens"], summary["flops"]) == (0, None)  # of builtin policies
    with Store(folder / "run.sqlite", readonly=True) as store:
        played = [e for e in store.episodes() if not e.run.startswith("gold-")]
    assert summary["num_turns"] == sum(len(e.turns) for e in played) > 0
    assert summary["seconds_total"] > 0
    shown = here("show", str(folder))
    assert "H50 ≥ 8.0 [8.0, ≥ 8.0], H80 ≥ 8.0" in shown.stdout
    assert "None" not in shown.stdout
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
        played = list(store.episodes(run="after"))
        store.reopen("after", from_update=0)  # and half of the first
        for episode in played[1::2]:
            store.add(episode)
    refused = here(*flags, "--output", str(cut))
    assert refused.returncode == 2
    assert "add --resume to go on" in refused.stderr
    changed = here(*flags, "--seed", "3", "--output", str(cut), "--resume")
    assert changed.returncode == 2
    assert "was begun with --seed 0, not 3" in changed.stderr
    assert here(*flags, "--output", str(cut), "--resume").returncode == 0
    for name in ("by_horizon", "h50_after", "survival", "hazard", "conditioning"):
        assert summary_of(cut)[name] == summary_of(whole)[name]


def test_what_is_missing_is_told_and_below_nine_tenths_nothing_is_decided(here, tmp_path, monkeypatch):
    (tmp_path / "flaky.py").write_text(
        "from agentgym.errors import InfrastructureError\n"
        "def reply(messages, tools, seed):\n"
        "    if seed % 10 < 7:\n        raise InfrastructureError('the server is gone')\n    return 'no'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--model", "flaky:reply", "--horizon", "1", "2", "--limit", "5", "--attempts", "1")
    done = here("horizon", "agentgym/Lookup-v0", *flags, "--history", "0", "--output", "x")
    attempts = summary_of(tmp_path / "x")["attempts"]["after"]
    scored = attempts["num_scored"]
    assert 0 < scored < 9
    assert attempts == {"num_planned": 10, "num_scored": scored, "coverage": scored / 10, "verdict": "undecided"}
    told = f"coverage {10 * scored:.1f} %, undecided ({scored} of 10 attempts scored)"
    assert told in done.stdout
    assert told in here("show", "x").stdout
    page = (tmp_path / "x/report.html").read_text()
    assert f"<strong>undecided</strong>; {scored} of 10 attempts scored" in page
    # of a recorded run what was planned is known from its summary
    here("eval", "agentgym/Lookup-v0", *flags, "--max-total-tokens", "1000000", "--output", "e")
    with Store(tmp_path / "e/run.sqlite") as store:
        kept = list(store.episodes(run="eval"))[:-2]
        store.reopen("eval", from_update=0)
        for episode in kept:
            store.add(episode)
    here("horizon", "e", "--output", "y")
    assert summary_of(tmp_path / "y")["attempts"]["after"]["num_planned"] == 10


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
    shown = here("show", "measured")
    assert (shown.returncode, "(success curve)" in shown.stdout, "episode" in shown.stdout) == (0, True, False)
    asked = here("show", "measured", "--episode", "0")
    assert asked.returncode == 2
    assert asked.stderr.endswith(f"measured holds figures and no episodes; those it measured are in {evaluated}\n")


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
        ({"attempts": 0}, "attempts 0: give at least 1"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        HorizonConfig("agentgym/Lookup-v0", **given)


def test_an_environment_without_the_dial_is_refused_before_anything_is_written(here, tmp_path):
    done = here("horizon", "agentgym/Door-v0", "--model", "gold")
    assert done.returncode == 2
    assert "agentgym/Door-v0 has no setting 'horizon'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_is_found_by_name_and_measured_at_the_horizons_of_its_episodes(here, tmp_path):
    here("eval", "agentgym/Door-v0", "--model", "gold", "--limit", "2", "--output", str(tmp_path / "runs/door"))
    assert here("horizon", "door", "--output", "measured").returncode == 0
    assert [row["horizon"] for row in summary_of(tmp_path / "measured")["by_horizon"]] == [2]


def test_of_several_parts_the_only_one_with_horizons_is_measured_or_all_are_named(here, tmp_path):
    part = "[[part]]\nenv = 'agentgym/Lookup-v0'\nlimit = 2\nname = "
    (tmp_path / "one.toml").write_text(f"{part}'before'\n{part}'b'\nhorizon = [2, 3]\n")
    (tmp_path / "two.toml").write_text(f"{part}'a'\nhorizon = [2]\n{part}'b'\nhorizon = [2, 3]\n")
    for name in ("one", "two"):
        assert here("eval", "--suite", f"{name}.toml", "--output", name).returncode == 0
    done = here("horizon", "one", "--output", "measured")
    assert done.returncode == 0, done.stderr
    assert [row["horizon"] for row in summary_of(tmp_path / "measured")["by_horizon"]] == [2, 3]
    done = here("horizon", "two")
    assert done.returncode == 2
    assert "two has 2 parts (a, b), 2 of them with horizons, and one is measured" in done.stderr


def test_a_run_without_horizons_is_refused_and_leaves_no_folder(here, tmp_path):
    run = tmp_path / "run"
    here("eval", "agentgym/Door-v0", "--model", "gold", "--limit", "2", "--output", str(run))
    with Store(run / "run.sqlite") as store:
        plain = [replace(episode, metadata={}) for episode in store.episodes(run="eval")]
        store.reopen("eval", from_update=0)
        for episode in plain:
            store.add(episode)
    done = here("horizon", "run")
    assert (done.returncode, "run holds no evaluation by horizon" in done.stderr) == (2, True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--model", "golb"), "did you mean 'gold'?"),
        (("--before", "golb"), "did you mean 'gold'?"),
        (("--difficulty", "0", "77"), "difficulty"),
    ],
)
def test_a_typo_is_refused_before_anything_is_written(here, tmp_path, flags, complaint):
    done = here(*LOOKUP, *flags, "--output", "runs/x")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_policy_that_only_fails_has_a_report_that_says_so(here, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(
        "from agentgym.errors import InfrastructureError\n"
        "def reply(messages):\n    raise InfrastructureError('the server is gone')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--horizon", "1", "2", "--limit", "2", "--attempts", "1", "--history", "0", "--difficulty", "1")
    done = here("horizon", "agentgym/Lookup-v0", "--model", "broken:reply", *flags, "--output", "x")
    assert done.returncode == 1, done.stderr
    row = {"difficulty": 1, "by_horizon": [], "h50": None, "num_planned": 4, "num_scored": 0}
    assert summary_of(tmp_path / "x")["map"]["after"] == [row]
    assert "coverage 0.0 %, undecided (0 of 4 attempts scored)" in done.stdout
    assert "H50 – at difficulty 1 (0 of 4 attempts scored)" in done.stdout
    assert "report   x/report.html" in done.stdout


def test_a_name_is_no_markup():
    rate = {"rate": 0.5, "low": 0.3, "high": 0.7, "n": 20}
    shown = StringIO()
    Console(width=80, file=shown).print(rates_table([{"horizon": 1, "after": rate}], "models/[/x]m\x1b"))
    assert "models/[/x]m‹U+001B›" in shown.getvalue()


def test_what_was_interrupted_goes_on_with_the_flags_that_were_given(here, tmp_path, monkeypatch):
    (tmp_path / "impatient.py").write_text(
        "import signal\ndef reply(messages):\n    signal.raise_signal(signal.SIGINT)\n    return 'no'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        done = here(*LOOKUP, "--model", "impatient:reply", "--output", "x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1].endswith("--model impatient:reply --output x --resume")
