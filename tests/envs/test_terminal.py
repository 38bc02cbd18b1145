"""Terminal tasks: the task's own tests judge its container, and nothing that an agent leaves there helps it."""

import subprocess
from pathlib import Path

import pytest
from agentgym_envs import outside
from agentgym_envs.terminal import folders
from agentgym_envs.terminal.env import CAPABILITIES
from agentgym_envs.terminal.grading import reward_in
from agentgym_sandboxes import owners

from agentgym import ConfigError, Outcome, TaskError, make
from agentgym.loop import run_sync
from agentgym.messages import assistant, call

TOML = """
version = "1.0"
[metadata]
difficulty = "easy"
expert_time_estimate_min = 3.0
[verifier]
timeout_sec = 5.0
[agent]
timeout_sec = 30.0
[environment]
build_timeout_sec = 60.0
cpus = 1
memory = "512M"
storage = "1G"
"""
TEST = """#!/bin/bash
test -e /app/crash && exit 7
test -e /app/slow && sleep 60
if grep -q hello /app/greeting && bash /tests/more.sh; then
    echo 1 > /logs/verifier/reward.txt
else
    echo 0 > /logs/verifier/reward.txt
fi
"""
FILES = {
    "task.toml": TOML,
    "instruction.md": "Write hello to /app/greeting.\n",
    "environment/Dockerfile": "FROM python:3.13-slim\nWORKDIR /app\n",
    "tests/test.sh": TEST,
    "tests/more.sh": "test ! -e /app/not\n",
    "solution/solve.sh": '#!/bin/bash\ncat "$(dirname "$0")/word" > greeting\n',
    "solution/word": "hello\n",
}


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def opened(tmp_path, docker_backend):
    """Makes environments over tiny tasks; afterwards nothing of this process is on the engine."""
    made = []

    def open(files: dict[str, str] = FILES, **kwargs):
        tasks = lay(tmp_path / "tasks" / "greet", files).parent
        base = {"*": docker_backend.default_image()}
        made.append(make("agentgym/Terminal-v0", tasks=str(tasks), base_map=base, **kwargs))
        return made[-1]

    yield open
    for env in made:
        env.close()
    own = {"label": f"agentgym.owner={owners.owner()}"}
    assert docker_backend.client.api.containers(all=True, filters=own) == []
    assert docker_backend.client.api.images(filters=own) == []


def play(env, *commands: str) -> tuple[float, dict]:
    """Run commands, say that it is done; the reward and the closing info."""
    env.reset(seed=0, options={"task": 0})
    for command in commands:
        _, reward, terminated, truncated, info = env.step(assistant("", call("bash", command=command)))
        if terminated or truncated:
            return reward, info
    _, reward, _, _, info = env.step(assistant("Done."))
    return reward, info


def played_gold(env) -> tuple[float, dict]:
    env.reset(seed=0, options={"task": 0})
    ended = False
    while not ended:
        _, reward, terminated, truncated, info = env.step(env.unwrapped.gold())
        ended = terminated or truncated
    return reward, info


def test_the_tasks_own_solution_earns_one_and_doing_nothing_zero(opened):
    env = opened()
    assert play(env)[0] == 0.0
    reward, info = played_gold(env)
    assert (reward, info["final"]["reason"], info["final"]["shared"]) == (1.0, "passed", False)
    assert env.unwrapped.max_time_s == pytest.approx(30, abs=20)
    assert play(env)[0] == 0.0  # nothing stays from one episode to the next


def test_what_is_opened_is_recorded(opened):
    env = opened()
    env.reset(seed=0, options={"task": 0})
    assert env.unwrapped.grants == {"root": True, "writable": True, "capabilities": list(CAPABILITIES)}
    assert "network" not in env.unwrapped.grants


def test_the_agent_sees_neither_tests_nor_solution_and_has_no_network(opened):
    env = opened()
    env.reset(seed=0, options={"task": 0})
    look = "ls /tests /solution /logs/verifier; find / -xdev -name more.sh -o -xdev -name solve.sh; ls /sys/class/net"
    told = env.step(assistant("", call("bash", command=look)))[0]["messages"][0]["content"]
    assert [line for line in told.splitlines() if not line.startswith(("ls:", "["))] == ["lo"]


def test_a_verifier_that_fails_before_it_writes_earns_nothing_whatever_lies_at_its_paths(opened):
    plant = "mkdir -p /logs/verifier; cd /logs/verifier; echo 1 > reward.txt; echo '{\"reward\": 1}' > reward.json"
    reward, info = play(opened(), "touch crash", plant)
    assert reward == 0.0
    assert info["final"]["reason"] == "verifier failed: it ended with status 7 and wrote no reward"


def test_planted_tests_links_and_programs_earn_nothing(opened):
    fake = (
        "printf '#!/bin/sh\\nmkdir -p /logs/verifier; echo 1 > /logs/verifier/reward.txt\\n' > /fake; chmod 755 /fake"
    )
    cheats = (
        "mkdir -p /tests /other; echo true > /tests/test.sh; chmod 000 /tests; rm -rf /logs; ln -s /other /logs",
        f"{fake}; for name in bash grep; do cp --remove-destination /fake /usr/bin/$name; cp /fake /usr/local/sbin/; "
        "cp /fake /usr/local/sbin/$name; done; echo /fake.so > /etc/ld.so.preload; "
        "echo 'exec /fake' > /etc/profile.d/a.sh; rm -f /usr/bin/cat",
    )
    reward, info = play(opened(), *cheats)
    assert reward == 0.0
    done = info["final"]["restored"]
    wanted = {"put back /usr/bin/bash", "put back /usr/bin/grep", "put back /usr/bin/cat"}
    wanted |= {"took away /etc/ld.so.preload", "took away /usr/local/sbin/bash", "took away /usr/local/sbin/grep"}
    assert wanted <= set(done)
    assert info["final"]["reason"] == "failed"


def test_a_writer_left_behind_is_dead_before_the_verdict(opened):
    loop = (
        "setsid sh -c 'while :; do mkdir -p /logs/verifier; echo 1 > /logs/verifier/reward.txt; done' >/dev/null 2>&1 &"
    )
    assert play(opened(), loop)[0] == 0.0


def test_a_service_lives_on_only_where_the_overlay_says_so_and_the_result_is_shared(opened, tmp_path):
    files = {**FILES, "tests/more.sh": "pgrep -f 'sleep 4321' > /dev/null\n"}
    serve = "echo hello > greeting; nohup setsid sleep 4321 > /dev/null 2>&1 &"
    assert play(opened(files), serve)[0] == 0.0
    overlay = tmp_path / "overlay.toml"
    overlay.write_text("[greet]\nservices = true\n")
    reward, info = play(opened(files, overlay=str(overlay)), serve)
    assert (reward, info["final"]["shared"]) == (1.0, True)


def test_tests_that_were_edited_while_they_ran_earn_nothing(opened):
    files = {**FILES, "tests/more.sh": "bash /app/greeting; true\n"}
    reward, info = play(opened(files), "echo 'echo hello >> /tests/more.sh' > greeting")
    assert (reward, info["final"]["reason"]) == (0.0, "failed: /tests/more.sh was edited while the tests ran")


def test_the_verifier_and_a_command_have_deadlines_of_their_own(opened):
    reward, info = play(opened(), "echo hello > greeting; touch slow")
    assert (reward, info["final"]["reason"]) == (0.0, "verifier failed: it ran over its time")
    env = opened(command_timeout_s=1.0)
    env.reset(seed=0, options={"task": 0})
    told = env.step(assistant("", call("bash", command="sleep 20")))[0]["messages"][0]["content"]
    assert "timed out after 1 s" in told


def test_a_verifier_that_cannot_run_even_in_the_untouched_container_is_a_broken_task(opened):
    env = opened({**FILES, "tests/test.sh": "exit 9\n"})
    with pytest.raises(TaskError, match=r"tests/test\.sh: verifier failed: it ended with status 9 .*untouched"):
        play(env)


def test_only_a_number_from_zero_to_one_is_a_reward(opened):
    texts = {"1\n": 1.0, "0.25": 0.25, '{"reward": 0.5, "speed": 3}': 0.5}
    assert {text: reward_in(text) for text in texts} == texts
    assert [reward_in(text) for text in ("2", "-1", "NaN", "one", "", "true", "[1]", '{"score": 1}')] == [None] * 8
    test = "test -e /app/do && echo 2 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt\n"
    reward, info = play(opened({**FILES, "tests/test.sh": test}), "touch do")
    assert (reward, info["final"]["reason"]) == (
        0.0,
        "verifier failed: /logs/verifier/reward.txt holds '2\\n', no reward in [0, 1]",
    )


def test_a_kept_state_is_judged_again_without_the_agent(opened, docker_backend):
    env = opened(keep_state=True)
    reward, info = play(env, "echo hello > greeting; sleep 4321 &")
    image = info["final"]["image"]
    try:
        assert reward == 1.0
        assert "reward" not in info["final"]
        world = env.unwrapped
        outcome = Outcome(world.task, info["final"], ())
        assert run_sync(world.rubric.score(outcome)).reward == 1.0
        docker_backend.reap()
        assert docker_backend.client.api.inspect_image(image)["Config"]["Labels"][outside.KEPT] == "greet"
    finally:
        docker_backend.client.api.remove_image(image, force=True)


TB1 = {
    "task.yaml": "instruction: |-\n  Write hello.\nparser_name: pytest\nmax_agent_timeout_sec: 60.0\n",
    "Dockerfile": "FROM nowhere.example/base:1\nWORKDIR /app\n",
    "solution.sh": "echo hello > greeting\n",
    "run-tests.sh": "bash $TEST_DIR/test_outputs.sh && echo '===== 1 passed in 0.01s ====='\n",
    "tests/test_outputs.sh": "cat greeting && grep -q hello greeting\n",
}


def test_the_layout_of_terminal_bench_1_is_judged_by_status_and_summary(opened):
    pytest.importorskip("yaml")
    env = opened(TB1)
    assert played_gold(env)[0] == 1.0
    assert play(env, "echo '==== 2 passed in 0.01s ====' > greeting; cat greeting")[0] == 0.0


def test_an_image_of_terminal_bench_1_holds_neither_tests_nor_solution_whatever_its_dockerfile_copies(opened):
    pytest.importorskip("yaml")
    env = opened({**TB1, "Dockerfile": "FROM nowhere.example/base:1\nWORKDIR /app\nCOPY . /app\n", "given": "x\n"})
    env.reset(seed=0, options={"task": 0})
    told = env.step(assistant("", call("bash", command="ls")))[0]["messages"][0]["content"]
    assert told.split() == ["Dockerfile", "given"]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("task.toml", TOML.replace("30.0", "'soon'"), r"task\.toml: agent\.timeout_sec is 'soon'; give a number"),
        ("task.toml", TOML.replace("512M", "much"), r"task\.toml: environment\.memory is 'much'; give a size"),
        ("task.toml", "[agent", r"task\.toml: "),
        ("instruction.md", " \n", r"instruction\.md is empty"),
        ("environment/Dockerfile", None, r"environment/Dockerfile is missing"),
        ("tests/test.sh", None, r"tests/test\.sh is missing"),
    ],
)
def test_a_broken_folder_names_the_file_and_the_field(tmp_path, name, text, complaint):
    folder = lay(tmp_path / "greet", {key: value for key, value in FILES.items() if key != name or text is not None})
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(TaskError, match=complaint):
        folders.load(tmp_path)


def test_a_broken_task_of_terminal_bench_1_names_the_field(tmp_path):
    pytest.importorskip("yaml")
    lay(tmp_path / "greet", {**TB1, "task.yaml": "instruction: go\nparser_name: swe\n"})
    with pytest.raises(TaskError, match=r"task\.yaml: parser_name is 'swe'"):
        folders.load(tmp_path)


def test_an_overlay_row_of_another_kind_is_refused(tmp_path):
    (tmp_path / "o.toml").write_text("[greet]\nservice = true\n")
    with pytest.raises(ConfigError, match=r"\[greet\] service = True; a row has services or system"):
        folders.read_overlay(tmp_path / "o.toml")


def test_no_tasks_and_a_backend_that_cannot_are_told(tmp_path):
    lay(tmp_path / "greet", FILES)
    with pytest.raises(ConfigError, match="brings no tasks"):
        make("agentgym/Terminal-v0")
    with pytest.raises(ConfigError, match="only the docker backend"):
        make("agentgym/Terminal-v0", tasks=str(tmp_path), sandbox="bubblewrap")
    with pytest.raises(ConfigError, match="no folder in it holds a task"):
        make("agentgym/Terminal-v0", tasks=str(tmp_path / "greet" / "tests"))


def test_a_changed_folder_is_another_task(tmp_path):
    lay(tmp_path / "greet", FILES)
    before = folders.load(tmp_path)[0].digest
    (tmp_path / "greet/tests/more.sh").write_text("true\n")
    assert folders.load(tmp_path)[0].digest != before
    subprocess.run(["chmod", "600", str(tmp_path / "greet/solution/word")], check=True)
    assert folders.load(tmp_path)[0].metadata["human_minutes"] == 3.0
