import math
import re
import subprocess
from pathlib import Path

import pytest
import torch

from agentgym.learner.composition import ObjectiveConfig, loss
from agentgym.learner.objectives import TokenBatch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_code_of_the_readme_runs(readme):
    environment, use, *_ = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    names: dict = {}
    exec(environment, names)
    exec(use, names)
    assert names["observation"]["messages"][0]["content"].startswith("The code is ")
    env = names["DoorEnv"]()
    env.reset(seed=0)
    env.step("I give up")
    assert env.final() == {"opened": False}


def test_the_sandbox_of_the_readme_runs(readme, bubblewrap, monkeypatch, capsys):
    monkeypatch.setenv("AGENTGYM_SANDBOX", "bubblewrap")
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[2], names)
    assert capsys.readouterr().out == "42\n 0 False False\n"
    names["sandbox"].sync.close()


def test_the_objective_of_the_readme_trains(readme, monkeypatch, tmp_path):
    code = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[3]
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    config = ObjectiveConfig("mine:clipped_at_one", clip_low=0.5)
    nothing = torch.zeros(2, dtype=torch.long)
    logp = torch.tensor([-1.0, -1.0], requires_grad=True)
    behaviour = torch.tensor([-1.0 - math.log(0.8), -2.0])  # ratios 0.8 and e
    tokens = TokenBatch(logp, behaviour, torch.tensor([2.0, 3.0]), nothing == 0, nothing, nothing)
    found, _ = loss(tokens, torch.zeros(2), config)
    assert found.tolist() == pytest.approx([-1.6, -3.0])


def test_the_first_screen_is_one_sentence_two_commands_and_a_picture(readme):
    first = readme.splitlines()[:8]
    assert first[0] == "# agentgym"
    assert first[1].startswith("A gym for ")
    assert [line.split()[:2] for line in first if line.startswith("    ")] == [["make", "train"], ["make", "test"]]
    assert first[-2].startswith("![") or first[-1].startswith("![")


def test_no_text_sends_anybody_to_the_stranger_of_that_name_on_the_index():
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".md", ".py", ".toml", ".jinja", ""} and path.is_file() and not name.startswith("tests/"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"pip3? install (-U |--upgrade )?['\"]?agentgym\b(?![/-])", text), name


def test_ci_asks_nothing_and_runs_lint_and_tests():
    path = ROOT / ".ci/run"
    text = path.read_text()
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in text
    assert "exec </dev/null" in text
    assert text.index("make lint") < text.index("make test")
    subprocess.run(["bash", "-n", path], check=True)
