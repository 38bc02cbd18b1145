"""The trusted process: runs the tests, asks the candidate's process for every call, and says what came of each.

Owns the plan's three styles. `asserts`: every assert statement is a test, in a text that may define `check` to be
called. `functions`: test functions as pytest would collect them. `output`: one expression, and the value foretold.
Its exit status is 0 where all passed; its one line on standard output tells the rest."""

from __future__ import annotations

import ctypes
import os
import time

from agentgym_envs.code.judge import codec, functions
from agentgym_envs.code.judge.remote import FAILED, PASSED, SKIPPED, TIMED_OUT, Candidate, Remote, Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PR_SET_DUMPABLE = 4
ONLY_AST = 0x400
HOOK = "_agentgym_case"


class Names(dict):  # type: ignore[type-arg]
    """The names of a test: its own, then those that the candidate was asked to define, then Python's."""

    def __init__(self, own: dict[str, Any], remote: dict[str, Remote]) -> None:
        super().__init__(own)
        self.remote = remote

    def __missing__(self, name: str) -> Any:
        return self.remote[name]


class Tally:
    """What came of each assert statement: it passed where it was reached, and never failed."""

    def __init__(self, total: int, begin: Callable[[], None]) -> None:
        self.results: list[str | None] = [None] * total
        self.begin = begin

    def passed(self, index: int) -> None:
        self.results[index] = self.results[index] or PASSED
        self.begin()

    def failed(self, index: int) -> None:
        self.results[index] = FAILED
        self.begin()


def told(node: Any, count: int) -> int:
    """Let every assert statement below `node` tell its end to the tally, and the tests after it go on; how many there
    are with the `count` before. (The module `ast` would do it too: its import alone doubles the time.)"""
    for name in getattr(node, "_fields", ()):
        value = getattr(node, name)
        if not isinstance(value, list):
            count = told(value, count)
            continue
        for index, item in enumerate(value):
            if type(item).__name__ != "Assert":
                count = told(item, count)
                continue
            text = f"try: pass\nexcept Exception: {HOOK}.failed({count})\nelse: {HOOK}.passed({count})"
            wrapped: Any = compile(text, "told", "exec", ONLY_AST).body[0]  # type: ignore[attr-defined]
            wrapped.body = [item]
            value[index] = wrapped
            count += 1
    return count


def run_asserts(plan: dict[str, Any], candidate: Candidate) -> list[list[str]]:
    module = plan["name"]
    remote = {name: Remote(candidate, {"name": [module, name]}) for name in plan["remote"]}
    tree: Any = compile(plan["tests"], "tests", "exec", ONLY_AST)
    tally = Tally(told(tree, 0), candidate.begin)
    own: dict[str, Any] = {"__name__": "tests", HOOK: tally}
    exec(compile(plan["trusted"], "trusted", "exec"), own)
    for name in remote:
        own.pop(name, None)
    names = Names(own, remote)
    ended = ""
    try:
        exec(compile(tree, "tests", "exec"), names)
        if plan["call"]:
            names[plan["call"]](remote[plan["remote"][0]])
    except Stop as stop:
        ended = TIMED_OUT if stop.timed_out else FAILED
    except Exception:
        ended = FAILED
    if ended and tally.results:
        index = next((i for i, result in enumerate(tally.results) if result is None), -1)
        tally.results[index] = ended  # of the last, where an earlier one failed within a loop
    return [["assert %d" % i, result or FAILED] for i, result in enumerate(tally.results)]


def run_output(plan: dict[str, Any], candidate: Candidate) -> list[list[str]]:
    """The candidate here is the task's own program; what the agent gave is a literal, read as nothing else."""
    import ast  # noqa: PLC0415 - only here

    try:
        foretold = ast.literal_eval(plan["foretold"].strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return [["output", FAILED]]
    candidate.begin()
    try:
        target = Remote(candidate, {"name": [plan["name"], "_agentgym_output"]})
        return [["output", PASSED if bool(target() == foretold) else FAILED]]
    except Stop as stop:
        return [["output", TIMED_OUT if stop.timed_out else FAILED]]
    except Exception:
        return [["output", FAILED]]


STYLES = {"asserts": run_asserts, "functions": functions.run, "output": run_output}


def main(payload: dict[str, Any]) -> int:
    """Never returns to a caller that the candidate could reach: this process cannot be looked into."""
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        return 3
    plan = payload["plan"]
    told = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    solution = {key: plan[key] for key in ("name", "source", "prelude", "modules")}
    until = time.monotonic() + plan["total_s"]
    candidate = Candidate(payload["child"], {"do": "load", **solution}, plan["test_s"], until)
    try:
        results = STYLES[plan["style"]](plan, candidate)
    finally:
        candidate.end()
    os.write(told, codec.told_text({"tests": results}))
    return 0 if results and all(result in (PASSED, SKIPPED) for _, result in results) else 1
