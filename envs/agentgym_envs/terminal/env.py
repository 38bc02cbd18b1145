"""Tasks in a terminal: an agent with a root shell in a container of the task's own, judged there by its tests."""

from __future__ import annotations

import base64
import io
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgym import ConfigError, Message, Outcome, Rubric, Task, TaskError, TaskSet, assistant, call
from agentgym.sandbox import Backend, BashTool, Limits, Sandbox, SandboxEnv, Snapshot, Spec
from agentgym_envs.terminal.folders import OVERLAY, TaskFolder, load
from agentgym_envs.terminal.grading import grade

# What a root needs that changes owners and modes, unpacks archives, starts servers and becomes other users; nothing
# that reaches beyond its container.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SYS_CHROOT")
PROCESSES = 2048
SPARE_S = 3600.0  # beyond all deadlines, after which a forgotten container ends by itself
DONE = "The task is done."


class TerminalEnv(BashTool, SandboxEnv):
    """`bash(command)` in the task's container, as root, without a network. Horizon: as many turns as it takes.

    Needs Docker. The episode ends with a message that calls no tool, or at the task's own time; then the task's tests
    judge the container (grading.py), or, with `keep_state`, an image of it that is kept for judging it again."""

    system = (
        "You are at a terminal of a Linux machine, as root and without a network. Work with the tool `bash` until the "
        "task is done, then say so in a message without a tool call."
    )
    max_turns = 500

    def __init__(
        self,
        *,
        tasks: str | Path | None = None,
        base_map: Mapping[str, str] | None = None,
        build_network: bool = False,
        command_timeout_s: float | None = None,
        start_timeout_s: float = 60.0,
        keep_state: bool = False,
        overlay: str | Path = OVERLAY,
        sandbox: str | Backend = "docker",
        split: str = "test",
        **kwargs: Any,
    ) -> None:
        """`tasks` is a folder of task folders (Harbor or Terminal-Bench 1 layout). `base_map` says which local image
        stands for an image of a FROM line (names or patterns). Deadlines: `start_timeout_s` for the container,
        `command_timeout_s` for one command (the agent's whole time where None); build, agent and verifier have the
        task's own. `build_network=True` opens the network to the image's build alone. The other arguments are
        SandboxEnv's. Raises ConfigError, and TaskError naming file and field for a task that is broken."""
        if kwargs.pop("image", None) is not None:
            raise ConfigError("image: each task builds its own; say which base images stand for others with base_map")
        if tasks is None:
            raise ConfigError("Terminal-v0 brings no tasks: give tasks=FOLDER, in Harbor or Terminal-Bench 1 layout")
        self.folders = {folder.name: folder for folder in load(Path(tasks), Path(overlay))}
        self.tasks = TaskSet({"test": [_task(folder) for folder in self.folders.values()]})
        self.rubric = Rubric(solved=self._solved)
        self.base_map = dict(base_map or {})
        self.build_network = build_network
        self.command_timeout_s = command_timeout_s
        self.start_timeout_s = start_timeout_s
        self.keep_state = keep_state
        super().__init__(sandbox="docker" if sandbox == "auto" else sandbox, split=split, **kwargs)
        self._given_time_s = kwargs.get("max_time_s")
        if self.backend.name != "docker":
            raise ConfigError(
                f"sandbox={self.backend.name!r}: terminal tasks run as root on a writable system of their own, which "
                "only the docker backend gives; use sandbox='docker'"
            )

    @property
    def folder(self) -> TaskFolder:
        """The folder of the episode's task."""
        return self._folder_of(self.task)

    def _folder_of(self, task: Task) -> TaskFolder:
        name = task.data.get("name")
        if name not in self.folders or self.folders[name].digest != task.data.get("content"):
            raise TaskError(f"the folder of task {name!r} is not among {len(self.folders)} folders, or was changed")
        return self.folders[name]

    async def setup(self) -> None:
        began = time.monotonic()
        if self.keep_state and self.folder.services:
            raise ConfigError(f"{self.folder.name}: it is judged by running services, which no image keeps: keep_state")
        self._spec = await self._spec_of(self.folder)
        await self.open_sandbox()
        if self._given_time_s is None:  # the build does not count
            self.max_time_s = self.folder.agent_s + time.monotonic() - began

    async def _spec_of(self, folder: TaskFolder) -> Spec:
        """The sandbox of a task; its image is built where that was not done yet."""
        from agentgym_sandboxes.images import Images  # noqa: PLC0415 - the Docker SDK is optional
        from agentgym_sandboxes.recipes import Dockerfile  # noqa: PLC0415

        docker: Any = self.backend
        images = Images(docker, self.base_map, network=self.build_network)
        recipe = Dockerfile(folder.environment, left_out=folder.left_out)
        image = await images.build("task", recipe, timeout_s=folder.build_s)
        found = await docker.call(docker.client.api.inspect_image, image)
        engine = await docker.call(docker.client.api.info)
        limits = Limits(
            memory_bytes=folder.memory_bytes, cpus=min(folder.cpus, float(engine["NCPU"])), processes=PROCESSES,
            open_files=4096, file_bytes=folder.disk_bytes, wall_s=self.command_timeout_s or folder.agent_s,
            start_s=self.start_timeout_s, life_s=folder.agent_s + folder.verifier_s + SPARE_S,
        )  # fmt: skip
        return Spec(
            image=image, limits=limits, workdir=found["Config"].get("WorkingDir") or "/",
            root=True, writable=True, capabilities=CAPABILITIES,
        )  # fmt: skip

    def sandbox_spec(self) -> Spec:
        return self._spec

    async def final(self) -> dict[str, Any]:
        """What became of it: the verdict, or with `keep_state` the image to judge; `shared` where the agent's own
        processes or programs had a part in the judging."""
        folder = self.folder
        record: dict[str, Any] = {"task": folder.name, "shared": folder.services or folder.system}
        try:
            if self.keep_state:
                await self.sandbox.start()
                await self.sandbox.kill_all()
                return record | {"image": await self._keep()}
            return record | await self._verdict(self.sandbox, folder)
        finally:
            await self.close_sandbox()

    async def _keep(self) -> str:
        from agentgym_envs import outside  # noqa: PLC0415 - the Docker SDK is optional

        return await outside.keep(self.backend, self.sandbox, self.folder.name)  # type: ignore[arg-type]

    async def _verdict(self, sandbox: Sandbox, folder: TaskFolder) -> dict[str, Any]:
        """The verdict as JSON. A verifier that fails earns nothing, unless it fails in the untouched container too:
        then the task is broken, and TaskError says so."""
        verdict = await grade(sandbox, folder, self.backend)
        if verdict.verifier_failed:
            async with sandbox.fresh() as untouched:
                other = await grade(untouched, folder, self.backend)
            if other.verifier_failed:
                raise TaskError(
                    f"{folder.script}: {other.reason}, in the untouched container too. It said: {other.output[-500:]}"
                )
        return verdict.as_json()

    async def _solved(self, outcome: Outcome) -> float:
        """The recorded verdict; where an image was kept instead, that of judging it in a container of its own."""
        final = outcome.final
        if "image" not in final:
            return float(final["reward"])
        folder = self._folder_of(outcome.task)
        kept = Sandbox(self.backend, await self._spec_of(folder), snapshot=Snapshot(final["image"], b""))
        async with kept:
            return float((await self._verdict(kept, folder))["reward"])

    def gold(self) -> Message | None:
        """The task's own solution, put into place and run by the tool; then the closing message."""
        if self.num_turns:
            return assistant(DONE)
        solution = self.folder.solution
        return None if solution is None else assistant("", call("bash", command=_run_of(solution)))


def _task(folder: TaskFolder) -> Task:
    metadata = {"difficulty": folder.metadata.get("difficulty", "")} | dict(folder.metadata)
    return Task(
        prompt=folder.instruction, data={"name": folder.name, "content": folder.digest},
        metadata={"name": folder.name, **metadata},
    )  # fmt: skip


def _run_of(script: Path) -> str:
    """One command that lays the solution's files out, runs it, and takes them away."""
    buffer = io.BytesIO()
    files = sorted(script.parent.rglob("*")) if script.parent.name == "solution" else [script]
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in files:
            if path.is_file():
                tar.add(path, str(path.relative_to(script.parent)), recursive=False)
    text = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"mkdir -p /solution && base64 -d <<'END' | tar -xz --no-same-owner -C /solution\n{text}\nEND\n"
        f"bash /solution/{script.name}; status=$?; rm -rf /solution; (exit $status)"
    )
