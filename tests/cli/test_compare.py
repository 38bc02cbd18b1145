"""`agentgym compare`: what it says of two runs, what it refuses, and that a transcript is one command away."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agentgym.errors import Failure, FailureKind
from agentgym.ledger import Episode, StopReason
from agentgym.messages import assistant, system, user
from agentgym.rollout.store import Store

FIRST = Episode(
    run="eval", update=0, task_id="test:a", attempt=0, seed=0, split="test", group=0, env_id="agentgym/Door-v0",
    env_version="v0", messages=(system("Be brief."), user("Open the door."), assistant("It is open.")), turns=(),
    reward=1.0, reward_parts={}, terminated=True, truncated=False, stop_reason=StopReason.ANSWERED,
)  # fmt: skip
LOST = Failure(FailureKind.INFRASTRUCTURE, "SandboxError", "the container is gone")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A finished run of that name: task -> reward per attempt, None for one that infrastructure lost."""

    def written(name: str, rewards: Mapping[str, Sequence[float | None]], config: str = "", **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(config)
        (folder / "summary.json").write_text("{}")
        with Store(folder / "run.sqlite") as store:
            for task, attempts in rewards.items():
                for attempt, reward in enumerate(attempts):
                    said = (*FIRST.messages[:-1], assistant(f"{name} {task} {attempt}"))
                    made = replace(FIRST, task_id=task, attempt=attempt, seed=attempt, reward=reward or 0.0,
                                   failure=LOST if reward is None else None, messages=said)  # fmt: skip
                    store.add(replace(made, **changes))
        return folder

    return written


def ten(won: int) -> dict[str, list[float | None]]:
    return {f"test:{i}": [float(i < won)] for i in range(10)}


def test_two_runs_are_paired_by_task_and_told_with_interval_test_and_power(here, write):
    write("a", ten(2), 'model = "small"\ntemperature = 1.0\n[versions]\nagentgym = "1"\n')
    write("b", ten(9), 'model = "large"\ntemperature = 1.0\n[versions]\nagentgym = "2"\n')
    done = here("compare", "a", "b")
    assert done.returncode == 0, done.stderr
    assert "20.0   90.0   +70.0" in done.stdout
    assert "0.016" in done.stdout  # seven won, none lost: 2 / 2^7
    assert "agentgym/Door, test: B is better" in done.stdout
    assert "differs: model: 'small' -> 'large'" in done.stdout
    assert "versions" not in done.stdout
    assert "10 tasks; scored episodes on them: A 10 (coverage 100.0 %), B 10 (100.0 %)" in done.stdout
    assert "tasks that changed: 7 (7 better in B, 0 worse)" in done.stdout
    # deviations: 7·0.3² + 3·0.7² + 2 = 4.1; ((1.959964 + 0.841621) / 0.02)² · 4.1 / 9
    assert "about 8,940 tasks would be needed" in done.stdout


def test_the_commands_it_prints_show_both_transcripts(here, write):
    write("a", {"test:x": [0.0, 1.0], "test:y": [1.0, 1.0]})
    write("b", {"test:x": [0.0, 0.0], "test:y": [1.0, 1.0]})
    printed = [line.strip() for line in here("compare", "a", "b").stdout.splitlines() if "agentgym show" in line]
    assert len(printed) == 2
    shown = [here(*shlex.split(line)[1:]) for line in printed]
    assert "a test:x 1" in shown[0].stdout  # the attempt of A that succeeded
    assert "b test:x 0" in shown[1].stdout
    assert all(done.returncode == 0 for done in shown)


def test_json_has_every_task_that_changed_and_nothing_that_is_no_json(here, write):
    write("a", ten(0))
    write("b", ten(10))
    write("c", {"test:other": [1.0]}, split="val")
    [found] = json.loads(here("compare", "a", "b", "--json").stdout)
    [compared] = found["comparisons"]
    assert compared["success"]["value"] == 1.0
    assert compared["p_holm"] == pytest.approx(2 / 1024)
    assert len(compared["flips"]) == 10
    assert compared["flips"][0]["show_b"] == "agentgym show b --phase eval --task=test:0 --attempt 0"


def test_several_runs_are_compared_with_the_first_and_corrected_together(here, write):
    for name, won in (("a", 0), ("b", 10), ("c", 10)):
        write(name, ten(won))
    found = json.loads(here("compare", "a", "b", "c", "--json").stdout)
    assert [each["b"] for each in found] == ["b:eval", "c:eval"]
    assert [each["comparisons"][0]["p_holm"] for each in found] == [pytest.approx(4 / 1024)] * 2
    shown = here("compare", "a", "b", "c").stdout
    assert shown.count("0.002 (0.0039)") == 2  # 2 / 2^10, and twice that
    assert " ".join(shown.split()).count("in brackets corrected for 2 comparisons (Holm)") == 2


def test_the_phases_of_one_run_are_compared_behind_a_colon(here, write):
    write("a", ten(1), run="before")
    write("a", ten(8), run="after")
    write("a", ten(5), run="train")
    done = here("compare", "a:before", "a:after")
    assert "10.0   80.0   +70.0" in done.stdout, done.stderr
    assert here("compare", "a:before", "a").stdout == done.stdout  # what a training run ended with
    again = here("compare", "a", "a:after")
    assert again.returncode == 2
    assert "is A itself" in again.stderr
    wrong = here("compare", "a:befor", "a")
    assert wrong.returncode == 2
    assert "did you mean 'before'?" in wrong.stderr
    nothing = here("compare", "a", "a:")
    assert (nothing.returncode, "no run 'a:'" in nothing.stderr) == (2, True)


@pytest.mark.parametrize(
    "others",
    [
        ("before", "before-greedy", "train", "after-greedy", "control", "control-greedy"),
        ("before", "after-planted-10", "gold-planted-10", "after-map-1"),
    ],
)
def test_of_a_training_or_horizon_run_its_end_alone_is_compared(here, write, others):
    for phase in (*others, "after"):
        write("a", ten(8 if phase == "after" else 1), run=phase)
    write("b", ten(8))
    done = here("compare", "a", "b")
    assert "A  a:after\n" in done.stdout, done.stderr
    assert "80.0   80.0    +0.0" in done.stdout
    assert "scored episodes on them: A 10" in done.stdout


def test_every_part_of_an_evaluation_is_compared(here, write):
    for name in ("a", "b"):
        write(name, ten(5), run="agentgym/Door-v0")
        write(name, {"test:x": [1.0]}, run="second", env_id="agentgym/Lookup-v0")
    done = here("compare", "a", "b")
    assert "A  a:agentgym/Door-v0+second\n" in done.stdout, done.stderr
    assert "agentgym/Lookup, test: " in done.stdout


def test_episodes_that_were_planned_and_are_not_there_make_it_undecided(here, write):
    write("a", ten(0))
    for name, summary, coverage in (
        ("half", {"num_planned": 20}, "50.0"),
        ("whole", {"num_planned": 10}, "100.0"),
        ("part", {"num_planned": 99, "environments": [{"name": "eval", "num_planned": 40}]}, "25.0"),
        ("cut", None, "0.0"),
    ):
        folder = write(name, ten(10))
        (folder / "summary.json").unlink()
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        done = here("compare", "a", name).stdout
        assert f"B 10 ({coverage} %)" in done
        assert ("undecided" in done, f"{name}:eval is not finished" in done) == (name != "whole",) * 2
        [found] = json.loads(here("compare", name, "a", "--json").stdout)
        assert found["comparisons"][0]["coverage_a"] == pytest.approx(float(coverage) / 100)


def test_each_part_has_the_coverage_of_its_own_episodes(here, write):
    planned = {"environments": [{"name": "before", "num_planned": 10}, {"name": "m:x/B", "num_planned": 4}]}
    for name, won in (("a", 2), ("b", 9)):
        folder = write(name, ten(won), run="before")
        write(name, {"test:x": [1.0]}, run="m:x/B", env_id="agentgym/Lookup-v0")
        (folder / "summary.json").write_text(json.dumps(planned | {"num_planned": 14}))
    for part, coverage, words in (("before", 1.0, "B is better"), ("m:x/B", 0.25, "undecided")):
        args = ("compare", f"a:{part}", f"b:{part}")
        [compared] = json.loads(here(*args, "--json").stdout)[0]["comparisons"]
        assert (compared["coverage_a"], compared["coverage_b"]) == (coverage, coverage)
        done = here(*args).stdout
        assert (words in done, "is not finished" in done) == (True, part != "before")


def test_each_of_all_parts_has_its_own_coverage_too(here, write):
    for name in ("a", "b"):
        folder = write(name, ten(5), run="one")
        write(name, {"test:x": [1.0]}, run="two", env_id="agentgym/Lookup-v0")
        parts = [{"name": "one", "num_planned": 10}, {"name": "two", "num_planned": 2}]
        (folder / "summary.json").write_text(json.dumps({"num_planned": 12, "environments": parts}))
    found = json.loads(here("compare", "a", "b", "--json").stdout)[0]["comparisons"]
    assert [(each["env"], each["coverage_a"]) for each in found] == [("agentgym/Door", 1.0), ("agentgym/Lookup", 0.5)]


def test_two_parts_of_one_environment_and_split_are_refused_and_compared_behind_a_colon(here, write):
    for name in ("a", "b"):
        write(name, ten(2), run="easy")
        write(name, ten(9), run="hard")
    done = here("compare", "a", "b")
    assert done.returncode == 2
    assert "a has several parts of agentgym/Door, split test; give one of them: a:easy or a:hard" in done.stderr
    assert "20.0   90.0   +70.0" in here("compare", "a:easy", "b:hard").stdout


def test_suites_that_differ_are_told_part_by_part(here, write):
    part = 'part = [{{"name" = "a/B-v0", "limit" = {}, "set" = {{"level" = 1}}}}]\n'
    write("a", ten(2), part.format(10))
    write("b", ten(2), part.format(20))
    assert "differs: part.a/B-v0.limit: 10 -> 20\n" in here("compare", "a", "b").stdout


def test_settings_that_only_another_command_has_are_no_difference(here, write):
    write("a", ten(2), 'model = "small"\nreport = true\n')
    write("b", ten(9), 'model = "large"\nhistory = 4\n')
    assert "differs: history: None -> 4" in here("compare", "a", "b").stdout
    (write("a", {}, 'model = "small"\nreport = true\n') / "summary.json").write_text('{"command": "eval"}')
    done = here("compare", "a", "b").stdout
    assert "differs: model: 'small' -> 'large'" in done
    assert "None" not in done


def test_a_broken_config_is_named(here, write):
    write("a", ten(2), "model = ")
    write("b", ten(2))
    for args in (("compare", "a", "b"), ("score", "a")):
        done = here(*args)
        assert (done.returncode, "a/config.toml is not readable as TOML" in done.stderr) == (2, True)


HOSTILE = "test:\x1b]0;pwn\x07 it's \\ [/bold]x \u009b"


def test_names_that_a_stranger_gave_are_shown_and_neither_obeyed_nor_lost(here, write):
    for name, reward in (("a", 0.0), ("b", 1.0)):
        write(name, {HOSTILE: [reward]}, split="[/bold]x[red]")
    done = here("compare", "a", "b")
    assert done.returncode == 0, done.stderr
    assert "agentgym/Door, [/bold]x[red]" in done.stdout
    assert "test:‹U+001B›]0;pwn‹U+0007› it's" in done.stdout
    assert not {"\x1b", "\x07", "\u009b"} & {*done.stdout}
    [first, _] = [line for line in done.stdout.splitlines() if "agentgym show" in line]
    told = subprocess.run(["bash", "-c", f"printf '%s\\n' {first}"], capture_output=True, text=True, check=True)
    assert f"--task={HOSTILE}" in told.stdout.splitlines()  # what is pasted is what is meant
    shown = here("show", "a", f"--task={HOSTILE}", "--attempt", "0")
    assert "task test:‹U+001B›]0;pwn" in shown.stdout
    assert "\x1b" not in shown.stdout
    write("b", {HOSTILE + "2": [1.0]}, split="[/bold]x[red]")
    refused = here("compare", "a", "b")
    assert (refused.returncode, "\x1b" in refused.stderr, "‹U+001B›" in refused.stderr) == (2, False, True)


def test_other_tasks_are_refused_with_their_names_and_compared_where_shared_anyway(here, write):
    write("a", ten(2))
    write("b", {task: rewards for task, rewards in ten(5).items() if task != "test:9"})
    refused = here("compare", "a", "b")
    assert refused.returncode == 2
    assert "1 tasks only in A, such as test:9" in refused.stderr
    assert "--anyway" in refused.stderr
    done = here("compare", "a", "b", "--anyway")
    assert done.returncode == 0
    assert "differs: agentgym/Door, split test: 1 tasks only in A" in done.stdout
    assert "9 tasks; 1 more are missing or without a scored attempt in one of the two" in done.stdout


def test_another_prompt_is_refused_and_its_lines_are_shown(here, write):
    write("a", ten(2))
    write("b", ten(2), messages=(system("Be brief and\x1b[31m polite."), *FIRST.messages[1:]))
    refused = here("compare", "a", "b")
    assert refused.returncode == 2
    assert "10 tasks begin with another prompt" in refused.stderr
    assert "-[system] Be brief." in refused.stderr
    assert "+[system] Be brief and‹U+001B›[31m polite." in refused.stderr
    assert "Open the door" not in refused.stderr


def test_another_version_of_the_environment_is_refused(here, write):
    write("a", ten(2))
    write("b", ten(2), env_id="agentgym/Door-v1", env_version="v1")
    refused = here("compare", "a", "b")
    assert refused.returncode == 2
    assert "agentgym/Door-v0 (v0) in A, agentgym/Door-v1 (v1) in B" in refused.stderr
    assert here("compare", "a", "b", "--anyway").returncode == 0


def test_nothing_in_common_and_a_single_run_are_refused(here, write):
    write("a", ten(2))
    write("b", ten(2), split="val")
    assert "share no environment and split" in here("compare", "a", "b", "--anyway").stderr
    assert "at least two runs" in here("compare", "a").stderr
    assert "did you mean" in here("compare", "a", "nowhere").stderr or here("compare", "a", "nowhere").returncode == 2


def test_lost_episodes_leave_the_pairs_and_too_many_make_it_undecided(here, write):
    write("a", ten(5))
    write("b", {f"test:{i}": [None if i < 4 else 1.0] for i in range(10)})
    done = here("compare", "a", "b")
    assert "agentgym/Door, test: undecided" in done.stdout
    assert "6 tasks; 4 more are missing or without a scored attempt" in done.stdout
    assert "B 6 (60.0 %)" in done.stdout


def test_a_file_from_before_prompts_were_kept_is_compared_all_the_same(here, write):
    import sqlite3

    write("b", ten(4))
    with sqlite3.connect(write("a", ten(4)) / "run.sqlite") as db:
        db.execute("DROP INDEX light")
        db.execute("ALTER TABLE episodes DROP COLUMN opening")
    assert "no difference seen" in here("compare", "a", "b").stdout
    write("c", ten(4), messages=(user("Open the window."), *FIRST.messages[2:]))
    assert "begin with another prompt" in here("compare", "a", "c").stderr


def test_an_episode_is_shown_by_task_attempt_and_place(here, write):
    write("a", {"test:first": [1.0, 0.0], "test:second": [0.0]})
    assert "a test:second 0" in here("show", "a", "--task", "test:sec").stdout
    assert "a test:first 1" in here("show", "a", "--task", "test:first", "--attempt", "1").stdout
    assert "a test:first 1" in here("show", "a", "--failed", "--episode", "0").stdout
    assert "a test:second 0" in here("show", "a", "--failed", "--episode", "1").stdout
    wrong = here("show", "a", "--task", "test:thrid")
    assert wrong.returncode == 2
    assert "did you mean" in wrong.stderr
    assert "has 2 such episodes; give 0 to 1" in here("show", "a", "--failed", "--episode", "2").stderr
    assert "phase eval has no such episode" in here("show", "a", "--attempt", "7").stderr
    assert "a test:first 1" in here("show", "a", "--failed").stdout


def test_a_task_is_shown_by_its_whole_id_before_those_that_only_begin_with_it(here, write):
    write("a", {"test:10": [0.0], "test:1": [1.0]})
    assert "a test:1 0" in here("show", "a", "--task", "test:1").stdout
    assert "no such episode" in here("show", "a", "--task", "test:1", "--failed").stderr
    assert "a test:10 0" in here("show", "a", "--task", "test:", "--failed").stdout
