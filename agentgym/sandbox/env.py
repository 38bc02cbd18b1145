"""Environments whose episodes have a sandbox, and the two tools that most of them offer: a shell and a Python.

Owns when an episode's sandbox is opened, recorded and closed, and how a command's result reads to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentgym.env import AgentEnv
from agentgym.sandbox.backends import backend
from agentgym.sandbox.contract import Backend, ExecResult, SandboxFileError, Spec
from agentgym.sandbox.sandbox import Sandbox, Session
from agentgym.tools import ToolError, tool


class SandboxEnv(AgentEnv):
    """Base of environments with a sandbox. `setup()` calls `await self.open_sandbox(...)`; it starts at its first use,
    goes when the episode is judged (call `await self.close_sandbox()` in `final()`) or the environment is closed."""

    blocking = False
    sandbox: Sandbox

    def __init__(self, *, sandbox: str | Backend | Any = "auto", image: str | None = None, **kwargs: Any) -> None:
        """`sandbox` names a backend, or is one, or a Pool; `image` is what it starts from, where not the backend's own.
        The other arguments are AgentEnv's."""
        self.backend = backend(sandbox) if isinstance(sandbox, str) else sandbox
        self.image = image
        self._sessions: dict[str, Session] = {}
        super().__init__(**kwargs)

    def sandbox_spec(self) -> Spec:
        """What this task's sandbox is; everything that is not said is closed."""
        return Spec(image=self.image)

    async def open_sandbox(self, files: Mapping[str, bytes] | None = None) -> Sandbox:
        """A new sandbox for this episode, with these files; the one before is closed."""
        await self.close_sandbox()
        self.sandbox = Sandbox(self.backend, self.sandbox_spec(), files=files)
        self._sessions = {}
        return self.sandbox

    async def close_sandbox(self) -> None:
        if hasattr(self, "sandbox"):
            await self.sandbox.close()

    def session(self, kind: str) -> Session:
        """The episode's persistent shell ("bash") or interpreter ("python")."""
        if kind not in self._sessions:
            self._sessions[kind] = self.sandbox.session(kind)
        return self._sessions[kind]

    async def teardown(self) -> None:
        await self.close_sandbox()

    @property
    def grants(self) -> Mapping[str, Any]:
        return self.sandbox.grants if hasattr(self, "sandbox") else {}


class BashTool:
    """Offers `bash`, a persistent shell. Put it before SandboxEnv among the bases."""

    @tool
    async def bash(self, command: str) -> str:
        """Run a command in a shell that keeps its folder, variables and functions from one call to the next.

        Args:
            command: One or more lines of shell.
        """
        return await run_in(self, "bash", command)


class PythonTool:
    """Offers `python`, a persistent interpreter. Put it before SandboxEnv among the bases."""

    @tool
    async def python(self, code: str) -> str:
        """Run Python code that keeps its variables from one call to the next; the value of a last expression is shown.

        Args:
            code: One or more lines of Python.
        """
        return await run_in(self, "python", code)


async def run_in(env: Any, kind: str, text: str) -> str:
    """What a model reads after it ran a text in a session of its sandbox."""
    if "\0" in text:
        raise ToolError("the text holds a NUL byte")
    try:
        return told(await env.session(kind).run(text), env.sandbox.spec.limits.wall_s)
    except SandboxFileError as error:
        raise ToolError(str(error)) from None


def told(result: ExecResult, wall_s: float) -> str:
    """A result as text: output, then what else must be known, in brackets."""
    notes = []
    if result.timed_out:
        state = "its state is kept" if result.alive else "it was restarted, and its state is lost"
        notes.append(f"timed out after {wall_s:g} s and was killed; {state}")
    elif result.exit_code:
        notes.append(f"exit code {result.exit_code}" + ("" if result.alive else "; the program ended"))
    if result.oom:
        notes.append("a process was killed because the sandbox's memory was used up")
    if result.undecodable:
        notes.append("bytes that are no UTF-8 were replaced")
    text = result.stdout + result.stderr
    lines = [text] if text else []
    return "\n".join([*lines, *(f"[{note}]" for note in notes)]) or "[no output]"
