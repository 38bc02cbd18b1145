"""The same four-turn episodes for eval_overhead.py: as our command plays them, and as each peer wants them.

Every client adds numbers by three tool calls and then says "done", to a server that answers whatever it is asked.
Peers run in environments of their own, which are made at first use."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path.home() / ".cache" / "agentgym" / "peers"
OURS = '''
from agentgym import AgentEnv, Rubric, Task, TaskSet, register, tool

class Sum(AgentEnv):
    tasks = TaskSet({"test": [Task(f"Add up {i}.") for i in range(1000)]})
    rubric = Rubric(right=lambda outcome: float(outcome.final == 3))
    blocking = False

    def __init__(self, **kwargs):
        super().__init__(**{"split": "test"} | kwargs)

    def setup(self):
        self.total = 0

    @tool
    def add(self, n: int) -> str:
        """Add a number.

        Args:
            n: The number.
        """
        self.total += n
        return f"total {self.total}"

    def final(self):
        return self.total

register("overhead/Sum-v0", "overhead_ours:Sum")
'''
INSPECT = '''
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool

@tool
def add():
    async def execute(n: int):
        """Add a number.

        Args:
            n: The number.
        """
        return f"total {n}"

    return execute

@task
def overhead():
    samples = [Sample(input=f"Add up {i}.", target="done") for i in range(1000)]
    return Task(dataset=samples, solver=[use_tools(add()), generate()], scorer=includes())
'''
VERIFIERS = """
import aiohttp
import verifiers.v1 as vf
from verifiers.v1.runtimes import ProgramResult

__all__ = ["OverheadHarness", "OverheadTaskset"]
ADD = {"type": "function", "function": {"name": "add", "description": "Add a number.", "parameters": {
    "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}}
session = None

class OverheadData(vf.TaskData):
    pass

class OverheadTask(vf.Task[OverheadData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def done(self, trace) -> float:
        return 1.0

class OverheadTaskset(vf.Taskset[OverheadTask, vf.TasksetConfig]):
    def load(self):
        return [OverheadTask(OverheadData(name=str(i), prompt=f"Add up {i}."), self.config.task) for i in range(1000)]

class OverheadHarnessConfig(vf.HarnessConfig):
    pass

class OverheadHarness(vf.Harness[OverheadHarnessConfig]):
    NEEDS_CONTAINER = EXECUTES_CODE = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        global session
        session = session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        messages, headers = [{"role": "user", "content": data.prompt}], {"authorization": f"Bearer {secret}"}
        while True:
            body = {"model": ctx.model, "messages": messages, "tools": [ADD]}
            async with session.post(f"{endpoint}/chat/completions", json=body, headers=headers) as response:
                message = (await response.json())["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                return ProgramResult(0, "", "")
            for call in message["tool_calls"]:
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": "total 1"})
"""


@dataclass(frozen=True)
class Client:
    """One row: how it is installed and started."""

    name: str
    module: str  # the file that holds its program
    code: str
    command: tuple[str, ...]  # {url} {n} {at_once} {out} are filled in
    folder: str = ""  # its environment; none: this one
    packages: tuple[str, ...] = ()

    def arguments(self, **given: object) -> list[str]:
        """The command of a run."""
        binary = Path(sys.executable).parent if not self.folder else CACHE / self.folder / "bin"
        filled = [part.format(**given) for part in self.command]
        return [str(binary / filled[0]), *filled[1:]]

    def install(self) -> None:
        """Make its environment, where there is none. Raises CalledProcessError."""
        done = CACHE / self.folder / ".installed"
        if self.folder and not done.exists():
            print(f"installing {self.name}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", CACHE / self.folder], check=True)
            python = CACHE / self.folder / "bin" / "python"
            subprocess.run([python, "-m", "pip", "install", "-q", *self.packages], check=True)
            done.touch()


CLIENTS = (
    Client(
        "agentgym eval", "overhead_ours.py", OURS,
        ("agentgym", "eval", "overhead_ours:overhead/Sum-v0", "--model", "stub", "--base-url", "{url}",
         "--limit", "{n}", "--concurrency", "{at_once}", "--output", "{out}", "--json"),
    ),
    Client(
        "inspect eval", "overhead_inspect.py", INSPECT,
        ("inspect", "eval", "overhead_inspect.py", "--model", "openai-api/stub/stub", "--limit", "{n}",
         "--max-connections", "{at_once}", "--max-samples", "{at_once}", "--display", "none", "--log-dir", "{out}"),
        "inspect", ("inspect-ai==0.3.285", "openai"),
    ),
    Client(
        "vf-eval, in-process harness", "overhead_verifiers.py", VERIFIERS,
        ("vf-eval", "overhead_verifiers", "--model", "stub", "--client.base-url", "{url}", "--client.api-key-var",
         "STUB_API_KEY", "-n", "{n}", "-c", "{at_once}", "--no-push", "--no-rich",
         "--env.agent.runtime.type", "subprocess", "--output-dir", "{out}"),
        "verifiers", ("verifiers==0.4.0",),
    ),
)  # fmt: skip
