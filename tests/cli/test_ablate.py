"""`agentgym ablate` as a user meets it: small runs, kills, wrong settings; its statistics worked out by hand."""

from __future__ import annotations

import fcntl
import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from agentgym.cli import main
from agentgym.cli.ablate import EXAMPLE, AblateConfig, _switches, compared, planned
from agentgym.cli.ablate_runs import Switch, run_cells
from agentgym.cli.ablate_table import markdown, mean_interval, row
from agentgym.cli.options import parse

DOOR = "agentgym/Door-v0"
TINY = "--updates 2 --groups 4 --group-size 4 --warm-steps 20 --demonstrations 40 --eval-limit 4"
TWO = ["--switch", "plain:", "grpo: --credit grpo"]


def words(*args: str) -> list[str]:
    return ["ablate", DOOR, *args, "--output", "x", "--", *TINY.split()]


def begun(folder: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agentgym.cli", *words(*args)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )


def wait_for(path: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)


def runs(folder: Path) -> dict[str, list[dict]]:
    """What came out of each run, but for how long it took."""
    report = json.loads((folder / "x" / "ablate.json").read_text())
    return {
        line["switch"]: [{k: v for k, v in run.items() if k != "seconds_total"} for run in line["runs"]]
        for line in report["rows"]
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("ablate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        assert main(words(*TWO, "--seeds", "0", "1", "--jobs", "2")) == 0
    return base


# -- runs --------------------------------------------------------------------------------------------------------------


def test_every_run_is_an_ordinary_one_and_the_table_is_kept(finished: Path):
    for name in ("plain", "grpo"):
        for seed in (0, 1):
            folder = finished / "x" / name / f"seed-{seed}"
            assert {"config.toml", "run.sqlite", "metrics.jsonl", "summary.json", "report.html", "log.txt"} <= {
                p.name for p in folder.iterdir()
            }
    report = json.loads((finished / "x" / "ablate.json").read_text())
    assert [line["switch"] for line in report["rows"]] == ["plain", "grpo"]
    assert report["rows"][1]["flags"].endswith("--credit grpo")
    assert report["rows"][1]["difference"]["n"] == 2
    assert (finished / "x" / "ablate.md").read_text() == markdown(report)


def test_the_same_command_again_runs_nothing(finished: Path, here, monkeypatch: pytest.MonkeyPatch):
    before = runs(finished)
    monkeypatch.chdir(finished)
    done = here(*words(*TWO, "--seeds", "0", "1"))
    assert (done.returncode, runs(finished)) == (0, before)
    assert "4 runs, 4 of them finished" in done.stdout
    assert "begins" not in done.stdout


def test_interrupted_and_killed_the_same_command_comes_to_the_same_table(finished: Path, tmp_path: Path):
    args = (*TWO, "--seeds", "0")
    first = begun(tmp_path, *args)
    wait_for(tmp_path / "x" / "plain" / "seed-0" / "checkpoints" / "update-000000")
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "agentgym ablate agentgym/Door-v0 --switch plain: 'grpo: --credit grpo' --seeds 0 --output x -- " in err
    second = begun(tmp_path, *args)
    wait_for(tmp_path / "x" / "grpo" / "seed-0" / "lock")
    second.kill()
    second.communicate()
    third = begun(tmp_path, *args)
    assert third.communicate(timeout=300)[0].count("| 1/1 ") == 2
    assert third.returncode == 0
    assert runs(tmp_path) == {name: members[:1] for name, members in runs(finished).items()}


def test_a_run_that_fails_is_counted_and_its_last_words_told(finished: Path, here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(finished)
    done = here(*words("--switch", "plain:", "lost: --model ./nowhere", "--seeds", "0"))
    assert done.returncode == 1
    assert "| lost   | 0/1, 1 failed |" in done.stdout
    assert "lost, seed 0 failed: no model at './nowhere'" in done.stdout


def test_a_folder_with_other_settings_is_refused(finished: Path, here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(finished)
    done = here(*words("--switch", "plain:", "grpo: --credit grpo --lr 0.1", "--seeds", "0"))
    assert done.returncode == 2
    assert "grpo/seed-0 holds a run with lr 0.0005, not 0.1" in done.stderr


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path: Path):
    [cell] = planned(DOOR, [Switch("plain")], [0], tmp_path)
    cell.folder.mkdir(parents=True)
    with (cell.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        heard: list[str] = []
        waiting = Thread(target=run_cells, args=([cell],), kwargs={"tell": heard.append})
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
        (cell.folder / "summary.json").write_text("{}")
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert not (cell.folder / "log.txt").exists()
    assert heard == ["1 runs, 0 of them finished", "plain, seed 0: waits for another process that is at it"]


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_dapo_ladder_changes_one_thing_per_rung(tmp_path: Path):
    config = AblateConfig(ladder="dapo", overlong_limit=90)
    cells = planned("agentgym/Lookup-v0", _switches(config), [0], tmp_path)
    assert [cell.switch.name for cell in cells] == [
        "naive GRPO", "overlong filter", "clip-higher", "soft overlong penalty", "token loss", "dynamic sampling",
    ]  # fmt: skip
    flat = [asdict(c.config.objective) | asdict(c.config.selection) | asdict(c.config.loop) for c in cells]
    assert (flat[0]["credit"], flat[0]["denominator"], flat[0]["clip_low"]) == ("grpo", "trajectories", 0.2)
    changed = [{k: b[k] for k in b if a[k] != b[k]} for a, b in itertools.pairwise(flat)]
    assert changed == [
        {"masked_stops": ("max_tokens", "max_turns", "max_time", "context")},
        {"clip_high": 0.28},
        {"overlong_limit": 90, "overlong_cache": 18},
        {"denominator": "tokens"},
        {"resample": 4},
    ]


def test_a_grid_is_every_combination_and_a_value_may_be_several_words(tmp_path: Path):
    config = AblateConfig(grid=("credit=grpo,gigpo", "horizon=6,1 2 3"))
    cells = planned("agentgym/Lookup-v0", _switches(config), [3, 1], tmp_path)
    assert [(c.seed, c.config.loop.credit, c.config.horizon) for c in cells] == [
        (seed, credit, horizon) for seed in (3, 1) for credit in ("grpo", "gigpo") for horizon in ((6,), (1, 2, 3))
    ]
    assert cells[1].folder == tmp_path / "credit=grpo-horizon=1-2-3" / "seed-3"


def test_cumulative_switches_add_up_and_a_later_flag_wins():
    config = parse(
        AblateConfig, [DOOR, "--cumulative", "--switch", "a: --lr 1", "b: --lr 2", "--switch", "c: --width 8"], "", ""
    )
    assert [s.flags for s in _switches(config)] == [
        ("--lr", "1"), ("--lr", "1", "--lr", "2"), ("--lr", "1", "--lr", "2", "--width", "8"),
    ]  # fmt: skip
    assert planned(DOOR, _switches(config)[1:2], [0], Path("x"))[0].config.optimizer.lr == 2


def test_a_file_holds_switches_and_shared_flags_and_a_flag_may_name_the_seed(here, tmp_path: Path):
    text = (
        f'env = "{DOOR}"\nseeds = [4, 7]\nflags = "--updates 3"\n[switches]\nnone = ""\nwarm = "--model m/{{seed}}"\n'
    )
    (tmp_path / "study.toml").write_text(text)
    done = here("ablate", "--config", "study.toml", "--dry-run", "--", "--lr", "1e-3")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["new"] * 4
    assert " ".join(lines[3][1:]) == (
        f"agentgym train {DOOR} --updates 3 --lr 1e-3 --model m/7 --seed 7 --output runs/ablate-Door-v0/warm/seed-7"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "nothing to compare: give --switch"),
        (["--switch", "a"], "--switch 'a' has no name"),
        (["--switch", "../..:"], "no letter or digit in its name"),
        (["--switch", "a: --lr '1"], "no closing quotation"),
        (["--switch", "a:", "b:", "a: --lr 1"], "switch 'a' is there twice"),
        (["--switch", "a: --lr 1", "a!: --lr 2"], "is there twice (folder a)"),
        (["--switch", "a: --lr nan"], "switch 'a', flags '--lr nan': lr is nan"),
        (["--switch", "a: --learning 1"], "switch 'a', flags '--learning 1': agentgym train does not take them"),
        (["--switch", "a: grpo"], "agentgym train does not take them"),
        (["--switch", "a: --seed 3"], "switch 'a' sets --seed: ablate does that itself"),
        (["--switch", "a: --output=x"], "switch 'a' sets --output=x"),
        (["--grid", "credit"], "--grid 'credit': write name=value,value"),
        (["--grid", "credit=grpo,"], "--grid 'credit=grpo,'"),
        (["--grid", "credit=luck"], "no credit 'luck'"),
        (["--switch", "a:", "--seeds"], "seeds : give at least one"),
        (["--switch", "a:", "--seeds", "1", "1"], "seeds 1 1: give at least one, each once"),
        (["--switch", "a:", "--seeds", "-1"], "seeds -1"),
        (["--switch", "a:", "--jobs", "0"], "jobs is 0"),
        (["--ladder", "dappo"], "no ladder 'dappo'; did you mean 'dapo'?"),
        (["--ladder", "dapo"], "ladder dapo with overlong_limit 0"),
        (["--switch", "a:", "--overlong-limit", "9"], "ladder None with overlong_limit 9"),
    ],
)
def test_a_wrong_plan_begins_nothing_and_is_one_sentence(here, args: list[str], said: str, tmp_path: Path):
    done = here("ablate", DOOR, *args)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_an_unknown_environment_names_the_nearest(here):
    assert "did you mean 'agentgym/Door-v0'" in here("ablate", "agentgym/Dor-v0", "--switch", "a:").stderr


def test_the_example_of_the_help_is_a_plan(here):
    _, *said = shlex.split(EXAMPLE)
    assert here(*said[:-3], "--dry-run", *said[-3:]).stdout.count("--updates 40") == 6


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_interval_over_seeds_is_students():
    found = mean_interval([1.0, 2.0, 3.0])  # s = 1, t(0.975, 2) = 4.302653, half the width 4.302653 / sqrt(3)
    assert found is not None
    assert (found["mean"], found["n"]) == (2.0, 3)
    assert (found["low"], found["high"]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert mean_interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert mean_interval([]) is None


def summary(seed: int, after: float, by_horizon: tuple[float, ...] = ()) -> dict:
    points = [{"horizon": h, "trained": h < 3, "after": {"rate": r}} for h, r in enumerate(by_horizon, 1)]
    return {
        "seed": seed, "success_before": 0.1, "success_after": after, "greedy_before": 0.0, "greedy_after": 1.0,
        "by_horizon": points, "h50_after": None, "seconds_total": 10.0, "weights": "",
    }  # fmt: skip


def test_differences_pair_the_seeds_that_both_have():
    first = {0: summary(0, 0.2), 1: summary(1, 0.6)}
    found = row("b", "", {1: summary(1, 0.7), 2: summary(2, 0.9)}, 3, {"0": "lost"}, first)
    assert found["difference"] == {"mean": pytest.approx(0.1), "low": None, "high": None, "n": 1}
    assert found["success_after"]["mean"] == pytest.approx(0.8)


def test_the_worst_horizon_is_of_those_trained_and_of_the_mean_over_seeds():
    members = {0: summary(0, 0.5, (1.0, 0.6, 0.0)), 1: summary(1, 0.5, (0.4, 0.6, 0.0))}
    found = row("a", "", members, 2, {}, None)
    assert (found["worst_horizon"]["horizon"], found["worst_horizon"]["mean"]) == (2, pytest.approx(0.6))


def test_a_switch_without_a_finished_run_has_a_row_and_an_interval_stays_within_what_is_possible():
    members = {seed: summary(seed, after) for seed, after in enumerate((0.9, 1.0))}
    rows = [row("a", "", members, 2, {}, None), row("b", "", {}, 2, {"1": "it broke"}, members)]
    shown = markdown({"env": DOOR, "rows": rows, "versions": [{"commit": "a"}, {"commit": "b"}]}).splitlines()
    assert "10.0 -> 95.0 [31.5, 100.0]" in shown[2]  # t(0.975, 1) = 12.706205, s / sqrt(2) = 0.05
    assert [cell.strip() for cell in shown[3].split("|")[1:-1]] == ["b", "0/2, 1 failed", *["–"] * 6]
    assert shown[-3:] == [
        "b, seed 1 failed: it broke",
        "What failed is in no mean: a switch that kills runs looks better than it is.",
        "The runs were made by 2 different versions, see ablate.json.",
    ]


def test_what_is_not_finished_is_in_no_mean_and_differences_are_from_the_first_switch_alone(tmp_path: Path):
    cells = planned(DOOR, [Switch("a"), Switch("b"), Switch("c")], [0, 1], tmp_path)
    for cell, after in zip(cells[1:3], (0.4, 0.7), strict=True):  # b and c, seed 0
        cell.folder.mkdir(parents=True)
        (cell.folder / "summary.json").write_text(json.dumps(summary(0, after) | {"versions": {}}))
    rows = compared(cells)["rows"]
    assert [[run["success_after"] for run in line["runs"]] for line in rows] == [[], [0.4], [0.7]]
    assert [line.get("difference") for line in rows] == [None, None, None]
