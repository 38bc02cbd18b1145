"""Code-v0: hidden tests that no program reaches, records of benchmarks, and programs told step by step."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentgym_envs.code.env import LIMITS, closing_code
from agentgym_envs.code.judging import Judge, Verdict
from agentgym_envs.code.programs import LEVELS, assembled
from agentgym_envs.code.records import plan

import agentgym
from agentgym import ConfigError, Outcome, Rubric, TaskError, assistant, call
from agentgym.conformance import play
from agentgym.loop import run_sync
from agentgym.policies.builtin import Gold, Scripted, builtin
from agentgym.sandbox import SandboxLost, Spec

RIGHT = "def f(x):\n    return x + 1 if isinstance(x, int) else x + x\n"
TESTS = "assert f(1) == 2\nassert f(5) == 6\nassert f([1]) == [1, 1]"
ALL = ("passed", "passed", "passed")


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def judge(request: pytest.FixtureRequest, working: Any) -> Judge:
    return Judge(working(request.param), Spec(limits=LIMITS))


@pytest.fixture(scope="module")
def quick(working: Any) -> Judge:
    return Judge(working("bubblewrap"), Spec(limits=LIMITS))


def judged(judge: Judge, source: str, tests: str = TESTS, **more: Any) -> Verdict:
    told = plan("asserts", **{"remote": ["f"], "tests": tests, "test_s": 0.4, "total_s": 15.0, **more})
    return run_sync(judge.run({**told, "source": source}))


def ends(verdict: Verdict) -> tuple[str, ...]:
    return tuple(end for _, end in verdict.tests)


# -- out of reach ------------------------------------------------------------------------------------------------------


def test_a_right_program_passes_and_a_wrong_one_gets_its_share(judge):
    verdict = judged(judge, RIGHT)
    assert (verdict.solved, ends(verdict), verdict.share) == (True, ALL, 1.0)
    verdict = judged(judge, "def f(x):\n    return 2\n")
    assert (verdict.solved, ends(verdict)) == (False, ("passed", "failed", "failed"))
    assert verdict.share == pytest.approx(1 / 3)


POISON = {
    "leaves before the tests": "import sys\nsys.exit(0)\n" + RIGHT,
    "leaves at once": "import os\nos._exit(0)\n" + RIGHT,
    "leaves at the first call": RIGHT + "import os\ndef f(x):\n    os._exit(0)\n",
    "leaves after it has defined all": RIGHT + "raise SystemExit(0)\n",
    "is equal to everything": (
        "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "class B:\n    def __eq__(self, other): return True\n"
        "def f(x):\n    return B() if x == 1 else A(7)\n"
    ),
    "patches what it can find": (
        "import builtins, sys, unittest\n"
        "unittest.TestCase.assertEqual = lambda *a: None\n"
        "builtins.AssertionError = type('Fine', (BaseException,), {})\n"
        "builtins.bool = builtins.len = lambda *a: True\n"
        "for module in list(sys.modules.values()):\n"
        "    for name in ('failed', 'FAILED', 'encode'):\n"
        "        if hasattr(module, name): setattr(module, name, 'passed')\n"
        "def f(x):\n    return 0\n"
    ),
    "reads its callers": (
        "import gc, sys\n"
        "def f(x):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if 'assert' in str(value)[:100000] and '== 6' in str(value): return {1: 2, 5: 6}.get(x, [1, 1])\n"
        "        frame = frame.f_back\n"
        "    for held in gc.get_objects():\n"
        "        if isinstance(held, dict) and any('== 6' in v for v in list(held.values()) if isinstance(v, str)):\n"
        "            if 'source' not in held: return {1: 2, 5: 6}.get(x, [1, 1])\n"
    ),
    "writes a verdict wherever it can": (
        "import json, os\n"
        "line = json.dumps({'tests': [['assert 0', 'passed']]}) + '\\n'\n"
        "for pid in [p for p in os.listdir('/proc') if p.isdigit()]:\n"
        "    for fd in range(16):\n"
        "        try: open('/proc/%s/fd/%d' % (pid, fd), 'w').write(line)\n"
        "        except OSError: pass\n"
        "print(line, flush=True)\n"
        "def f(x):\n    return 0\n"
    ),
    "reads the tests in another process": (
        "import os\n"
        "found = b''\n"
        "for pid in [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]:\n"
        "    for name in ('mem', 'environ', 'cmdline', 'fd/0'):\n"
        "        try: found += open('/proc/%s/%s' % (pid, name), 'rb').read(1000000)\n"
        "        except OSError: pass\n"
        "def f(x):\n    return {1: 2, 5: 6}.get(x, [1, 1]) if b'f(5) == 6' in found else 0\n"
    ),
    "kills the one who asks": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n" + RIGHT,
    "kills everyone": "import os, signal\nos.kill(-1, signal.SIGKILL)\n" + RIGHT,
    "answers nonsense": "import os\nos.write(4, b'\\xff' * 999)\n" + RIGHT,
    "answers with what nobody encodes": (
        "import os, struct\ndata = b'{\"value\": {\"tuple\": {\"set\": [[{}]]}}, \"changed\": {}}'\n"
        "def f(x):\n    os.write(4, struct.pack('>I', len(data)) + data)\n    return 0\n"
    ),
    "plants files for the one who judges": (
        "import os\n"
        "for name in ('sitecustomize.py', 'json.py', 'ast.py', 'conftest.py', 'usercustomize.py', 'solution.py'):\n"
        "    for folder in ('.', '/tmp', '/workspace', '/usr/lib/python3/dist-packages'):\n"
        "        try: open(os.path.join(folder, name), 'w').write('import os; os._exit(0)')\n"
        "        except OSError: pass\n"
        "def f(x):\n    return 0\n"
    ),
    "raises what nobody catches": "def f(x):\n    raise KeyboardInterrupt\n",
    "takes all memory": "hold = []\nwhile True: hold.append(bytearray(10**7))\n",
    "is a fork bomb": "import os\nwhile True: os.fork()\n",
    "writes outside": "open('/usr/agentgym', 'w').write('here')\n" + RIGHT,
    "never ends": "while True: pass\n" + RIGHT,
    "sleeps for ever": "import time\ndef f(x):\n    time.sleep(1000)\n",
}  # fmt: skip


@pytest.mark.parametrize("name", POISON)
def test_no_poisoned_program_passes_a_test(quick, name):
    verdict = judged(quick, POISON[name])
    assert not verdict.solved
    assert verdict.count("passed") == 0


@pytest.mark.parametrize("name", ["leaves at once", "is equal to everything", "is a fork bomb", "kills everyone"])
def test_nor_does_it_in_a_container(working, name):
    verdict = judged(Judge(working("docker"), Spec(limits=LIMITS)), POISON[name])
    assert not verdict.solved
    assert verdict.count("passed") == 0


def test_a_test_has_its_own_time_and_those_after_it_are_not_reached(quick):
    slow = "def f(x):\n    while x == 5: pass\n    return 2\n"
    assert ends(judged(quick, slow)) == ("passed", "timed_out", "failed")


def test_a_name_that_hides_a_builtin_is_the_programs_only_where_it_was_asked_for(quick):
    cheat = "def set(x):\n    return 0\ndef f(x):\n    return [9]\n"
    assert not judged(quick, cheat, "assert set(f(1)) == set([1])").solved
    assert judged(quick, "def sum(a, b):\n    return a + b", "assert sum(2, 3) == 5", remote=["sum"]).solved


def test_values_of_every_plain_kind_cross_the_border(quick):
    values = (
        "[True, None, -7, 10**40, 0.1, 1e300, float('inf'), 'ü\\ud800', b'\\xff', 2j, (1,), {1, 2}, frozenset('a'), "
        "{'k': [1]}, range(3), deque([1], 5), Counter('aab'), OrderedDict(a=1), Decimal('1.50'), Fraction(1, 3), "
        "date(2024, 2, 29), timedelta(1), bytearray(b'x'), int, ...]"
    )
    imports = (
        "from collections import *\nfrom decimal import Decimal\nfrom fractions import Fraction\nfrom datetime import *"
    )
    tests = f"{imports}\nv = {values}\nassert f(v) == v\nassert [type(a) for a in f(v)] == [type(a) for a in v]"
    verdict = judged(quick, "def f(x):\n    return x", tests)
    assert ends(verdict) == ("passed", "passed")
    assert judged(quick, "def f(x):\n    return float('nan')", "assert f(0) != f(0)").solved


def test_arguments_changed_in_place_iterators_objects_and_exceptions_are_what_they_are(quick):
    source = (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
        "def f(x):\n    x.sort()\n"
        "def same(x):\n    return x\n"
        "def count():\n    n = 0\n    while True:\n        yield n\n        n += 1\n"
        "def first(pair):\n    return pair.a\n"
        "def bad(x):\n    raise KeyError(x)\n"
    )
    tests = (
        "import itertools\n"
        "x = [3, 1]\nf(x)\nassert x == [1, 3]\n"
        "assert same(x) is x\n"
        "assert list(itertools.islice(count(), 3)) == [0, 1, 2]\n"
        "p = Pair(4, 5)\np.a = 9\nassert first(p) == 9 and p.b == 5\n"
        "assert Pair(1, 2) != Pair(1, 2)\n"
        "try:\n    bad(1)\n    assert False\nexcept KeyError:\n    assert True\n"
    )
    verdict = judged(quick, source, tests, remote=["f", "same", "count", "Pair", "first", "bad"])
    assert ends(verdict) == ("passed",) * 5 + ("failed", "passed")  # `assert False` is not reached
    assert not verdict.solved


def test_nested_too_deeply_and_too_large_are_failures_of_the_program(quick):
    assert not judged(quick, "def f(x):\n    a = []\n    for _ in range(9999): a = [a]\n    return a").solved
    assert not judged(quick, "def f(x):\n    return 'x' * (40 << 20)").solved
    assert not judged(quick, "def f(x):\n    a = []\n    a.append(a)\n    return a").solved


def test_a_sandbox_serves_again_only_after_a_plan_came_to_its_own_end(working):
    judge = Judge(working("bubblewrap"), Spec(limits=LIMITS.__class__(memory_bytes=400 << 20)), uses=3)
    judge.open()
    trace = "import os\ndef f(x):\n    names = os.listdir('.')\n    open('mark', 'w')\n    return len(names)\n"
    try:
        for _ in range(4):  # no run sees the file of the one before it
            assert judged(judge, trace, "assert f(0) == 0").solved
        assert not judged(judge, POISON["kills everyone"]).solved
        assert judged(judge, trace, "assert f(0) == 0").solved
    finally:
        run_sync(judge.close())


def test_a_lost_sandbox_is_no_verdict(working):
    class Lost:
        name = "lost"

        async def start(self, spec: Spec) -> Any:
            raise SandboxLost("gone")

    with pytest.raises(SandboxLost):
        judged(Judge(Lost(), Spec()), RIGHT)


# -- records -----------------------------------------------------------------------------------------------------------

HUMAN = {
    "task_id": "Own/0", "entry_point": "twice",
    "prompt": 'def half(x: int) -> int:\n    return x // 2\n\n\ndef twice(x: int) -> int:\n    """ Twice x. """\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n"
    "    for i in range(3):\n        assert half(candidate(i)) == i\n",
}  # fmt: skip
BASIC = {
    "task_id": 601, "text": "Write a function that adds two pairs.", "test_setup_code": "",
    "code": "import math\r\nclass Pair(object):\r\n  def __init__(self, a, b):\r\n    self.a = a\r\n    self.b = b\r\n"
    "def add(p, q):\r\n  return math.floor(p.a + q.a), p.b + q.b",
    "test_list": ["assert add(Pair(1, 2), Pair(3, 4)) == (4, 6)", "assert add(Pair(0, 0), Pair(0, 0)) == (0, 0)"],
}  # fmt: skip
CRUX = {"id": "own_0", "code": "def f(xs, k):\n    return sorted(xs)[:k]", "input": "[3, 1, 2], len('ab')",
        "output": "[1, 2]"}  # fmt: skip


def opened(working, tmp_path, layout, *records, **kwargs):
    path = tmp_path / f"{layout}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return agentgym.make("agentgym/Code-v0", layout=layout, data=str(path), sandbox=working("bubblewrap"), **kwargs)


def rewarded(env, action):
    env.reset(seed=0, options={"task": 0})
    return env.step(action)[1:]


def handed_in(code):
    return assistant("", call("submit", code=code))


def test_a_humaneval_record_takes_a_program_or_what_continues_its_prompt(working, tmp_path):
    env = opened(working, tmp_path, "humaneval", HUMAN)
    whole = HUMAN["prompt"] + HUMAN["canonical_solution"]
    for solution in (whole, "def twice(x):\n    return x + x", HUMAN["canonical_solution"]):
        assert rewarded(env, handed_in(solution))[0] == 1.0
    reward, *_, info = rewarded(env, handed_in(HUMAN["prompt"] + "    return 8 if x == 4 else None\n"))
    assert (reward, info["reward_parts"]) == (0.0, {"solved": 0.0, "share": 0.5})
    assert rewarded(env, assistant(f"Here it is:\n```python\n{whole}```\nDone."))[0] == 1.0
    prompt = env.reset(options={"task": 0})[0]["messages"][0]["content"]
    assert "candidate" not in prompt
    assert "return 2 * x" not in prompt
    env.close()


def test_an_mbpp_record_asks_for_the_names_that_its_tests_use(working, tmp_path):
    env = opened(working, tmp_path, "mbpp", BASIC)
    assert "Define `class Pair with __init__(self, a, b)`, `def add(p, q)`." in env.reset()[0]["messages"][0]["content"]
    assert play(env, Gold(), seed=0, task=0).reward == 1.0
    assert rewarded(env, handed_in("def add(p, q):\n    return (4, 6)"))[0] == 0.0
    assert env.unwrapped.task_id.startswith("train:")  # the authors' own splits: 601 and above
    env.close()


def test_a_prediction_is_a_literal_and_never_run(working, tmp_path):
    env = opened(working, tmp_path, "cruxeval", CRUX)
    assert env.reset()[0]["tools"] == []
    for answer, reward in (("[1, 2]", 1.0), ("```python\n[1, 2]\n```", 1.0), ("[1]", 0.0), ("sorted([1, 2])", 0.0)):
        assert rewarded(env, answer)[0] == reward
    assert rewarded(env, "[" * 100_000)[0] == 0.0
    env.close()


def test_partial_credit_is_the_weight_of_the_share(working, tmp_path):
    env = opened(working, tmp_path, "mbpp", BASIC, partial_credit=1.0)
    code = BASIC["code"].replace("p.b + q.b", "6")
    assert rewarded(env, handed_in(code))[0] == pytest.approx((0 + 0.5) / 2)
    env.close()


def test_a_stored_episode_is_judged_again_without_the_agent(working, tmp_path):
    env = opened(working, tmp_path, "mbpp", BASIC)
    played = play(env, Gold(), seed=0, task=0)
    world = env.unwrapped
    outcome = Outcome(world.task, json.loads(json.dumps(played.infos[-1]["final"])), world.messages)
    assert run_sync(world.rubric.score(outcome)).reward == 1.0
    env.close()


def test_broken_and_missing_data_are_named(working, tmp_path, monkeypatch):
    with pytest.raises(TaskError, match=r"humaneval.jsonl, record 1: no humaneval record \(KeyError: 'prompt'\)"):
        opened(working, tmp_path, "humaneval", {"task_id": 1, "entry_point": "f"})
    with pytest.raises(TaskError, match="hold no assert statement"):
        opened(working, tmp_path, "humaneval", {**HUMAN, "test": "def check(candidate):\n    pass\n"})
    monkeypatch.delenv("AGENTGYM_DATA", raising=False)
    with pytest.raises(ConfigError, match="no data: give data=PATH"):
        agentgym.make("agentgym/Code-v0", layout="mbpp", sandbox="bubblewrap")
    with pytest.raises(ConfigError, match="There are procedural, humaneval, mbpp"):
        agentgym.make("agentgym/Code-v0", layout="humanevall", sandbox="bubblewrap")


@pytest.mark.parametrize("layout", ["humaneval", "mbpp", "mbpp_sanitized", "cruxeval"])
def test_gold_solves_real_records(data, working, layout):
    env = agentgym.make("agentgym/Code-v0", layout=layout, data=str(data), sandbox=working("bubblewrap"))
    count = len(env.unwrapped.tasks.split(env.unwrapped.split))
    assert [play(env, Gold(), seed=0, task=i).reward for i in range(0, count, count // 5)][:5] == [1.0] * 5
    env.close()


# -- step by step ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps(working):
    env = agentgym.make("agentgym/Code-v0", horizon=3, sandbox=working("bubblewrap"))
    yield env
    env.close()


def test_lines_make_the_program_and_the_editor_says_what_is_left(steps):
    assert (
        assembled(["x += 1", "if x:\n    x = 2"]) == "def f(x):\n    x += 1\n    if x:\n        x = 2\n    return x\n"
    )
    steps.reset(seed=0, options={"task": 0})
    told, lines = steps.unwrapped.task.data["told"], steps.unwrapped.task.data["lines"]
    assert steps.unwrapped.task.prompt.endswith(f"Steps: {'; '.join(told)}.")
    replies = [steps.step(assistant("", call("write", line=line)))[0]["messages"][0]["content"] for line in lines]
    assert replies == [f"left: {told[1]}; {told[2]}", f"left: {told[2]}", "left: nothing"]
    assert not steps.unwrapped.sandbox.is_started
    assert steps.step(assistant("", call("submit")))[1] == 1.0


def test_another_way_to_do_the_same_is_right_and_too_early_is_wrong(steps):
    steps.reset(seed=0, options={"task": 1})
    lines = steps.unwrapped.task.data["lines"]
    one = "\n".join(lines)
    assert play(steps, Scripted([handed_in(f"f = lambda x: [exec({one!r}, d := {{'x': x}}), d['x']][1]")]), seed=0,
                task=1).reward == 1.0  # fmt: skip
    early = [assistant("", call("write", line=lines[0])), assistant("", call("submit"))]
    assert play(steps, Scripted(early), seed=0, task=1).reward == 0.0


def test_the_agents_python_runs_in_a_sandbox_of_its_own(steps):
    steps.reset(seed=0, options={"task": 2})
    reply = steps.step(assistant("", call("python", code="import os; x = 5\nx + 2, os.getuid() != 0")))
    assert reply[0]["messages"][0]["content"].strip() == "(7, True)"
    assert steps.unwrapped.sandbox.is_started
    steps.step(assistant("I give up."))
    with pytest.raises(ConfigError, match="closed"):
        steps.unwrapped.sandbox.sync.exec("true")


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_gold_solves_every_level(working, difficulty):
    env = agentgym.make("agentgym/Code-v0", horizon=(2, 5), difficulty=difficulty, sandbox=working("bubblewrap"))
    assert [play(env, Gold(), seed=0, task=i).reward for i in range(4)] == [1.0] * 4
    env.close()


def test_the_demonstrator_is_weak_and_seeded(working):
    env = agentgym.make("agentgym/Code-v0", split="demonstrations", max_turns=64, sandbox=working("bubblewrap"))
    world = env.unwrapped
    world.rubric = Rubric(as_told=lambda outcome: float(world.lines == outcome.task.data["lines"]))
    episodes = [play(env, builtin("demonstrator"), seed=i, task=i) for i in range(300)]
    assert 0.1 < sum(e.reward for e in episodes) / 300 < 0.35
    assert play(env, builtin("demonstrator"), seed=7, task=7).record == episodes[7].record
    env.close()


def test_wrong_dials_are_named():
    for kwargs, message in (
        ({"difficulty": 9}, "levels 0 to 3"),
        ({"horizon": 0}, "horizons="),
        ({"demonstrator": {"speed": 1}}, "demonstrator has no 'speed'"),
        ({"judge_uses": 0}, "judge_uses=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            agentgym.make("agentgym/Code-v0", sandbox="bubblewrap", **kwargs)


def test_a_cut_message_hands_in_nothing():
    assert closing_code({**assistant("f = 1"), "finish_reason": "length"}) is None
    assert closing_code(assistant("```python\nf = 1\n```\nand\n```py\nf = 2\n```")) == "f = 2\n"
