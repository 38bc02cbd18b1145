import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from agentgym.cli.doctor import disk
from agentgym.messages import user
from agentgym.rollout.store import Store


def test_list_shows_ids_horizons_and_splits(here):
    done = here("list", "--json")
    rows = {row["id"]: row for row in json.loads(done.stdout)}
    assert {"agentgym/Arithmetic-v0", "agentgym/Door-v0", "agentgym/Lookup-v0"} <= set(rows)
    assert rows["agentgym/Door-v0"] == {
        "id": "agentgym/Door-v0",
        "horizon": "2",
        "splits": ["train", "validation", "test", "demonstrations"],
        "about": "A locked door and a note.",
    }
    assert rows["agentgym/Lookup-v0"]["horizon"] == "1–6"
    assert "agentgym/Door-v0" in here("list").stdout


def test_show_prints_a_runs_figures_and_an_episode(here):
    here("eval", "agentgym/Door-v0", "--limit", "4")
    figures = here("show", "eval-Door-v0-gold-1")
    assert figures.returncode == 0, figures.stderr
    # Wilson, 4 of 4: 4 / 7.841459 = 51.0 %
    assert (
        "success 100.0\u202f% [51.0\u202f%, 100.0\u202f%] of 4 scored, coverage 100.0\u202f%, decided" in figures.stdout
    )
    episode = here("show", "runs/eval-Door-v0-gold-1", "--episode", "3").stdout
    assert episode.startswith("episode 3 · phase eval · task test:")
    assert "-> read_note({})" in episode
    assert episode.endswith("success: reward 1, 2 turns, ended: ended\n")


def test_show_names_what_there_is_when_asked_for_what_is_not(here):
    here("eval", "agentgym/Door-v0", "--limit", "4")
    for args, words in (
        (("eval-Door-v0-glod-1",), "did you mean 'eval-Door-v0-gold-1'?"),
        (("eval-Door-v0-gold-1", "--episode", "4"), "phase eval has 4 such episodes; give 0 to 3"),
        (("eval-Door-v0-gold-1", "--episode", "0", "--failed"), "phase eval has no such episode"),
        (("eval-Door-v0-gold-1", "--episode", "0", "--phase", "evl"), "did you mean 'eval'?"),
    ):
        done = here("show", *args)
        assert done.returncode == 2
        assert words in done.stderr


def test_show_counts_what_the_log_beside_the_file_still_holds(here, tmp_path):
    here("eval", "agentgym/Door-v0", "--limit", "4")
    folder = tmp_path / "runs/eval-Door-v0-gold-1"
    (folder / "summary.json").unlink()
    with Store(folder / "run.sqlite") as store:  # as a run that is still under way
        episode = next(store.episodes())
        store.add(replace(episode, task_id="test:long", messages=(user("x" * 1_000_000), *episode.messages)))
        each_kb = float(here("show", folder.name).stdout.partition("; ")[2].partition(" kB each")[0].replace(",", ""))
    assert each_kb * 5 > sum(path.stat().st_size for path in folder.glob("run.sqlite")) / 1000


def test_a_part_of_a_suite_may_be_called_like_a_phase_of_training(here, tmp_path):
    parts = "".join(f"[[part]]\nenv = 'agentgym/Door-v0'\nname = '{name}'\nlimit = 1\n" for name in ("after", "doors"))
    (tmp_path / "mine.toml").write_text(parts)
    assert here("eval", "--suite", "mine.toml", "--output", "both").returncode == 0
    judged = here("score", "both").stdout
    assert "phase after: 1 of 1 judged again" in judged
    assert "phase doors: 1 of 1 judged again" in judged
    assert " · phase doors · " in here("show", "both", "--episode", "0").stdout


def test_show_of_a_broken_summary_names_the_file(here, tmp_path):
    here("eval", "agentgym/Door-v0", "--limit", "1")
    (tmp_path / "runs/eval-Door-v0-gold-1/summary.json").write_text("[]")
    done = here("show", "eval-Door-v0-gold-1")
    assert (done.returncode, "summary.json is no summary of a run" in done.stderr) == (2, True)


def test_play_takes_lines_as_calls_and_answers(agentgym):
    wrong = agentgym("play", "agentgym/Door-v0", "--task", "5", stdin="read_note\nenter code=x\nI give up\n")
    assert wrong.returncode == 0, wrong.stderr
    assert "[tool] The code is " in wrong.stdout
    assert "[tool] A red light." in wrong.stdout
    assert wrong.stdout.endswith("ended: answered; reward 0 (opened 0)\n")
    code = wrong.stdout.partition("The code is ")[2][:4]
    right = agentgym("play", "agentgym/Door-v0", "--task", "5", stdin=f"enter code={code}\n")
    assert right.stdout.endswith("[tool] The door opens.\nended: ended; reward 1 (opened 1)\n")


def test_play_without_more_input_ends_instead_of_waiting(agentgym):
    done = agentgym("play", "agentgym/Door-v0", stdin="read_note\n")
    assert done.returncode == 130
    assert "The input has ended" in done.stderr


def test_check_prints_each_rule_and_passes_the_template(here):
    done = here("check", "agentgym/Door-v0")
    assert done.returncode == 0, done.stdout
    assert "broken" not in done.stdout
    assert done.stdout.endswith("1 of 1 environments keep every rule.\n")


def test_check_of_a_broken_environment_names_rule_and_fix_and_exits_1(tmp_path, environment):
    (tmp_path / "broken_envs.py").write_text(
        "from agentgym import Rubric, register\n"
        "from agentgym_envs.door.env import DoorEnv\n"
        "class Generous(DoorEnv):\n"
        "    rubric = Rubric(free=lambda outcome: 1.0)\n"
        'register("broken/Door-v0", "broken_envs:Generous")\n'
    )
    code = "import sys, broken_envs; from agentgym.cli import main; sys.exit(main(['check', 'broken/Door-v0']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no reward for nothing" in done.stdout
    assert "fix: " in done.stdout
    assert done.stdout.endswith("0 of 1 environments keep every rule.\n")


def test_check_needs_to_know_what(here):
    for args in ((), ("agentgym/Door-v0", "--all")):
        done = here("check", *args)
        assert done.returncode == 2
        assert "or give --all" in done.stderr


def test_doctor_says_what_is_here(agentgym):
    done = agentgym("doctor")
    assert done.returncode == 0, done.stdout
    assert "journal mode wal" in done.stdout
    assert done.stdout.endswith("Ready: nothing required is missing.\n")


def test_doctor_leaves_no_probe_behind(tmp_path):
    assert disk(tmp_path)[0].fix == ""
    assert not list(tmp_path.iterdir())


def test_doctor_says_where_a_run_cannot_be_written():
    [finding] = disk(folder=Path("/proc"))
    assert "not writable" in finding.seen
    assert "--output" in finding.fix
