"""Repair-v0: one wrong line, and real git repositories whose future nobody may see."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from agentgym_envs.repair.inside import verdict

import agentgym
from agentgym import ConfigError, Outcome, TaskError, assistant, call
from agentgym.conformance import play
from agentgym.loop import run_sync
from agentgym.policies.builtin import Gold, Scripted

BUGGY = {
    "shop/__init__.py": "",
    "shop/price.py": "def total(xs):\n    return sum(xs[1:])\n\n\ndef cheapest(xs):\n    return min(xs)\n",
    "tests/__init__.py": "",
    "tests/conftest.py": "",
    "tests/test_price.py": "from shop.price import cheapest\n\n\ndef test_low():\n    assert cheapest([3, 2]) == 2\n",
    "run.sh": "#!/bin/sh\necho shop\n",
}  # fmt: skip
FIXED = {"shop/price.py": BUGGY["shop/price.py"].replace("xs[1:]", "xs")}
NEW_TESTS = {
    "tests/test_price.py": BUGGY["tests/test_price.py"].replace("cheapest\n", "cheapest, total\n", 1)
    + "\n\ndef test_total():\n    assert total([3, 2]) == 5\n"
}


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", folder, *name, *arguments], check=True, capture_output=True, text=True).stdout


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a bug, its repair in a later, tagged commit, a link and a program; and its record beside it."""
    root = tmp_path_factory.mktemp("repositories")
    folder = root / "shop"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    write(folder, BUGGY)
    (folder / "run.sh").chmod(0o755)
    (folder / "latest").symlink_to("shop/price.py")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "base")
    base = git(folder, "rev-parse", "HEAD").strip()
    write(folder, FIXED)
    patch = git(folder, "diff")
    git(folder, "commit", "-q", "-a", "-m", "the secret repair")
    git(folder, "tag", "repaired")
    write(folder, NEW_TESTS)
    record = {
        "instance_id": "shop-1", "repo": "someone/shop", "base_commit": base, "patch": patch,
        "test_patch": git(folder, "diff"), "run_files": ["tests/test_price.py"],
        "FAIL_TO_PASS": "['tests/test_price.py::test_total']", "PASS_TO_PASS": ["tests/test_price.py::test_low"],
    }  # fmt: skip
    git(folder, "checkout", "-q", ".")
    (root / "instances.jsonl").write_text(json.dumps(record) + "\n")
    return root


@pytest.fixture(scope="module")
def env(shop: Path, working: Any) -> Any:
    made = agentgym.make(
        "agentgym/Repair-v0", layout="repository", data=str(shop / "instances.jsonl"), repo=str(shop),
        sandbox=working("bubblewrap"),
    )  # fmt: skip
    yield made
    made.close()


def bash(env: Any, command: str) -> str:
    return env.step(assistant("", call("bash", command=command)))[0]["messages"][0]["content"]


def submitted(env: Any) -> tuple[float, dict[str, float]]:
    _, reward, _, _, info = env.step(assistant("", call("submit")))
    return reward, info["reward_parts"]


def test_gold_repairs_the_repository_and_doing_nothing_does_not(env):
    assert play(env, Gold(), seed=0, task=0).reward == 1.0
    played = play(env, Scripted([assistant("", call("submit"))]), seed=0, task=0)
    assert (played.reward, played.infos[-1]["reward_parts"]["share"]) == (0.0, 0.5)


def test_gold_repairs_it_in_a_container_too(shop, working):
    made = agentgym.make(
        "agentgym/Repair-v0", layout="repository", data=str(shop / "instances.jsonl"), repo=str(shop / "shop"),
        sandbox=working("docker"),
    )  # fmt: skip
    assert play(made, Gold(), seed=0, task=0).reward == 1.0
    made.close()


def test_an_agent_that_edits_files_is_judged_by_what_it_left(env):
    env.reset(seed=0)
    assert bash(env, "ls -l run.sh | cut -c1-10; readlink latest; sh run.sh") == "-rwxr-xr-x\nshop/price.py\nshop\n"
    bash(env, "sed -i 's/xs\\[1:\\]/xs/' shop/price.py && git add -A && git -c user.name=a "
              "-c user.email=a@b commit -q -m done")  # fmt: skip
    assert submitted(env) == (1.0, {"solved": 1.0, "share": 1.0})


def test_the_future_of_the_repository_is_nowhere_in_the_sandbox(env):
    env.reset(seed=0)
    seen = bash(env, "git log --all --oneline; git tag; git reflog; git fsck --lost-found; git log --all -p | cat")
    assert "secret repair" not in seen
    assert "repaired" not in seen
    assert bash(env, "git rev-list --all --count; git stash list").strip() == "1"
    assert bash(env, "grep -rE 'sum\\(xs\\)|test_total' /workspace /tmp /run /dev/shm -l; echo .") == ".\n"


POISON = {
    "tests that assert nothing": "printf 'def test_total(): pass\\ndef test_low(): pass\\n' > tests/test_price.py",
    "a conftest that lets all pass": (
        "printf 'import pytest\\n@pytest.hookimpl(tryfirst=True)\\ndef pytest_pyfunc_call(pyfuncitem): return True\\n' "
        "| tee conftest.py > tests/conftest.py"
    ),
    "settings that choose other tests": "printf '[pytest]\\naddopts = --collect-only\\n' > pytest.ini",
    "a module that leaves": "printf 'import os; os._exit(0)\\n' > shop/__init__.py",
    "a module that leaves politely": "printf 'raise SystemExit(0)\\n' > shop/price.py",
    "a framework that catches failures": (
        "cat >> shop/price.py <<'END'\nimport sys\nfor m in list(sys.modules.values()):\n"
        "    if hasattr(m, 'one'): m.one = lambda test, function, skipped: m.tell('passed', test)\n"
        "    p = getattr(m, 'Plugin', None)\n"
        "    if p: p.pytest_runtest_logreport = lambda self, r: m.tell('passed', r.nodeid)\nEND\n"
    ),
    "an exception that is never an error": (
        "cat >> shop/price.py <<'END'\nimport builtins\n"
        "class Quiet(type):\n    def __subclasscheck__(cls, other): return True\n"
        "import unittest.case, _pytest.runner\nEND\n"
    ),
    "a file in the place of the standard library": "printf 'import os; os._exit(0)\\n' | tee json.py > marshal.py",
    "a repair that leaves the folder": "git rm -q -r shop; ln -s /tmp shop",
    "no history": "rm -rf .git",
}  # fmt: skip


@pytest.mark.parametrize("name", POISON)
def test_trap_49_no_poisoned_repository_is_rewarded(env, name):
    env.reset(seed=0)
    bash(env, POISON[name])
    assert submitted(env)[0] == 0.0


def test_a_stored_repair_is_judged_again_without_the_agent(env):
    played = play(env, Gold(), seed=0, task=0)
    world = env.unwrapped
    outcome = Outcome(world.task, json.loads(json.dumps(played.infos[-1]["final"])), world.messages)
    assert dict(run_sync(world.verdict(outcome)).tests) == {
        "tests/test_price.py::test_total": "passed",
        "tests/test_price.py::test_low": "passed",
    }


def test_a_diff_that_does_not_apply_is_answered_in_words(env):
    env.reset(seed=0)
    reply = env.step(assistant("", call("apply", patch="--- a/x\n+++ b/x\n@@ -1 +1 @@\n-no\n+yes\n")))
    assert reply[0]["messages"][0]["content"].startswith("Error: git apply: error: x: No such file")


def test_an_id_that_was_cut_at_a_blank_stands_for_all_tests_that_begin_so():
    found = {"t.py::test_a[pip x]": "passed", "t.py::test_a[pip y]": "passed", "t.py::test_b[1]": "failed"}
    assert verdict.outcome("t.py::test_a[pip", found) == "passed"
    assert verdict.outcome("t.py::test_a[pip", {**found, "t.py::test_a[pip z]": "failed"}) == "failed"
    assert verdict.outcome("t.py::test_b[1]", found) == "failed"
    assert verdict.outcome("t.py::test_c", found) == "failed"


def test_a_report_without_this_runs_token_counts_for_nothing():
    data = b"right passed t.py::test_a\nwrong passed t.py::test_b\npassed t.py::test_c\nright failed t.py::test_a\n"
    assert verdict.reported(data, "right") == {"t.py::test_a": "failed"}


def test_records_without_their_repository_and_broken_ones_are_named(shop, tmp_path, working):
    backend, records = working("bubblewrap"), str(shop / "instances.jsonl")
    for kwargs, error, message in (
        ({"data": records}, ConfigError, "no repository: give repo=PATH"),
        ({"data": records, "repo": str(tmp_path)}, ConfigError, "no record of .* has its base_commit there"),
        ({"data": records, "repo": str(shop), "layout": "repositories"}, ConfigError, "There are quixbugs, repository"),
    ):
        with pytest.raises(error, match=message):
            agentgym.make("agentgym/Repair-v0", sandbox=backend, **{"layout": "repository", **kwargs})
    (tmp_path / "broken.jsonl").write_text('{"name": "x"}\n')
    with pytest.raises(TaskError, match="the files that the tests share"):
        agentgym.make("agentgym/Repair-v0", sandbox=backend, data=str(tmp_path / "broken.jsonl"))
    (tmp_path / "support.json").write_text("{}")
    with pytest.raises(TaskError, match="record 1: no quixbugs record"):
        agentgym.make("agentgym/Repair-v0", sandbox=backend, data=str(tmp_path / "broken.jsonl"))


# -- QuixBugs ----------------------------------------------------------------------------------------------------------

RECORD = {
    "name": "largest",
    "buggy": "def largest(xs):\n    best = 0\n    for x in xs:\n        best = max(best, x)\n    return best\n",
    "correct": "def largest(xs):\n    return max(xs)\n",
    "json_testcases": "[[[1, 3, 2]], 3]\n[[[-5, -4]], -4]\n",
    "test": (
        "import pytest\nfrom node import Node\nfrom load_testdata import load_json_testcases\n"
        "if pytest.use_correct:\n    from correct_python_programs.largest import largest\n"
        "else:\n    from python_programs.largest import largest\n"
        "testdata = load_json_testcases(largest.__name__)\n\n"
        "@pytest.mark.parametrize('input_data,expected', testdata)\n"
        "def test_largest(input_data, expected):\n    assert largest(*input_data) == pytest.approx(expected)\n\n"
        "def test_nodes():\n    b = Node(8, Node(7))\n    assert largest([b.successor.value, b.value]) == 8\n\n"
        "def test_slow():\n    if not pytest.run_slow:\n        pytest.skip('slow')\n"
    ),
    "pytest_counts": {"buggy": {"failed": 1, "passed": 2, "skipped": 1}, "correct": {"passed": 3, "skipped": 1}},
}
SUPPORT = {
    "conftest.py": "import pytest\n",
    "python_testcases/load_testdata.py": (
        "import json\nfrom pathlib import Path\n\n\ndef load_json_testcases(name):\n"
        "    path = Path(__file__).parent / '..' / f'json_testcases/{name}.json'\n"
        "    with open(path) as file:\n        return [json.loads(line) for line in file]\n"
    ),
    "python_testcases/node.py": (
        "class Node:\n    def __init__(self, value=None, successor=None):\n"
        "        self.value, self.successor = value, successor\n"
    ),
}


@pytest.fixture(scope="module")
def bugs(tmp_path_factory: pytest.TempPathFactory, working: Any) -> Any:
    folder = tmp_path_factory.mktemp("quixbugs")
    (folder / "quixbugs.jsonl").write_text(json.dumps(RECORD) + "\n")
    (folder / "support.json").write_text(json.dumps(SUPPORT))
    made = agentgym.make("agentgym/Repair-v0", data=str(folder), sandbox=working("bubblewrap"))
    yield made
    made.close()


def counted(env: Any, *actions: Any) -> tuple[float, int, int, int]:
    world, played = env.unwrapped, play(env, Scripted(list(actions)), seed=0, task=0)
    found = run_sync(world.verdict(Outcome(world.task, played.infos[-1]["final"], world.messages)))
    return played.reward, found.count("passed"), found.count("failed"), found.count("skipped")


def test_the_counts_of_tests_are_exact(bugs):
    submit = assistant("", call("submit"))
    assert counted(bugs, submit) == (0.0, 2, 1, 1)
    assert counted(bugs, assistant("", call("submit", code=RECORD["correct"]))) == (1.0, 3, 0, 1)
    edit = assistant("", call("bash", command="sed -i 's/best = 0/best = xs[0]/' largest.py"))
    assert counted(bugs, edit, submit) == (1.0, 3, 0, 1)


def test_the_cases_are_on_no_disk_that_a_program_reads(bugs):
    peeks = (
        "import glob, os\nfound = glob.glob('/quixbugs/**', recursive=True)\n"
        "for top in ('/workspace', '/tmp'): found += glob.glob(top + '/**', recursive=True)\n"
        "def largest(xs):\n    return max(xs) if any('json' in name for name in found) else 0\n"
    )
    assert counted(bugs, assistant("", call("submit", code=peeks)))[0] == 0.0


def test_gold_repairs_real_programs_with_their_exact_counts(data, working):
    env = agentgym.make("agentgym/Repair-v0", data=str(data), sandbox=working("bubblewrap"))
    world = env.unwrapped
    for index in range(0, len(world.tasks.split("test")), 6):
        played = play(env, Gold(), seed=0, task=index)
        found = run_sync(world.verdict(Outcome(world.task, played.infos[-1]["final"], world.messages)))
        assert (played.reward, found.count("passed")) == (1.0, world.task.metadata["counts"]["correct"]["passed"])
    env.close()
