"""Write a program that passes hidden tests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agentgym import ConfigError, Message, Outcome, Rubric, assistant, call, tool
from agentgym.errors import nearest
from agentgym.sandbox import MIB, Backend, Limits, PythonTool, SandboxEnv, Spec
from agentgym_envs.code import programs, records
from agentgym_envs.code.judging import NOTHING, Judge, Verdict

Layout = Literal["procedural", "humaneval", "mbpp", "mbpp_sanitized", "cruxeval"]
PROCEDURAL = "procedural"
DEMONSTRATOR: Mapping[str, float] = {
    "notice": 0.25,  # chance to submit once no step is left; else it goes on with any line
    "give_up": 0.1,  # chance to submit before each line while steps are left
    "slip": 0.05,  # chance of another line at each step
}
LIMITS = Limits(memory_bytes=512 * MIB, processes=64, wall_s=20.0)
FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


class CodeEnv(PythonTool, SandboxEnv):
    """Hidden tests judge what is handed in: `submit(code)`, or the code of a closing message. The agent may try things
    in a sandbox of its own; the tests run in another one, where they are out of the program's reach.

    `layout` says where tasks come from: "procedural", or records of a benchmark at `data` (a file, or a folder that
    holds it; AGENTGYM_DATA without it). Dials of the procedural tasks: `horizon`, the steps of a program, a number or
    several that tasks take in turn; `difficulty` 0 to 3, see `programs.LEVELS`."""

    def __init__(
        self,
        *,
        layout: Layout = PROCEDURAL,
        data: str | None = None,
        horizon: int | Sequence[int] = (1, 2, 3, 4),
        difficulty: int = 0,
        partial_credit: float = 0.0,
        judge_uses: int | None = None,
        demonstrator: Mapping[str, float] | None = None,
        sandbox: str | Backend | Any = "auto",
        image: str | None = None,
        split: str | None = None,
        max_turns: int | None = None,
        max_tokens: int | None = None,
        max_time_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`partial_credit` is the weight of the share of tests passed beside that of all of them, which is 1.
        `judge_uses`: programs judged in one sandbox, one after the other (see Judge): 1, or 64 for procedural tasks.
        `split` is "train" where the layout has one, else "test". `max_turns` is by default the horizon + 4 for
        procedural tasks (not told), and 30. `demonstrator` changes constants of DEMONSTRATOR."""
        if layout != PROCEDURAL and layout not in records.LAYOUTS:
            known = (PROCEDURAL, *records.LAYOUTS)
            raise ConfigError(f"layout={layout!r} is unknown{nearest(layout, known)} There are {', '.join(known)}")
        unknown = set(demonstrator or {}) - set(DEMONSTRATOR)
        if unknown:
            raise ConfigError(f"demonstrator has no {min(unknown)!r}; it has {', '.join(DEMONSTRATOR)}")
        self.layout = layout
        if layout == PROCEDURAL:
            self.tasks = programs.programs((horizon,) if isinstance(horizon, int) else tuple(horizon), difficulty)
        else:
            self.tasks = records.LAYOUTS[layout].load(data)
        self.demonstrator = {**DEMONSTRATOR, **(demonstrator or {})}
        self.rubric = Rubric(solved=self._solved, share=(self._share, partial_credit))
        super().__init__(
            sandbox=sandbox, image=image, max_turns=max_turns, max_tokens=max_tokens, max_time_s=max_time_s,
            split=split or ("train" if "train" in self.tasks.names else "test"), render_mode=render_mode,
        )  # fmt: skip
        uses = judge_uses if judge_uses is not None else 64 if layout == PROCEDURAL else 1
        self.judge = Judge(self.backend, self.sandbox_spec(), uses=uses)
        self.judge.open()

    def sandbox_spec(self) -> Spec:
        return Spec(image=self.image, limits=LIMITS)

    async def setup(self) -> None:
        self.lines: list[str] = []
        self.submitted: str | None = None
        await self.open_sandbox()

    def offered(self) -> Iterable[str]:
        if self.layout == PROCEDURAL:
            return ("write", "python", "submit")
        return () if self.task.data["style"] == "output" else ("python", "submit")

    def turn_limit(self) -> int | None:
        return self.task.metadata["horizon"] + 4 if self.layout == PROCEDURAL else 30

    @tool
    def write(self, line: str) -> str:
        """Add a line to the body of f(x), which returns x at its end.

        Args:
            line: Python that works on x, such as `x += 12`.
        """
        self.lines.append(line)
        if not programs.LEVELS[self.task.metadata["difficulty"]].shows_left:
            return "ok"
        left = self.task.data["told"][len(self.lines) :]
        return f"left: {'; '.join(left) or 'nothing'}"

    @tool
    def submit(self, code: str | None = None) -> str:
        """Hand the program in. It is judged by hidden tests, and the task ends.

        Args:
            code: The whole program; without it, what `write` has written.
        """
        self.submitted = programs.assembled(self.lines) if code is None and self.lines else code
        self.end()
        return "Handed in."

    async def final(self) -> Any:
        await self.close_sandbox()
        return {"solution": self.submitted if self.submitted is not None else closing_code(self.messages[-1])}

    def state_key(self) -> str | None:
        return "\n".join(self.lines) if self.layout == PROCEDURAL else None

    def gold(self) -> Message | None:
        if self.layout != PROCEDURAL:
            return super().gold()
        lines = self.task.data["lines"]
        done = len(self.lines)
        return assistant("", call("write", line=lines[done]) if done < len(lines) else call("submit"))

    def demonstrate(self, rng: np.random.Generator) -> Message | None:
        """A distracted programmer: submits too early now and then, slips, and past the last step goes on more often
        than not."""
        if self.layout != PROCEDURAL:
            return super().demonstrate(rng)
        chances, lines, done = self.demonstrator, self.task.data["lines"], len(self.lines)
        if rng.random() < chances["notice" if done >= len(lines) else "give_up"]:
            return assistant("", call("submit"))
        if done < len(lines) and rng.random() >= chances["slip"]:
            return assistant("", call("write", line=lines[done]))
        steps = programs.LEVELS[self.task.metadata["difficulty"]].steps
        step = steps[int(rng.integers(len(steps)))]
        return assistant("", call("write", line=step.line.format(n=int(rng.integers(10, 100)))))

    async def teardown(self) -> None:
        await self.close_sandbox()
        await self.judge.close()

    async def _solved(self, outcome: Outcome) -> float:
        return float((await self._verdict(outcome)).solved)

    async def _share(self, outcome: Outcome) -> float:
        return (await self._verdict(outcome)).share

    async def _verdict(self, outcome: Outcome) -> Verdict:
        """Of an outcome alone: what was handed in, in a sandbox that no agent was in."""
        solution = outcome.final["solution"]
        if not isinstance(solution, str) or not solution.strip():
            return NOTHING
        key = "foretold" if outcome.task.data["style"] == "output" else "source"
        return await self.judge.on(outcome, lambda: {**outcome.task.data, key: solution})


def closing_code(message: Message) -> str | None:
    """What a closing message hands in: its last block of code, or all of it; None where it was cut or holds calls."""
    if message["role"] != "assistant" or message.get("tool_calls") or message.get("finish_reason") == "length":
        return None
    blocks = FENCED.findall(message["content"])
    return blocks[-1] if blocks else message["content"]
