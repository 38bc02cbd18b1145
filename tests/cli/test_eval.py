import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from agentgym.cli.eval import EvalConfig
from agentgym.cli.eval_table import markdown, remarks
from agentgym.cli.lock import locked
from agentgym.errors import ConfigError, StoreError
from agentgym.evaluation.figures import Cause, summarise
from agentgym.rollout.store import Store

COMMAND = str(Path(sys.executable).with_name("agentgym"))
SLOW_DOOR = """
import time
from agentgym import register, tool
from agentgym_envs.door.env import DoorEnv

class SlowDoor(DoorEnv):
    blocking = True

    def setup(self):
        super().setup()
        time.sleep(0.1)

register("slow/Door-v0", "slow_envs:SlowDoor")
"""


def finished(folder: Path) -> int:
    """Episodes so far, of a run that may not have begun to write."""
    try:
        return len(keys(folder))
    except StoreError:
        return 0


def keys(folder: Path) -> list[tuple[str, int]]:
    store = Store(folder / "run.sqlite", readonly=True)
    try:
        return [(e.task_id, e.attempt) for e in store.episodes()]
    finally:
        store.close()


def test_gold_opens_every_door_and_the_table_says_of_how_many(agentgym, tmp_path):
    done = agentgym("eval", "agentgym/Door-v0", "--model", "gold", "--limit", "20")
    assert done.returncode == 0, done.stderr
    # Wilson, 20 of 20: lower bound 20 / (20 + 3.841459) = 83.9 %
    assert "│       2 │ 100.0 % │ [83.9, 100.0] │     20 │      0 │" in done.stdout
    assert "coverage 100.0 % (20 of 20 scored)" in done.stdout
    folder = tmp_path / "runs/eval-Door-v0-gold-1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.toml", "lock", "run.sqlite", "spent.txt", "summary.json", "summary.md",
    ]  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["success"]["successes"] == summary["num_planned"] == 20
    assert summary["versions"]["gymnasium"]


def test_json_is_all_that_stands_on_standard_output(here, tmp_path):
    done = here("eval", "agentgym/Door-v0", "--model", "nop", "--limit", "3", "--attempts", "2", "--json")
    summary = json.loads(done.stdout)
    assert (summary["success"]["n"], summary["success"]["successes"], summary["coverage"]) == (6, 0, 1.0)
    assert len(keys(tmp_path / "runs/eval-Door-v0-nop-1")) == 6


def test_the_limit_counts_per_horizon_and_each_stands_in_its_own_row(here):
    done = here("eval", "agentgym/Lookup-v0", "--limit", "3", "--horizon", "2", "3", "9", "--json")
    rows = json.loads(done.stdout)["by_horizon"]
    assert [(row["horizon"], row["n"], row["successes"]) for row in rows] == [(2, 3, 3), (3, 3, 3), (9, 3, 3)]


def test_an_interrupted_evaluation_keeps_its_episodes_and_goes_on(tmp_path, environment):
    (tmp_path / "slow_envs.py").write_text(SLOW_DOOR)
    code = "import sys, slow_envs; from agentgym.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "eval", "slow/Door-v0", "--limit", "40", "--concurrency", "2"]
    command += ["--output", "out"]
    environment = environment | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while finished(tmp_path / "out") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    kept = keys(tmp_path / "out")
    assert process.returncode == 130, error
    assert 5 <= len(kept) < 40
    assert error.rstrip().endswith("agentgym eval slow/Door-v0 --limit 40 --concurrency 2 --output out --resume")
    again = [*command, "--resume"]
    done = subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    both = keys(tmp_path / "out")
    assert both[: len(kept)] == kept  # finished episodes are not played again
    assert len(set(both)) == len(both) == 40


def test_a_resumed_run_gives_the_figures_of_an_uninterrupted_one(here):
    base = ("eval", "agentgym/Lookup-v0", "--model", "demonstrator", "--seed", "3")
    here(*base, "--limit", "10", "--output", "parts")
    resumed = json.loads(here(*base, "--limit", "30", "--output", "parts", "--resume", "--json").stdout)
    whole = json.loads(here(*base, "--limit", "30", "--output", "whole", "--json").stdout)
    for figure in ("success", "by_horizon", "stop_reasons", "mean_turns"):
        assert resumed[figure] == whole[figure]


def test_an_existing_output_is_refused_with_the_fix(here):
    here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out")
    done = here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out")
    assert done.returncode == 2
    assert done.stderr == "error: --output out is there already: add --resume to go on, or choose another\n"


def test_resuming_with_another_seed_is_refused_with_both(here):
    here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out")
    done = here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out", "--resume", "--seed", "1")
    assert done.returncode == 2
    assert "out was begun with --seed 0, not 1" in done.stderr


def test_resuming_with_more_horizons_is_refused_by_name_for_tasks_take_them_in_turn(here):
    here("eval", "agentgym/Lookup-v0", "--horizon", "1", "2", "--limit", "2", "--output", "out")
    done = here("eval", "agentgym/Lookup-v0", "--horizon", "1", "2", "4", "--limit", "2", "--output", "out", "--resume")
    assert done.returncode == 2
    assert "out was begun with --horizon 1 2, not 1 2 4" in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("agentgym/Dor-v0",), "did you mean 'agentgym/Door-v0'?"),
        (("agentgym/Door-v0", "--model", "glod"), "did you mean 'gold'?"),
        (("agentgym/Door-v0", "--model", "./no/such/model"), "no/such/model"),
        (("agentgym/Door-v0", "--split", "tset"), "did you mean 'test'?"),
        (("agentgym/Door-v0", "--horizon", "3"), "agentgym/Door-v0 has no setting 'horizon'. It has split, max_turns"),
        (("agentgym/Door-v0", "--set", "difficulty"), "write name=value"),
        (("agentgym/Door-v0", "--limit", "0"), "--limit 0: give at least 1"),
        (("agentgym/Door-v0", "--concurrency", "0"), "--concurrency 0: give at least 1"),
        (("agentgym/Door-v0", "--seed", "-1"), "--seed -1: give at least 0"),
        (("agentgym/Door-v0", "--temperature", "-1"), "--temperature -1.0: give 0 (greedy) or more"),
        (("agentgym/Door-v0", "--resume"), "there is no run runs/eval-Door-v0-gold-*"),
        (("agentgym/Door-v0", "--config", "none.toml"), "none.toml: no such file"),
        (("agentgym/Door-v0", "--context", "last"), "--context changes nothing for --model gold"),
        (("agentgym/Door-v0", "--timeout-s", "nan"), "--timeout-s nan: give at least 1"),
        (("agentgym/Door-v0", "--num-parameters", "-5"), "--num-parameters -5: give at least 1"),
        (("agentgym/Door-v0", "--base-url", "http://x/v1", "--extra", "foo"), "--extra foo: write name=value"),
        (("agentgym/Door-v0", "--extra", "a=1"), "--extra changes nothing for --model gold"),
        (("agentgym/Door-v0", "--tool-calls", "xml"), "--tool-calls changes nothing for --model gold"),
        ((), "give an environment, such as agentgym/Door-v0, or --suite short"),
        (("agentgym/Door-v0", "agentgym/Dor-v0"), "did you mean 'agentgym/Door-v0'?"),
        (("agentgym/Door-v0", "agentgym/Door-v0"), "'agentgym/Door-v0' occurs 2 times"),
        (("--suite", "shrot"), "did you mean 'short'?"),
        (("agentgym/Door-v0", "--max-cost", "1"), "money needs both --price-in and --price-out"),
        (("agentgym/Door-v0", "--base-url", "localhost:8000"), "give the server's address"),
        (("agentgym/Door-v0", "--base-url", "http://x/v1", "--tool-calls", "herms"), "did you mean 'hermes'?"),
        (("agentgym/Door-v0", "--model", "no_such_module:f"), "No module named 'no_such_module'"),
        (("agentgym/Door-v0", "--best-of", "2", "--verifier", "no_such_module:f"), "No module named 'no_such_module'"),
    ],
)
def test_wrong_input_is_one_message_with_the_fix_and_writes_nothing(here, tmp_path, args, words):
    done = here("eval", *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(here, tmp_path):
    (tmp_path / "file").write_text("")
    done = here("eval", "agentgym/Door-v0", "--limit", "1", "--output", "file/out")
    assert done.returncode == 1
    assert done.stderr == "error: Not a directory (file/out): choose another --output or mend its permissions.\n"


def test_a_policy_that_the_environment_lacks_ends_the_run_and_is_named(here):
    done = here("eval", "agentgym/Arithmetic-v0", "--set", "generator=rubiks_cube", "--model", "gold", "--limit", "3")
    assert done.returncode == 2
    assert "ArithmeticEnv.gold() has nothing to say on turn 0" in done.stderr


def test_the_remarks_of_a_thin_evaluation_say_undecided():
    evaluation = replace(summarise("a/B-v0", "test", [], num_planned=10), causes=(Cause("SandboxError", 2, "gone"),))
    lines = remarks(evaluation)
    assert "coverage 0.0 % (0 of 10 scored)" in lines
    assert any(line.startswith("verdict: undecided") for line in lines)
    assert lines[-1] == "  2 x SandboxError, the first: gone"


def test_what_others_wrote_drives_neither_the_terminal_nor_the_page(here, tmp_path):
    (tmp_path / "rude.py").write_text(
        "def says(messages):\n    raise ValueError('\\x1b]0;owned\\x07 <b>\\n| a | [x](http://y) `z`')\n"
    )
    done = here("eval", "agentgym/Door-v0", "--model", "rude:says", "--limit", "2", "--output", "out")
    (line,) = [line for line in done.stdout.splitlines() if "the first:" in line]
    assert "‹U+001B›]0;owned‹U+0007› <b> | a | [x](http://y) `z`" in line
    page = (tmp_path / "out/summary.md").read_text()
    assert "‹U+001B›]0;owned‹U+0007› \\<b> \\| a \\| [x\\](http://y) \\`z\\`" in page
    shown = markdown([("environment", "success"), ("a|b", "–")], "m_1 \x1b", [])
    assert shown.splitlines() == [
        r"# m\_1 ‹U+001B›",
        "",
        "| environment | success |",
        "| --- | --- |",
        r"| a\|b | – |",
        "",
    ]


def test_negative_horizons_are_refused_with_the_value():
    with pytest.raises(ConfigError, match="--horizon 2 -1: a horizon is at least 1 turn"):
        EvalConfig(("a/B-v0",), horizon=(2, -1))


class Locksmith(BaseHTTPRequestHandler):
    """A model that reads the note, then types its code in; every reply costs 100 and 10 tokens."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"]
        name, arguments = "read_note", "{}"
        if messages[-1]["role"] == "tool":
            name, arguments = "enter", json.dumps({"code": messages[-1]["content"].rpartition(" ")[2].rstrip(".")})
        call = {"id": "a", "type": "function", "function": {"name": name, "arguments": arguments}}
        choice = {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        said = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Locksmith)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_a_served_model_opens_doors_and_the_bill_is_written(agentgym, tmp_path, url):
    done = agentgym(
        "eval", "agentgym/Door-v0", "--base-url", url, "--model", "a/locksmith", "--limit", "12", "--attempts", "2",
        "--price-in", "1", "--price-out", "5", "--num-parameters", "1000", "--concurrency", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/eval-Door-v0-locksmith-1"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["success"]["n"], summary["success"]["successes"]) == (24, 24)
    assert (summary["prompt_tokens"], summary["sampled_tokens"]) == (24 * 200, 24 * 20)
    assert summary["cost"] == pytest.approx((4800 * 1 + 480 * 5) / 1e6)
    assert summary["cost_per_success"] == pytest.approx(summary["cost"] / 24)
    assert summary["flops"] == 2 * 1000 * 5280
    assert [p["k"] for p in summary["passes"]] == [1, 2]
    assert "cost 0.0072: 0.0003 an episode, 0.0003 a success" in done.stdout
    assert "pass@2 100.0 %" in done.stdout
    page = (folder / "summary.md").read_text()
    assert "| 2 | 100.0 % |" in page
    assert "- coverage 100.0 % (24 of 24 scored)" in page


def test_a_budget_ends_the_run_in_time_says_so_and_a_larger_one_goes_on(here, tmp_path, url):
    base = ("eval", "agentgym/Door-v0", "--base-url", url, "--model", "m", "--price-in", "1", "--price-out", "5")
    rest = ("--limit", "100", "--max-tokens", "20", "--concurrency", "4", "--output", "out")
    done = here(*base, *rest, "--max-cost", "0.015")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert 4 <= summary["num_played"] < 50
    assert 0.008 < summary["cost"] <= 0.015
    assert summary["verdict"] == "undecided"
    assert f"coverage {summary['num_played']:.1f} % ({summary['num_played']} of 100 scored)" in done.stdout
    assert "The budget is spent; --resume with a larger one goes on." in done.stdout
    assert "pilot: about cost 0.03, 22,000 tokens" in done.stderr
    done = here(*base, *rest, "--max-cost", "1", "--resume")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["num_played"], summary["verdict"], summary["cost"]) == (100, "decided", pytest.approx(0.03))
    assert len(set(keys(tmp_path / "out"))) == 100


PRICED = """
import os
from pathlib import Path
def says(messages):
    bill = Path("bill.txt").read_text().split() if Path("bill.txt").exists() else []
    if len(bill) >= 20 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), 9)
    read = sum(len(m["content"]) for m in messages)
    with open("bill.txt", "a") as file:
        file.write(f"{read + 200}\\n")
    call = {"function": {"name": "read_note", "arguments": "{}"}}
    calls = [call] if len(bill) > 4 else []  # later ones go on and on
    return {"content": "", "tool_calls": calls, "num_tokens": 200, "prompt_tokens": read}
"""


def test_a_run_that_was_killed_pays_for_what_was_cut_when_it_goes_on(agentgym, here, tmp_path):
    (tmp_path / "priced.py").write_text(PRICED)
    flags = ("eval", "agentgym/Door-v0", "--limit", "60", "--model", "priced:says", "--output", "out", "--resume")
    flags += ("--max-total-tokens", "20000", "--concurrency", "4")

    def billed() -> int:
        return sum(map(int, (tmp_path / "bill.txt").read_text().split()))

    assert agentgym(*flags).returncode == -signal.SIGKILL
    assert billed() <= sum(map(int, (tmp_path / "out/spent.txt").read_text().split()))
    done = here(*flags)
    spent = json.loads((tmp_path / "out/summary.json").read_text())["spent"]
    assert 10_000 < billed() <= spent["prompt_tokens"] + spent["sampled_tokens"] <= 20_000
    assert " tokens of 20,000" in done.stdout
    here(*flags)
    assert billed() <= 20_000
    (tmp_path / "out/spent.txt").write_text("much")
    assert "out/spent.txt holds 'much' in place of two counts" in here(*flags).stderr


def test_what_was_spent_without_a_limit_counts_when_there_is_one(here, tmp_path):
    (tmp_path / "priced.py").write_text(
        "def says(messages):\n    return {'content': 'no', 'num_tokens': 10, 'prompt_tokens': 90}\n"
    )
    flags = ("eval", "agentgym/Door-v0", "--model", "priced:says", "--output", "out", "--resume")

    def spent() -> int:
        return sum(map(int, (tmp_path / "out/spent.txt").read_text().split()))

    here(*flags, "--limit", "8", "--max-total-tokens", "100000")
    here(*flags, "--limit", "20")
    assert spent() == 2000
    done = here(*flags, "--limit", "40", "--max-total-tokens", "2400", "--max-tokens", "10")
    assert 2000 <= spent() <= 2400
    assert json.loads((tmp_path / "out/summary.json").read_text())["num_played"] * 100 <= 2400, done.stdout


def test_a_refused_resume_leaves_the_run_as_it_was(here, tmp_path):
    base = ("eval", "agentgym/Door-v0", "--output", "out", "--limit")
    here(*base, "4")
    written = (tmp_path / "out/config.toml").read_text()
    assert "holds 4 finished attempts" not in here(*base, "6", "--resume").stderr
    grown = (tmp_path / "out/config.toml").read_text()
    assert "limit = 4\n" in written
    assert here(*base, "2", "--resume").returncode == 2
    assert (tmp_path / "out/config.toml").read_text() == grown
    assert "limit = 6\n" in grown


def test_a_server_that_is_down_leaves_nothing_scored(here, monkeypatch):
    monkeypatch.setattr("agentgym.chat.WAIT_S", 0.01)
    done = here("eval", "agentgym/Door-v0", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--limit", "2")
    assert done.returncode == 1
    assert "coverage 0.0 % (0 of 2 scored)" in done.stdout
    assert "failures: infrastructure 2" in done.stdout
    assert "2 x ChatError, the first: http://127.0.0.1:9/v1/chat/completions gave no answer in 6 tries" in done.stdout


def test_a_function_of_ones_own_is_a_policy(here, tmp_path, monkeypatch):
    (tmp_path / "my_agent.py").write_text(
        "from agentgym import assistant, call\n"
        "def answer(messages):\n"
        "    if messages[-1]['role'] != 'tool':\n"
        "        return assistant('', call('read_note'))\n"
        "    return assistant('', call('enter', code=messages[-1]['content'].rpartition(' ')[2].rstrip('.')))\n"
        "def rubbish(messages):\n"
        "    return [messages]\n"
    )
    done = here("eval", "agentgym/Door-v0", "--model", "my_agent:answer", "--limit", "3", "--json")
    assert json.loads(done.stdout)["success"]["successes"] == 3
    found = json.loads(here("eval", "agentgym/Door-v0", "--model", "my_agent:rubbish", "--limit", "3", "--json").stdout)
    assert (found["success"]["n"], found["success"]["successes"], found["failures"]) == (3, 0, {"policy": 3})


def test_several_environments_stand_beside_one_another_with_their_mean(here, tmp_path):
    both = ("agentgym/Door-v0", "agentgym/Lookup-v0")
    done = here("eval", *both, "--model", "nop", "--limit", "3", "--output", "out", "--report")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [(e["name"], e["weight"], e["num_scored"]) for e in summary["environments"]] == [
        ("agentgym/Door-v0", 1.0, 3), ("agentgym/Lookup-v0", 1.0, 3),
    ]  # fmt: skip
    assert (summary["env"], summary["success"]["n"]) == (", ".join(both), 6)
    assert (summary["num_planned"], summary["coverage"], summary["cost"]) == (6, 1.0, None)
    assert "6 scored attempts of 6 planned" in " ".join((tmp_path / "out/report.html").read_text().split())
    assert "│ weighted" in done.stdout
    with Store(tmp_path / "out/run.sqlite", readonly=True) as store:
        assert store.runs() == {"agentgym/Door-v0": 3, "agentgym/Lookup-v0": 3}


def test_the_shipped_suite_is_won_by_gold_and_goes_on_after_an_interrupt(here, tmp_path):
    done = here("eval", "--suite", "short", "--output", "out")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["success"]["rate"], summary["verdict"], len(summary["environments"])) == (1.0, "decided", 7)
    again = here("eval", "--suite", "short", "--output", "out", "--resume")
    assert again.returncode == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["success"] == summary["success"]


def test_a_suite_says_what_is_played_and_flags_that_would_say_it_again_are_refused(here, tmp_path):
    (tmp_path / "mine.toml").write_text("[sampling]\nmax_tokens = 7\n[[part]]\nenv = 'agentgym/Door-v0'\nlimit = 2\n")
    summary = json.loads(here("eval", "--suite", "mine.toml", "--model", "nop", "--json", "--output", "set").stdout)
    assert (summary["env"], summary["num_planned"]) == ("agentgym/Door-v0", 2)
    assert summary["config"]["policy"]["max_tokens"] == 7
    for limit in (("--limit", "9"), ("--limit=100",)):  # the second is what it is without a suite
        done = here("eval", "--suite", "mine.toml", *limit)
        assert "--suite mine.toml says limit for each environment; leave it out here" in done.stderr
    for most in ("9", "256"):
        done = here("eval", "--suite", "mine.toml", "--max-tokens", most)
        assert "--suite mine.toml says max_tokens = 7; leave --max-tokens out here" in done.stderr
    (tmp_path / "defaults.toml").write_text("limit = 9\n")
    done = here("eval", "--suite", "mine.toml", "--config", "defaults.toml")
    assert "--suite mine.toml says limit for each environment; leave it out here" in done.stderr
    (tmp_path / "mine.toml").write_text("[sampling]\ntemperature = -1.0\n[[part]]\nenv = 'agentgym/Door-v0'\n")
    done = here("eval", "--suite", "mine.toml")
    assert "--suite mine.toml: sampling: temperature -1.0: give 0 (greedy) or more" in done.stderr


LOOKUP = "[[part]]\nenv = 'agentgym/Lookup-v0'\nname = 'a'\nlimit = {limit}\nset = {{ max_turns = {most} }}\n"


def test_a_suite_that_says_something_else_than_before_is_refused_and_one_that_asks_for_more_is_not(here, tmp_path):
    (tmp_path / "mine.toml").write_text(LOOKUP.format(limit=3, most=1))
    command = ("eval", "--suite", "mine.toml", "--output", "out", "--resume")
    assert here(*command).returncode == 0
    for text, words in (
        (LOOKUP.format(limit=6, most=9), "out was begun with a: set {'max_turns': 1}, not {'max_turns': 9}; use the"),
        (LOOKUP.format(limit=3, most=1) + "[[part]]\nenv = 'x/B-v0'\n", "out was begun with parts a, not a x/B-v0"),
        (LOOKUP.format(limit=3, most=1) + "weight = 2.0\n", "out was begun with a: weight 1.0, not 2.0"),
    ):
        (tmp_path / "mine.toml").write_text(text.replace("x/B-v0", "agentgym/Door-v0"))
        done = here(*command)
        assert (done.returncode, words.replace("x/B-v0", "agentgym/Door-v0") in done.stderr) == (2, True), done.stderr
    assert len(keys(tmp_path / "out")) == 3
    (tmp_path / "mine.toml").write_text(LOOKUP.format(limit=6, most=1))
    assert here(*command).returncode == 0
    assert len(keys(tmp_path / "out")) == 6


@pytest.mark.parametrize("is_old", [False, True])  # one from before runs kept what the suite said
def test_a_run_of_a_suite_is_read_as_it_was_asked_for(here, tmp_path, is_old):
    text = "[[part]]\nenv = 'agentgym/Lookup-v0'\nname = 'a'\nlimit = 2\nsplit = 'validation'\nhorizon = [2, 3]\n"
    (tmp_path / "mine.toml").write_text(text)
    assert here("eval", "--suite", "mine.toml", "--model", "demonstrator", "--output", "out").returncode == 0
    if is_old:
        kept = [line for line in Path("out/config.toml").read_text().splitlines() if not line.startswith("part = ")]
        Path("out/config.toml").write_text("\n".join(kept))
    else:
        (tmp_path / "mine.toml").unlink()
    done = here("score", "out")
    assert "phase eval: 4 of 4 judged again" in done.stdout, done.stderr
    assert "eval 4" in here("show", "out").stdout
    done = here("horizon", "out", "--output", "measured", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["horizon"] for row in found["by_horizon"]] == [2, 3]
    assert found["survival"]["after"], found  # gold's way is looked up in the split and at the horizons of the part


def test_the_name_of_a_part_is_shown_and_not_obeyed(here, tmp_path):
    named = "[[part]]\nenv = 'agentgym/Door-v0'\nlimit = 1\nname = "
    (tmp_path / "mine.toml").write_text(named + '"a\\u001b]0;pwn\\u0007"\n' + named + "'b'\n")
    done = here("eval", "--suite", "mine.toml", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "a‹U+001B›]0;pwn‹U+0007›:" in done.stdout
    assert not {"\x1b", "\x07"} & {*done.stdout}


def test_tasks_by_their_ids(here):
    first = json.loads(here("eval", "agentgym/Door-v0", "--limit", "1", "--output", "a", "--json").stdout)
    assert first["num_planned"] == 1
    with Store("a/run.sqlite", readonly=True) as store:
        (episode,) = store.episodes()
    done = here("eval", "agentgym/Door-v0", "--task", episode.task_id, "--attempts", "3", "--output", "b", "--json")
    assert json.loads(done.stdout)["num_played"] == 3
    done = here("eval", "agentgym/Door-v0", "--task", "tset:abc")
    assert done.returncode == 2
    assert "no split 'tset'; did you mean 'test'?" in done.stderr


def test_a_run_that_is_being_written_names_its_writer_to_a_second_one(here, tmp_path):
    here("eval", "agentgym/Door-v0", "--limit", "2", "--output", "out")
    with locked(tmp_path / "out"):
        done = here("eval", "agentgym/Door-v0", "--limit", "4", "--output", "out", "--resume")
        shown = here("show", "out")
    assert done.returncode == 2
    assert f"out is in use by another process (process {os.getpid()} on " in done.stderr
    assert "eval 2" in shown.stdout  # reading needs no lock
    assert len(keys(tmp_path / "out")) == 2


def test_a_folder_in_which_nothing_was_begun_is_begun_with_or_without_resume(here, tmp_path):
    for name, flags in (("a", ()), ("b", ("--resume",)), ("c", ("--resume",))):
        if name != "c":
            (tmp_path / name).mkdir()
            (tmp_path / name / "lock").write_text("process 1 on gone\n")
            (tmp_path / name / "config.tmp").write_text('env = ["agentg')  # torn
        assert here("eval", "agentgym/Door-v0", "--limit", "2", "--output", name, *flags).returncode == 0
        assert len(keys(tmp_path / name)) == 2


def test_killed_again_and_again_the_command_goes_on_to_the_same_figures(tmp_path, environment):
    (tmp_path / "slow_envs.py").write_text(SLOW_DOOR.replace("0.1", "0.02"))
    command = [COMMAND, "eval", "slow_envs:slow/Door-v0", "--limit", "60", "--concurrency", "2", "--output", "out"]
    environment = environment | {"PYTHONPATH": str(tmp_path)}
    kept: list = []
    for least in (1, 9, 25):
        process = subprocess.Popen([*command, "--resume"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while finished(tmp_path / "out") < least:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert keys(tmp_path / "out")[: len(kept)] == kept
        kept = keys(tmp_path / "out")
    assert len(kept) < 60
    done = subprocess.run(
        [*command, "--resume", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    both = keys(tmp_path / "out")
    assert both[: len(kept)] == kept
    assert len(set(both)) == len(both) == 60
    assert json.loads(done.stdout)["success"] | {"low": 0} == {
        "rate": 1.0,
        "low": 0,
        "high": 1.0,
        "n": 60,
        "successes": 60,
    }


def test_more_replies_per_message_are_asked_for_and_counted(here, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def says(messages, seed):\n"
        "    return {'role': 'assistant', 'content': str(seed % 5), 'num_tokens': 3}\n"
        "def least(messages, reply):\n"
        "    return -int(reply['content'])\n"
    )

    def played(*flags: str) -> dict:
        done = here("eval", "agentgym/Answer-v0", "--model", "mine:says", "--limit", "6", "--json", *flags)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    alone = played()["sampled_tokens"]
    assert [played("--majority", "4")["sampled_tokens"], played("--think-again", "1")["sampled_tokens"]] == [
        4 * alone, 2 * alone
    ]  # fmt: skip
    best = played("--best-of", "3", "--verifier", "mine:least", "--output", "best")
    assert best["sampled_tokens"] == 3 * alone
    assert best["config"]["policy"]["best_of"] == 3
    both = here("eval", "agentgym/Answer-v0", "--majority", "2", "--think-again", "1")
    assert both.returncode == 2
    assert "--best-of, --majority and --think-again: give one of them" in both.stderr
