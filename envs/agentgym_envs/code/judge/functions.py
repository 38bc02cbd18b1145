"""Test functions, as pytest would collect them: each runs against a candidate's process of its own.

Owns their imports (the candidate's modules, trusted ones by their text, a small pytest) and the files they may open,
which are nowhere on a disk that the candidate could read."""

from __future__ import annotations

import io
import os
import sys

from agentgym_envs.code.judge import pytest_shim
from agentgym_envs.code.judge.remote import FAILED, PASSED, SKIPPED, TIMED_OUT, Candidate, Remote, Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Finder:
    """Imports of a test: modules of the candidate's side, trusted ones by their text, and a small pytest."""

    def __init__(self, plan: dict[str, Any], candidate: Candidate) -> None:
        self.plan, self.candidate = plan, candidate
        self.remote = {plan["name"], *plan["modules"]}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        parents = {other.rpartition(".")[0] for other in self.remote}
        if name == "pytest" or name in self.remote or name in self.plan["trusted_modules"] or name in parents:
            return type(sys.__spec__)(name, self, is_package=name in parents)
        return None

    def create_module(self, spec: Any) -> Any:
        if spec.name == "pytest":
            return pytest_shim.module(self.plan["pytest"])
        if spec.name in self.remote:
            return RemoteModule(spec.name, self.candidate)
        return None

    def exec_module(self, module: Any) -> None:
        source = self.plan["trusted_modules"].get(module.__name__)
        if source is not None:
            module.__dict__.update(_surroundings(self.plan, module.__name__.replace(".", "/") + ".py"))
            exec(compile(source, module.__name__, "exec"), module.__dict__)


class RemoteModule(type(sys)):
    def __init__(self, name: str, candidate: Candidate) -> None:
        super().__init__(name)
        self.__dict__["_candidate"] = candidate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Remote(self.__dict__["_candidate"], {"name": [self.__name__, name]})


def _surroundings(plan: dict[str, Any], name: str) -> dict[str, Any]:
    """A place among the plan's files, which are nowhere on the disk; `open` reads them."""
    builtin = vars(sys.modules["builtins"])

    def opened(path: Any, mode: str = "r", *_: Any, **__: Any) -> Any:
        text = plan["files"].get(os.path.normpath(str(path)))
        if text is None:
            raise FileNotFoundError(str(path))
        return io.BytesIO(text.encode()) if "b" in mode else io.StringIO(text)

    return {"__file__": plan["folder"] + "/" + name, "__builtins__": {**builtin, "open": opened}}


def run(plan: dict[str, Any], candidate: Candidate) -> list[list[str]]:
    sys.meta_path.insert(0, Finder(plan, candidate))  # type: ignore[arg-type]
    sys.modules.pop("pytest", None)
    space: dict[str, Any] = {"__name__": "tests", **_surroundings(plan, "test.py")}
    try:
        exec(compile(plan["tests"], "tests", "exec"), space)
    except (Exception, Stop):
        return [["collection", FAILED]]
    made = [case for name, value in space.items() if name.startswith("test") for case in pytest_shim.cases(name, value)]
    return [[name, one_function(function, candidate)] for name, function in made]


def one_function(function: Callable[[], Any], candidate: Candidate) -> str:
    """What came of one test, in a candidate's process of its own."""
    candidate.end()
    try:
        function()
    except pytest_shim.Skipped:
        return SKIPPED
    except Stop as stop:
        return TIMED_OUT if stop.timed_out else FAILED
    except Exception:
        return FAILED
    return PASSED
