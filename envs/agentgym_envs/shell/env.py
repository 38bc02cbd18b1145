"""Requests at a shell: do what is asked, and be judged by the files that come of it and by what was said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentgym import ConfigError, Message, Outcome, Rubric, ToolError, assistant, call, tool
from agentgym.sandbox import MIB, Backend, Limits, SandboxEnv, SandboxFileError, Spec, told
from agentgym_envs.shell.agentbench import AgentBench
from agentgym_envs.shell.intercode import InterCode, is_here, same_files, same_output
from agentgym_envs.shell.trees import trees

SYSTEM = "You are at a shell. Work with the tool `bash` until the request is done, then say so without a tool call."
_CUT = re.compile(r"\n\[… \d+ bytes left out …\]\n")
STATE_BYTES = 4 * MIB  # of the files that are compared


class ShellEnv(SandboxEnv):
    """`bash(command)`, a shell that keeps its state. Horizon: `horizon` orders and a closing message.

    Without `data`, orders over a small tree of files, made up anew; with it, the requests of a folder in InterCode's
    or AgentBench's layout (both change a whole system, so they need Docker). Dials: `horizon`, `difficulty` 0 to 3."""

    system = SYSTEM

    def __init__(
        self,
        *,
        data: str | Path | None = None,
        horizon: int | Sequence[int] = (1, 2, 3, 4, 5, 6),
        difficulty: int = 0,
        sandbox: str | Backend = "auto",
        image: str | None = None,
        split: str | None = None,
        **kwargs: Any,
    ) -> None:
        """`data` is a folder with InterCode's or AgentBench's files; their tasks are all in the split "test". The other
        arguments are SandboxEnv's. Raises ConfigError, and TaskError for data that are broken."""
        if data is not None and sandbox == "auto":
            sandbox = "docker"
        self.world = None if data is None else _world(Path(data), image)
        if self.world is None:
            self.tasks = trees((horizon,) if isinstance(horizon, int) else tuple(horizon), difficulty)
            self.rubric = Rubric(solved=_tree_solved, files=(_tree_share, 0.0))
        else:
            self.tasks = self.world.tasks
            self.rubric = RUBRICS[type(self.world)]
        super().__init__(sandbox=sandbox, image=image, split=split or ("train" if data is None else "test"), **kwargs)
        if self.world is not None and self.backend.name != "docker":
            raise ConfigError(
                f"sandbox={self.backend.name!r}: these requests change a whole system, which only the docker backend "
                "lets them; use sandbox='docker', or leave data out"
            )

    async def setup(self) -> None:
        self.last: dict[str, Any] = {}  # the latest command's result
        self._made: Spec | None = None
        if self.world is None:
            await self.open_sandbox({path: text.encode() for path, text in self.task.files.items()})
            return
        self._made = await self.world.spec(self.task, self.backend)
        await self.open_sandbox()
        if isinstance(self.world, AgentBench):
            seed = int(self.np_random.integers(1 << 15))
            await self.world.begin(self.sandbox, self.session("bash"), self.task, seed)

    def sandbox_spec(self) -> Spec:
        limits = Limits(memory_bytes=256 * MIB, processes=64, wall_s=5.0)
        return self._made or Spec(image=self.image, limits=limits)

    def turn_limit(self) -> int:
        return 2 * self.task.metadata["horizon"] + 8

    @tool
    async def bash(self, command: str) -> str:
        """Run a command in a shell that keeps its folder, variables and functions from one call to the next.

        Args:
            command: One or more lines of shell.
        """
        if "\0" in command:
            raise ToolError("the command holds a NUL byte")
        result = await self.session("bash").run(command)
        if result.timed_out and result.truncated:  # what came last is a matter of time, and helps nobody
            result = replace(result, stdout=f"{_CUT.split(result.stdout)[0]}\n[… the rest left out …]")
        self.last = {"output": result.stdout, "exit_code": result.exit_code, "timed_out": result.timed_out}
        return told(result, self.sandbox.spec.limits.wall_s)

    async def final(self) -> dict[str, Any]:
        try:
            if isinstance(self.world, InterCode):
                return await self.world.final(self.sandbox, self.last, self.task, self.backend)
            if isinstance(self.world, AgentBench):
                answer = Outcome(self.task, None, self.messages).answer
                return await self.world.final(self.sandbox, answer, self.task)
            return {"files": await self._tree()}
        finally:
            await self.close_sandbox()

    async def _tree(self) -> dict[str, str] | None:
        """The files by path; None where what is there is no tree of small files."""
        if not self.sandbox.is_started:
            return dict(self.task.files)
        await self.sandbox.kill_all()
        try:
            found = await self.sandbox.download(limit_bytes=STATE_BYTES)
        except SandboxFileError:
            return None
        return {path: data.decode("utf-8", "replace") for path, data in sorted(found.items())}

    def gold(self) -> Message | None:
        """The orders' own commands, one a turn; the data set's command or example, and then what it printed."""
        data = self.task.data
        if self.world is None:
            is_done = self.num_turns >= len(data["commands"])
            text = str(len(self.task.answer)) if is_done else ""
            return assistant(text, *(() if is_done else (call("bash", command=data["commands"][self.num_turns]),)))
        if isinstance(self.world, InterCode):
            return assistant("Done.") if self.num_turns else assistant("", call("bash", command=data["gold"]))
        if data["match"] is not None and data["example"] is None:
            return assistant(data["match"]) if isinstance(data["match"], str) else None
        if data["example"] is None:
            return None
        if self.num_turns:
            return assistant(self.last["output"].strip() or "Done.")
        return assistant("", call("bash", command=data["example"][1]))


def _world(folder: Path, image: str | None) -> InterCode | AgentBench:
    if not folder.is_dir():
        raise ConfigError(f"data={str(folder)!r} is no folder; give one with tasks.jsonl and its scripts")
    return InterCode(folder, image) if is_here(folder) else AgentBench(folder, image)


def _tree_solved(outcome: Outcome) -> float:
    wanted = outcome.task.answer
    return float(outcome.final["files"] == wanted and outcome.answer == str(len(wanted)))


def _tree_share(outcome: Outcome) -> float:
    """Of all paths that are there or should be: the share that is as it should be."""
    found, wanted = outcome.final["files"] or {}, outcome.task.answer
    paths = found.keys() | wanted.keys()
    return sum(found.get(path) == wanted.get(path) for path in paths) / len(paths) if paths else 1.0


def _same(outcome: Outcome) -> float:
    return same_files(outcome.final) * same_output(outcome.final)


RUBRICS = {
    InterCode: Rubric(
        solved=_same,
        files=(lambda outcome: same_files(outcome.final), 0.0),
        output=(lambda outcome: same_output(outcome.final), 0.0),
    ),
    AgentBench: Rubric(solved=lambda outcome: float(outcome.final["solved"])),
}
