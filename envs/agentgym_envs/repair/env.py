"""Repair a program, or a repository, so that hidden tests pass."""

from __future__ import annotations

import asyncio
import json
import marshal
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from agentgym import ConfigError, Outcome, Rubric, ToolError, tool
from agentgym.errors import nearest
from agentgym.sandbox import MIB, Backend, BashTool, Limits, Sandbox, SandboxEnv, SandboxFileError, Spec
from agentgym.sandbox.env import run_in
from agentgym_envs.code.judging import NOTHING, Judge, Verdict
from agentgym_envs.repair import quixbugs, repository

Layout = Literal["quixbugs", "repository"]
LIMITS = Limits(memory_bytes=2048 * MIB, disk_bytes=512 * MIB, processes=128, wall_s=120.0)
DIFF_BYTES = 4 * MIB
BEGIN = """
import json, os, subprocess, sys
given = json.load(sys.stdin)
for path, target in given["links"].items():
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    os.symlink(target, path)
for path in given["programs"]:
    os.chmod(path, 0o755)
if given["git"]:
    name = ["-c", "user.name=agent", "-c", "user.email=agent@localhost"]
    for command in (["init", "-q"], ["add", "-A", "-f"], [*name, "commit", "-q", "-m", "The repository as it is."]):
        subprocess.run(["git", *command], check=True, stdout=subprocess.DEVNULL)
"""
DIFF = "git add -A && git -c core.quotepath=off diff --cached --binary --no-ext-diff --no-textconv"


class RepairEnv(BashTool, SandboxEnv):
    """The agent edits files in its sandbox, or hands in a program or a diff; tests that it never saw decide, in a
    sandbox where it never was.

    `layout` says what is broken: "quixbugs" programs of one file, or a "repository" (`repo`: a git repository, or a
    folder that holds them by name). `data` is the records' file, or a folder that has it; AGENTGYM_DATA without it."""

    max_turns = 50

    def __init__(
        self,
        *,
        layout: Layout = "quixbugs",
        data: str | None = None,
        repo: str | None = None,
        sandbox: str | Backend | Any = "auto",
        image: str | None = None,
        split: str = "test",
        max_turns: int | None = None,
        max_tokens: int | None = None,
        max_time_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        layouts = ("quixbugs", "repository")
        if layout not in layouts:
            raise ConfigError(f"layout={layout!r} is unknown{nearest(layout, layouts)} There are {', '.join(layouts)}")
        self.layout = layout
        self.tasks = quixbugs.load(data) if layout == "quixbugs" else repository.load(data, repo)
        self.rubric = Rubric(solved=self._solved, share=(self._share, 0.0))
        super().__init__(
            sandbox=sandbox, image=image, split=split, max_turns=max_turns, max_tokens=max_tokens,
            max_time_s=max_time_s, render_mode=render_mode,
        )  # fmt: skip
        self.judge = Judge(self.backend, self.sandbox_spec())

    def sandbox_spec(self) -> Spec:
        return Spec(image=self.image, limits=LIMITS)

    async def setup(self) -> None:
        self.submitted: str | None = None
        self.handed_in = False  # by `submit`; a closing message hands in what was edited
        self.prepared = False
        data = self.task.data
        if data["layout"] == "repository":
            tree = await asyncio.to_thread(repository.tree, data["repo"], data["commit"])  # kept from then on
            laid_out = dict(tree.files)
        else:
            laid_out = {name: text.encode() for name, text in self.task.files.items()}
        await self.open_sandbox(laid_out)

    def offered(self) -> Iterable[str]:
        return ("bash", "submit") if self.layout == "quixbugs" else ("bash", "apply", "submit")

    @tool
    async def bash(self, command: str) -> str:
        """Run a command in a shell that keeps its folder, variables and functions from one call to the next.

        Args:
            command: One or more lines of shell.
        """
        await self._prepare()
        return await run_in(self, "bash", command)

    @tool
    async def apply(self, patch: str) -> str:
        """Apply a diff, as `git diff` writes it, to the repository.

        Args:
            patch: The diff.
        """
        await self._prepare()
        done = await self.sandbox.exec(["git", "apply", "--whitespace=nowarn", "-"], stdin=patch, merge=True)
        if not done.ok:
            raise ToolError(f"git apply: {done.stdout.strip()[:2000]}")
        return "Applied."

    @tool
    def submit(self, code: str | None = None) -> str:
        """Hand the repair in. It is judged by hidden tests, and the task ends.

        Args:
            code: The whole repaired program, where it is one file; without it, the files as they are.
        """
        if code is not None and self.layout == "repository":
            raise ToolError("submit takes no code here: what is handed in are the repository's files as they are")
        self.submitted, self.handed_in = code, True
        self.end()
        return "Handed in."

    async def final(self) -> Any:
        repair = self.submitted if self.submitted is not None else await self._edited()
        await self.close_sandbox()
        return {"repair": repair}

    async def teardown(self) -> None:
        await self.close_sandbox()
        await self.judge.close()

    async def verdict(self, outcome: Outcome) -> Verdict:
        """What came of each test, of an outcome alone: in a sandbox that no agent was in."""
        repair, data = outcome.final["repair"], outcome.task.data
        if not isinstance(repair, str):
            return NOTHING
        if data["layout"] == "quixbugs":
            return await self.judge.on(outcome, lambda: {**data["plan"], "source": repair})
        return await self.judge.with_files(outcome, lambda sandbox: self._judged(sandbox, data, repair))

    async def _solved(self, outcome: Outcome) -> float:
        return float((await self.verdict(outcome)).solved)

    async def _share(self, outcome: Outcome) -> float:
        return (await self.verdict(outcome)).share

    async def _prepare(self) -> None:
        """Links, modes and a git history of one commit, at the first command: what a repository's folder lacks yet."""
        if self.prepared or self.layout != "repository":
            return
        self.prepared = True
        await lay_out(self.sandbox, repository.tree(self.task.data["repo"], self.task.data["commit"]), git=True)
        self.base = (await self.sandbox.exec(["git", "rev-parse", "HEAD^{tree}"])).stdout.strip()

    async def _edited(self) -> str | None:
        """What the agent made of the files: the program's text, or a diff. None where that cannot be told, or where it
        neither handed in nor ran anything."""
        if self.layout == "quixbugs":
            name = self.task.data["file"]
            if not self.sandbox.is_started:
                return self.task.files[name] if self.handed_in else None
            try:
                return (await self.sandbox.read(name, limit_bytes=MIB)).decode("utf-8", "replace")
            except SandboxFileError:
                return None
        if not self.prepared:
            return "" if self.handed_in else None
        await self.sandbox.kill_all()
        done = await self.sandbox.exec(f"{DIFF} {self.base}", output_bytes=DIFF_BYTES)
        return done.stdout if done.ok and not done.truncated else None

    async def _judged(self, sandbox: Sandbox, data: Any, repair: str) -> Any:
        """In a fresh sandbox: the commit's files, the repair, the tests. The result is read from outside."""
        tree = await asyncio.to_thread(repository.tree, data["repo"], data["commit"])
        await sandbox.upload(tree.files)
        await lay_out(sandbox, tree, git=False)
        given = {name: data[name] for name in ("test_patch", "run_files", "wanted", "kept", "total_s")}
        payload = marshal.dumps({**given, "repair": repair, "tests": _text("tests"), "shim": _shim()}, 2)
        command = ["python3", "-I", "-S", "-B", "-c", _text("verdict")]
        return await sandbox.exec(command, stdin=payload, timeout_s=data["total_s"] + 60, output_bytes=DIFF_BYTES)


async def lay_out(sandbox: Sandbox, tree: repository.Tree, *, git: bool) -> None:
    """What files by name cannot say: links, what may be executed, and, where asked, a history of one commit."""
    given = json.dumps({"links": dict(tree.links), "programs": tree.programs, "git": git})
    done = await sandbox.exec(["python3", "-I", "-S", "-c", BEGIN], stdin=given)
    if not done.ok:
        raise ConfigError(
            f"the sandbox's image cannot hold a repository (it needs python3 and git): {done.stderr.strip()[-300:]}"
        )


@cache
def _text(name: str) -> str:
    return (files("agentgym_envs.repair.inside") / f"{name}.py").read_text("utf-8")


@cache
def _shim() -> str:
    return (files("agentgym_envs.code.judge") / "pytest_shim.py").read_text("utf-8")
