"""A stranger's package: built as a wheel, installed beside ours in an environment of its own, and simply there."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
[project]
name = "acme-envs"
version = "1.0"
dependencies = ["agentgym>=0.1"]
[project.entry-points."agentgym.envs"]
acme = "acme_envs"
"""
REGISTERS = """
from agentgym import register
register("acme/Echo-v3", "acme_envs.echo:EchoEnv")
"""
ENV = '''
from agentgym import AgentEnv, Rubric, Task, TaskSet, answer_equals, assistant, tool


class EchoEnv(AgentEnv):
    """Say the word you were shown. Horizon: 1 turn and an answer."""

    blocking = False
    tasks = TaskSet.procedural(
        lambda rng: Task("Show the word, then say it.", f"{rng.integers(10**6):06}", metadata={"horizon": 1})
    )
    rubric = Rubric(said=answer_equals)

    def setup(self):
        self.shown = False

    @tool
    def show(self) -> str:
        """Show the word."""
        self.shown = True
        return self.task.answer

    def gold(self):
        from agentgym import call
        return assistant(self.task.answer) if self.shown else assistant("", call("show"))
'''


def ran(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a new environment that holds our wheel and the stranger's, with what they depend on and no more."""
    base = tmp_path_factory.mktemp("third-party")
    package = base / "acme" / "acme_envs"
    package.mkdir(parents=True)
    (base / "acme" / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").write_text(REGISTERS)
    (package / "echo.py").write_text(ENV)
    for source in (ROOT, base / "acme"):
        ran(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", base / "dist", source)
    venv.create(base / "venv", with_pip=True)
    wheels = sorted((base / "dist").glob("*.whl"))
    assert len(wheels) == 2
    ran(base / "venv" / "bin" / "pip", "install", "--quiet", *wheels)
    return base / "venv" / "bin"


def test_a_third_party_environment_is_listed_made_checked_and_evaluated(installed: Path, tmp_path: Path):
    agentgym = installed / "agentgym"
    assert "acme/Echo-v3" in ran(agentgym, "list", cwd=tmp_path)
    made = "import agentgym; print(agentgym.make('acme/Echo-v3').reset(seed=0)[0]['messages'][0]['content'])"
    assert ran(installed / "python", "-W", "error", "-c", made, cwd=tmp_path) == "Show the word, then say it.\n"
    ran(agentgym, "check", "acme/Echo-v3", cwd=tmp_path)
    ran(agentgym, "eval", "acme/Echo-v3", "--model", "gold", "--limit", "5", "--output", "gold", cwd=tmp_path)
    ran(agentgym, "eval", "acme/Echo-v3", "--model", "nop", "--limit", "5", "--output", "nop", cwd=tmp_path)
    rates = [json.loads((tmp_path / name / "summary.json").read_text())["success"]["rate"] for name in ("gold", "nop")]
    assert rates == [1.0, 0.0]


def test_without_the_train_extra_training_says_what_is_missing(installed: Path, tmp_path: Path):
    done = subprocess.run([installed / "agentgym", "train"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "torch" in done.stderr
    assert "Traceback" not in done.stderr
