"""Requests at a shell: what counts is what became of the files, exactly."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from agentgym_envs.shell.trees import LEVELS, tree_task

from agentgym import ConfigError, TaskError, make
from agentgym.messages import assistant, call


def bash(env, command: str) -> str:
    return env.step(assistant("", call("bash", command=command)))[0]["messages"][0]["content"]


def gold(env, task: int = 0) -> tuple[float, dict]:
    env.reset(seed=0, options={"task": task})
    ended = False
    while not ended:
        _, reward, terminated, truncated, info = env.step(env.unwrapped.gold())
        ended = terminated or truncated
    return reward, info


@pytest.fixture
def opened():
    made = []

    def open(**kwargs):
        made.append(make("agentgym/Shell-v0", **kwargs))
        return made[-1]

    yield open
    for env in made:
        env.close()


@pytest.fixture(params=["bubblewrap", "docker"])
def trees(request, working, opened):
    working(request.param)
    return opened(sandbox=request.param, difficulty=3, horizon=4)


def test_trap_48_nothing_of_one_episode_is_there_in_the_next(working, opened):
    working("bubblewrap")
    env = opened(sandbox="bubblewrap")
    env.reset(seed=0, options={"task": 0})
    bash(env, "touch canary /tmp/canary; export CANARY=alive; (sleep 60 &) ; cd /tmp; alias ls='echo no'")
    assert "alive" in bash(env, "echo $CANARY; ls canary")
    fresh = "echo [$CANARY]; ls -a . /tmp | grep -c canary; pgrep sleep | wc -l; pwd"
    env.reset(seed=0, options={"task": 0})
    assert bash(env, fresh).split()[:3] == ["[]", "0", "0"]


def test_gold_carries_out_every_order_and_one_file_more_is_wrong(trees):
    reward, info = gold(trees)
    assert reward == 1.0
    wanted = info["final"]["files"]
    trees.reset(seed=0, options={"task": 0})
    world = trees.unwrapped
    for command in world.task.data["commands"]:
        bash(trees, command)
    bash(trees, "echo > left.over")
    _, reward, _, _, info = trees.step(assistant(str(len(wanted))))
    assert reward == 0.0
    assert info["reward_parts"]["files"] == pytest.approx(len(wanted) / (len(wanted) + 1))


def test_the_right_files_with_a_wrong_answer_earn_nothing(bubblewrap, opened):
    env = opened(sandbox="bubblewrap", horizon=2)
    env.reset(seed=0, options={"task": 0})
    for command in env.unwrapped.task.data["commands"]:
        bash(env, command)
    _, reward, _, _, info = env.step(assistant("I do not know."))
    assert (reward, info["reward_parts"]["files"]) == (0.0, 1.0)


def test_a_link_in_the_tree_is_no_file(bubblewrap, opened):
    env = opened(sandbox="bubblewrap", horizon=1)
    env.reset(seed=0, options={"task": 0})
    bash(env, "ln -s /etc/passwd link")
    _, reward, _, _, info = env.step(assistant("3"))
    assert (reward, info["final"]["files"]) == (0.0, None)


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_the_computed_tree_differs_from_the_start_and_has_as_many_orders_as_asked(difficulty):
    for seed in range(30):
        task = tree_task(np.random.default_rng(seed), 3, difficulty)
        assert task.answer != dict(task.files)
        assert len(task.data["commands"]) == task.horizon >= 3
        assert len(task.files) == LEVELS[difficulty][0]


def test_output_cut_at_a_time_out_shows_its_beginning_only(bubblewrap, opened):
    env = opened(sandbox="bubblewrap")
    env.reset(seed=0)
    told = bash(env, "yes no")
    assert told.startswith("no\nno\n")
    assert "[… the rest left out …]\n[timed out after 5 s" in told


def test_a_level_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="levels 0 to 3"):
        make("agentgym/Shell-v0", difficulty=4)


# -- data sets in their layouts, with records of our own ---------------------------------------------------------------

SETUP = "#!/bin/bash\nmkdir -p /testbed\necho one > /testbed/a.txt\necho two > /testbed/b.txt\n"
REQUESTS = [
    {"_id": "t-0", "file_system": 1, "query": "Delete a.txt in /testbed", "gold": "rm /testbed/a.txt"},
    {"_id": "t-1", "file_system": 1, "query": "Count the files in /testbed", "gold": "ls /testbed | wc -l"},
]


def packed(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def intercode(tmp_path, docker_backend, opened):
    packed(tmp_path, "tasks.jsonl", "\n".join(map(json.dumps, REQUESTS)))
    packed(tmp_path, "setup_scripts.json", json.dumps({"setup_nl2b_fs_1.sh": SETUP}))
    api = docker_backend.client.api
    before = {image["Id"] for image in api.images("agentgym/intercode")}
    yield opened(data=str(tmp_path))
    for image in api.images("agentgym/intercode"):
        if image["Id"] not in before:
            api.remove_image(image["Id"], force=True)


def test_a_request_is_judged_by_the_files_that_differ_and_by_the_last_output(intercode):
    reward, info = gold(intercode, 0)
    assert reward == 1.0
    assert info["final"]["files"]["/testbed/a.txt"] == "gone"
    assert gold(intercode, 1)[0] == 1.0
    intercode.reset(seed=0, options={"task": 0})
    assert "a.txt" in bash(intercode, "ls /testbed")  # a fresh copy, whatever the episode before did
    bash(intercode, "rm /testbed/a.txt /testbed/b.txt")
    _, reward, _, _, info = intercode.step(assistant("Done."))
    assert (reward, info["reward_parts"]["files"], info["reward_parts"]["output"]) == (0.0, 0.0, 1.0)


def test_another_way_with_the_same_files_and_output_is_right_and_another_output_is_not(intercode):
    intercode.reset(seed=0, options={"task": 1})
    bash(intercode, "set -- /testbed/*; echo $#")
    assert intercode.step(assistant("2"))[1] == 1.0
    intercode.reset(seed=0, options={"task": 1})
    bash(intercode, "echo 3")
    assert intercode.step(assistant("3"))[1] == 0.0


OS_TASKS = [
    {
        "_id": "1/sum", "description": "How many lines has /root/log?",
        "create": {"local": "default", "init": {"file": "init/log.sh"}},
        "evaluation": {"check": [None, {"language": "python", "file": "check/same.py"}],
                       "example": {"code": "wc -l < /root/log"}},
    },
    {
        "_id": "1/mode", "description": "Make /root/log readable for its owner alone.",
        "create": {"init": "echo x > /root/log"},
        "evaluation": {"check": {"code": "test $(stat -c %a /root/log) = 400"}, "example": "chmod 400 /root/log"},
    },
    {"_id": "1/word", "description": "Say yes.", "evaluation": {"match": "yes"}},
]  # fmt: skip
OS_SCRIPTS = {
    "scripts/1/init/log.sh": "for i in $(seq $((RANDOM % 9 + 1))); do echo $i >> /root/log; done",
    "scripts/1/check/same.py": "from sys import argv\nexit(int(argv[1]) != int(argv[2]))",
}


@pytest.fixture
def agentbench(tmp_path, docker_backend, opened):
    packed(tmp_path, "tasks.jsonl", "\n".join(map(json.dumps, OS_TASKS)))
    packed(tmp_path, "scripts.json", json.dumps(OS_SCRIPTS))
    return opened(data=str(tmp_path))


def test_an_operating_system_task_runs_its_scripts_and_its_chain_of_checks(agentbench):
    assert [gold(agentbench, task)[0] for task in range(3)] == [1.0, 1.0, 1.0]
    for task, answer in enumerate(("999", "Done.", "no")):
        agentbench.reset(seed=0, options={"task": task})
        assert agentbench.step(assistant(answer))[1] == 0.0


def test_a_record_that_is_broken_names_the_file_the_line_and_the_field(tmp_path):
    (tmp_path / "setup_scripts.json").write_text(json.dumps({"setup_nl2b_fs_1.sh": SETUP}))
    (tmp_path / "tasks.jsonl").write_text(json.dumps({**REQUESTS[0], "file_system": 9}))
    with pytest.raises(TaskError, match=r"tasks\.jsonl:1: file_system is 9; there is no script setup_nl2b_fs_9\.sh"):
        make("agentgym/Shell-v0", data=str(tmp_path))
    (tmp_path / "tasks.jsonl").write_text("{")
    with pytest.raises(TaskError, match=r"tasks\.jsonl:1: "):
        make("agentgym/Shell-v0", data=str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no scripts\.json or scripts\.json\.gz"):
        make("agentgym/Shell-v0", data=str(tmp_path.parent))
