"""InterCode's bash requests: a sentence, a gold command, one of four file systems. A folder of the user's holds them.

Owns their layout (tasks.jsonl or .gz; setup_scripts.json or .gz by script name), an image per file system, and what
the files came to. Judged as the set defines it, without its partial credit: the files that differ from the start must
be those that the gold command changes, with the same content, and the last output must be the gold command's."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgym import Task, TaskError, TaskSet
from agentgym.sandbox import MIB, Limits, Sandbox, Spec
from agentgym_envs.shell.files import lines, scripts

IGNORED = ("/tmp", "/var/tmp", "/run", "/proc", "/dev", "/sys", "/root/.cache", "/workspace/.agentgym")
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER")

_expected: dict[tuple[str | None, str], dict[str, Any]] = {}  # what gold came to, by image and task: found out once


def is_here(folder: Path) -> bool:
    return any(folder.glob("setup_scripts.json*"))


class InterCode:
    """The requests of one folder. `image` is what the file systems are laid out on; the backend's own where None."""

    def __init__(self, folder: Path, image: str | None) -> None:
        self.image = image
        self.scripts = scripts(folder, "setup_scripts")
        self.tasks = TaskSet({"test": [self._task(where, row) for where, row in lines(folder)]})

    def _task(self, where: str, row: Mapping[str, Any]) -> Task:
        for name in ("query", "gold"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise TaskError(f"{where}: {name} is {row.get(name)!r:.60}; give text")
        script = f"setup_nl2b_fs_{row.get('file_system')}.sh"
        if script not in self.scripts:
            raise TaskError(f"{where}: file_system is {row.get('file_system')!r}; there is no script {script}")
        return Task(
            prompt=f"{row['query']}\n\nDo it with the shell; the output of your last command is your answer.",
            data={"id": str(row.get("_id")), "gold": row["gold"], "script": script},
            metadata={"horizon": 1},
        )

    async def spec(self, task: Task, docker: Any) -> Spec:
        """The sandbox of a task: a fresh copy of its file system, which it may change as it likes."""
        from agentgym_sandboxes.images import Images  # noqa: PLC0415 - the Docker SDK is optional
        from agentgym_sandboxes.recipes import Dockerfile  # noqa: PLC0415

        base = self.image or await docker.call(docker.default_image)
        with tempfile.TemporaryDirectory(prefix="agentgym-intercode-") as folder:
            Path(folder, "setup.sh").write_text(self.scripts[task.data["script"]])
            text = f"FROM {base}\nCOPY setup.sh /setup.sh\nRUN bash /setup.sh; rm /setup.sh\n"
            Path(folder, "Dockerfile").write_text(text)
            image = await Images(docker).build("intercode", Dockerfile(Path(folder)))
        limits = Limits(memory_bytes=512 * MIB, wall_s=20.0)
        return Spec(image=image, limits=limits, workdir="/", root=True, writable=True, capabilities=CAPABILITIES)

    async def final(self, sandbox: Sandbox, last: Mapping[str, Any], task: Task, docker: Any) -> dict[str, Any]:
        """What differs from the start, the last output, and both of the gold command in a fresh copy."""
        key = (sandbox.spec.image, task.digest)
        if key not in _expected:
            async with sandbox.fresh() as other:
                told = await other.session("bash").run(task.data["gold"])
                _expected[key] = {"files": await self.changed(other, docker), "output": told.stdout}
        expected = _expected[key]
        files = await self.changed(sandbox, docker) if sandbox.is_started else {}
        return {
            "files": files, "expected_files": expected["files"],
            "output": last.get("output", ""), "expected_output": expected["output"],
            "exit_code": last.get("exit_code"),
        }  # fmt: skip

    async def changed(self, sandbox: Sandbox, docker: Any) -> dict[str, str]:
        """Each path that is not as at the start: what it is now, its mode, and the hash of its content."""
        from agentgym_envs import outside  # noqa: PLC0415 - the Docker SDK is optional

        await sandbox.kill_all()
        found: dict[str, str] = {}
        for change in await outside.changes(docker, sandbox):
            if change.path.startswith(IGNORED):
                continue
            content = await outside.contents(docker, sandbox, change.path)
            if content is None:
                found[change.path] = "gone"
            else:
                found[change.path] = f"{content[0]:o} {hashlib.sha256(content[1]).hexdigest()[:16]}"
        return found


def same_files(final: Mapping[str, Any]) -> float:
    """1.0 where the files came to what the gold command makes of them."""
    return float(final["files"] == final["expected_files"])


def same_output(final: Mapping[str, Any]) -> float:
    """1.0 where the last output is the gold command's, white space at the ends of lines aside."""
    return float(_trimmed(final["output"]) == _trimmed(final["expected_output"]))


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
