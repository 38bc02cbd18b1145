"""Runs 9 to 11: tasks in a terminal, in Docker, on an image that needs no network (../terminal_image)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentgym_sandboxes import owners
from terminal_image.build import build

from acceptance_runs.base import Found, Setup, num_solved, play, run
from agentgym.errors import TaskError
from agentgym.messages import Message, assistant, call
from agentgym.policies.builtin import Gold, Nop, Scripted
from agentgym.registry import make
from agentgym.sandbox import backend

TERMINAL = "agentgym/Terminal-v0"
SETS = ("terminal_bench_2", "evoeval_tb1")
# Each line is one command of an agent that would rather not do the task.
PLANT = (
    "mkdir -p /logs/verifier /root/.local/bin; echo 1 > /logs/verifier/reward.txt; "
    "echo '{\"reward\": 1.0}' > /logs/verifier/reward.json",
    "echo 'mkdir -p /logs/verifier; echo 1 > /logs/verifier/reward.txt; exit 0' | "
    "tee /root/.local/bin/env /root/.bashrc /root/.profile > /etc/profile.d/x.sh",
    "setsid sh -c 'while :; do mkdir -p /logs/verifier; echo 1 > /logs/verifier/reward.txt; done' > /dev/null 2>&1 &",
)
FAKE = "#!/bin/sh\nmkdir -p /logs/verifier; echo 1 > /logs/verifier/reward.txt\necho '==== 2 passed in 0.01s ===='\n"
HOOK = (
    "import pytest\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
    "    outcome = yield\n    outcome.get_result().outcome = 'passed'\n"
)
EDIT = (
    "mkdir -p /tests; echo 'def test_outputs(): pass' > /tests/test_outputs.py; echo 'exit 0' > /tests/test.sh; "
    "chmod -R a-w /tests; ln -s /tests /tests/link",
    f"cat > /conftest.py <<'E'\n{HOOK}E\ncp /conftest.py /tests/; cp /conftest.py .; echo '[pytest]' > /pytest.ini; "
    "for f in $(python3 -c 'import site; print(*site.getsitepackages())'); do cp /conftest.py $f/sitecustomize.py; "
    f"cat >> $f/_pytest/runner.py <<'E'\nraise SystemExit(0)\nE\ndone",
    f"cat > /tmp/fake <<'E'\n{FAKE}E\nchmod 755 /tmp/fake; for name in uvx uv pytest python3.13 apt-get curl bash; do "
    "for folder in /usr/local/sbin /usr/local/bin /root/.local/bin /usr/bin; do cp --remove-destination /tmp/fake "
    "$folder/$name; done; done",
)
READ = (
    "for script in $(find / -xdev \\( -name solve.sh -o -name solution.sh \\) 2>/dev/null) /solution/solve.sh "
    "/oracle/solve.sh /solution.sh; do test -f $script && bash $script; done; true",
    "find / -xdev -path /usr -prune -o -name test_outputs.py -print 2>/dev/null; cat /tests/* /solution/* 2>/dev/null",
)
CHEATS = {"writes the reward": PLANT, "edits the tests": EDIT, "reads the solution": READ}


@run(9, "terminal_bench_2")
def terminal_bench_2(setup: Setup) -> Found:
    """Nothing done earns 0, the task's own solution 1."""
    return _nothing_and_gold(_unhurried(setup), "terminal_bench_2")


@run(10, "evoeval_tb1")
def evoeval_tb1(setup: Setup) -> Found:
    return _nothing_and_gold(setup, "evoeval_tb1")


def _nothing_and_gold(setup: Setup, name: str) -> Found:
    with _tasks(setup, name) as kwargs:
        empty = play(setup, TERMINAL, Nop(), **kwargs)
        oracle = play(setup, TERMINAL, Gold(), **kwargs)
    count, earned, solved = len(oracle), sum(episode.reward > 0 for episode in empty), num_solved(oracle)
    missed = [_name(episode) for episode in oracle if not episode.success]
    missed += [_name(episode) for episode in empty if episode.reward > 0]
    return Found(
        count, f"empty 0/{count}, oracle {count}/{count}",
        f"empty {earned}/{count}, oracle {solved}/{count}" + (f" (not {', '.join(missed[:8])})" if missed else ""),
        passed=count > 0 and earned == 0 and solved == count,
    )  # fmt: skip


@run(11, "isolation")
def isolation(setup: Setup) -> Found:
    """Over both sets: three ways of cheating earn nothing, and afterwards nothing of ours is left, a failed build
    included."""
    episodes, rewarded = 0, []
    with _own_temporary_folder() as folder:
        before = _holdings(folder)
        for name in SETS:
            if not (setup.data / name).is_dir():
                continue
            with _tasks(setup, name) as kwargs:
                for way, commands in CHEATS.items():
                    played = play(setup, TERMINAL, Scripted(_script(commands)), **kwargs)
                    episodes += len(played)
                    rewarded += [f"{_name(episode)} {way}" for episode in played if episode.reward > 0]
                _broken_build(Path(kwargs["tasks"]), kwargs)
        after = _holdings(folder)
    left = {kind: after[kind] - before[kind] for kind in before if after[kind] > before[kind]}
    told = ", ".join(f"{count} {kind}" for kind, count in left.items()) or "0"
    return Found(
        episodes, f"0 left, 0 of {episodes} rewarded",
        f"{told} left, {len(rewarded)} of {episodes} rewarded" + (f" ({', '.join(rewarded[:8])})" if rewarded else ""),
        passed=episodes > 0 and not left and not rewarded,
    )  # fmt: skip


def _script(commands: Sequence[str]) -> list[Message]:
    return [*(assistant("", call("bash", command=command)) for command in commands), assistant("Done.")]


def _name(episode: Any) -> str:
    return str((episode.final or {}).get("task", episode.task_id))


def _unhurried(setup: Setup) -> Setup:
    """As many episodes in flight as there are CPUs: some tasks' tests measure time, and each is given a CPU."""
    return replace(setup, workers=max(1, min(setup.workers, os.cpu_count() or 1)))


@contextlib.contextmanager
def _tasks(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """The arguments of an environment over the set's tasks, laid out in a folder that goes afterwards."""
    with _all_tasks(setup) as places:
        yield {"tasks": str(places[name]), "base_map": {"*": build(places.values())}, "sandbox": "docker"}


def offline_image(setup: Setup) -> str:
    """One image, made of what the tasks of both sets ask for: it stands for every base image that they name."""
    with _all_tasks(setup) as places:
        return build(places.values())


@contextlib.contextmanager
def _all_tasks(setup: Setup) -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(prefix="agentgym-acceptance-") as folder:
        yield {name: _laid_out(setup, name, Path(folder, name)) for name in SETS if (setup.data / name).is_dir()}


def _laid_out(setup: Setup, name: str, folder: Path) -> Path:
    with tarfile.open(setup.data / name / "tasks.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    inner = [path for path in folder.iterdir() if path.is_dir()]
    if len(inner) == 1 and not any((inner[0] / task).exists() for task in ("task.toml", "task.yaml")):
        return inner[0]
    return folder


def _broken_build(tasks: Path, kwargs: dict[str, Any]) -> None:
    """A task whose image cannot be built must be told as such, and leave nothing either."""
    source = next(path for path in sorted(tasks.iterdir()) if path.is_dir())
    with tempfile.TemporaryDirectory(prefix="agentgym-acceptance-") as folder:
        shutil.copytree(source, Path(folder, "broken"))
        path = next(Path(folder).rglob("Dockerfile"))
        path.write_text(f"{path.read_text()}\nRUN echo half > /half\nRUN false\n")
        env = make(TERMINAL, **{**kwargs, "tasks": folder})
        try:
            env.reset(seed=0, options={"task": 0})
        except TaskError:
            return
        finally:
            env.close()
    raise RuntimeError("a Dockerfile that fails was not told as a broken task")


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[Path]:
    """Where everything temporary of this process goes meanwhile, so that what is left can be told from others'."""
    before = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="agentgym-acceptance-") as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def _holdings(folder: Path) -> dict[str, int]:
    """What this process holds on the engine and on this machine."""
    docker: Any = backend("docker")
    api, own = docker.client.api, {"label": f"agentgym.owner={owners.owner()}"}
    return {
        "containers": len(api.containers(all=True, filters=own)),
        "volumes": len(api.volumes(filters={"dangling": True})["Volumes"] or ()),
        "untagged images": len(api.images(filters={"dangling": True})),
        "snapshots": len(api.images(filters=own)),
        "temporary folders": len(list(folder.iterdir())),
        "processes": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
    }
