"""Ids, plug-ins, and how fast and lean the import is."""

import json
import os
import re
import subprocess
import sys

import gymnasium
import pytest

import agentgym
from agentgym import ConfigError

ENV = """
from agentgym import AgentEnv, Rubric, Task, TaskSet, answer_equals

class PingEnv(AgentEnv):
    tasks = TaskSet({"train": [Task("Say pong.", "pong")]})
    rubric = Rubric(said=answer_equals)
"""


def python(code, *, path="", check=True):
    environ = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=check)


def plugin(folder, name, code):
    """An installed package as pip leaves it: a module, and metadata with its entry point."""
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(f"[agentgym.envs]\n{name} = {name}\n")


def test_the_shipped_environments_are_listed():
    ids = [spec.id for spec in agentgym.list_envs()]
    assert {"agentgym/Door-v0", "agentgym/Lookup-v0", "agentgym/Arithmetic-v0"} <= set(ids)
    assert "CartPole-v1" not in ids


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(ConfigError, match="no environment 'agentgym/Lokup-v0'; did you mean 'agentgym/Lookup-v0'"):
        agentgym.make("agentgym/Lokup-v0")
    with pytest.raises(ConfigError, match="no environment 'no_such_module:acme/Door-v0'"):
        agentgym.make("no_such_module:acme/Door-v0")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"hrizon": 2},
            "agentgym/Lookup-v0 has no setting 'hrizon'; did you mean 'horizon'? It has horizon,",
        ),
        ({"split": 3}, "agentgym/Lookup-v0 cannot be made with split=3: "),
        ({"horizon": None, "max_episode_steps": 5}, "agentgym/Lookup-v0 cannot be made with horizon=None, max_epi"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(settings, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        agentgym.make("agentgym/Lookup-v0", **settings)


def test_a_module_may_be_named_in_the_id():
    code = "import gymnasium; print(gymnasium.make('agentgym:agentgym/Door-v0').spec.id)"
    assert python(code).stdout.strip() == "agentgym/Door-v0"


def test_specs_travel_as_json():
    for kwargs in ({"horizon": [1, 2]}, {"horizon": 3, "difficulty": 2, "demonstrator": {"slip": 0.5}}):
        spec = agentgym.make("agentgym/Lookup-v0", **kwargs).spec
        again = gymnasium.envs.registration.EnvSpec.from_json(spec.to_json())
        assert gymnasium.make(again).reset(seed=1) == gymnasium.make(spec).reset(seed=1)


def test_a_class_for_an_entry_point_and_an_id_without_namespace_are_refused():
    with pytest.raises(ConfigError, match=r"'package\.module:Class'"):
        agentgym.register("acme/Ping-v0", dict)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no namespace"):
        agentgym.register("Ping-v0", "a:B")


def test_a_third_party_package_is_found_without_importing_its_environment(tmp_path):
    plugin(tmp_path, "acme", "import gymnasium\ngymnasium.register('acme/Ping-v0', 'acme_ping:PingEnv')")
    (tmp_path / "acme_ping.py").write_text(ENV)
    code = (
        "import agentgym, sys, json; ids = [s.id for s in agentgym.list_envs()]; early = 'acme_ping' in sys.modules;"
        "env = agentgym.make('acme/Ping-v0'); env.reset(); print(json.dumps([ids, early, env.step('pong')[1]]))"
    )
    ids, early, reward = json.loads(python(code, path=tmp_path).stdout)
    assert "acme/Ping-v0" in ids
    assert (early, reward) == (False, 1.0)


def test_a_broken_plugin_is_one_warning_that_names_its_package(tmp_path):
    plugin(tmp_path, "shaky", "raise RuntimeError('no licence')")
    done = python("import agentgym; print(len(agentgym.list_envs()) >= 3)", path=tmp_path)
    assert done.stdout.strip() == "True"
    assert done.stderr.count("UserWarning") == 1
    assert "package shaky 1.2 (shaky = shaky) offers environments but does not load" in done.stderr
    assert "no licence" in done.stderr


def test_the_import_is_lean():
    heavy = ("torch", "transformers", "docker", "ray", "scipy", "rich", "httpx", "pydantic", "reasoning_gym")
    code = f"import agentgym, sys; print([name for name in {heavy} if name in sys.modules])"
    assert python(code).stdout.strip() == "[]"


def test_the_import_takes_little_more_than_gymnasiums():
    code = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
    ours, theirs = (
        min(float(python(code.format(name)).stdout) for _ in range(5)) for name in ("agentgym", "gymnasium")
    )
    assert ours - theirs < 0.15
