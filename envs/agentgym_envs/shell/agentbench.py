"""AgentBench's operating-system tasks: a set-up script, a question or an order, and check scripts. A folder of the
user's holds them (tasks.jsonl and scripts.json, or .gz).

Owns their layout and how they are judged: an answer compared with a word, or a chain of check scripts, each given the
answer and what the ones before printed; a `null` in the chain stands for the example solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentgym import Task, TaskError, TaskSet
from agentgym.sandbox import MIB, Limits, Sandbox, Session, Spec
from agentgym_envs.shell.files import lines, scripts

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
CHECK_S = 60.0
Script = tuple[str, str]  # language, code


class AgentBench:
    """The tasks of one folder. `image` stands for all images they name; the backend's own where None."""

    def __init__(self, folder: Path, image: str | None) -> None:
        self.image = image
        self.scripts = scripts(folder, "scripts")
        self.tasks = TaskSet({"test": [self._task(where, row) for where, row in lines(folder)]})

    def _task(self, where: str, row: Mapping[str, Any]) -> Task:
        if not isinstance(row.get("description"), str):
            raise TaskError(f"{where}: description is {row.get('description')!r:.60}; give text")
        evaluation = row.get("evaluation") or {}
        check, match = evaluation.get("check"), evaluation.get("match")
        if check is None and match is None:
            raise TaskError(f"{where}: evaluation has neither check nor match")
        group = str(row.get("_id", "")).partition("/")[0]

        def read(told: Any, field: str) -> list[Script | None]:
            return [self._script(f"{where}: {field}", group, item) for item in _listed(told)]

        example = read(evaluation.get("example", row.get("example")), "example")
        data = {
            "id": str(row.get("_id")), "init": read((row.get("create") or {}).get("init"), "create.init"),
            "start": row.get("start"), "match": match, "example": example[0] if example else None,
            "check": read(check, "evaluation.check") if check is not None else None,
        }  # fmt: skip
        prompt = f"{row['description']}\n\nIf this is a question, your last message is the answer alone."
        return Task(prompt=prompt, data=data, metadata={"horizon": 1})

    def _script(self, where: str, group: str, told: Any) -> Script | None:
        if told is None:
            return None
        if isinstance(told, str):
            return "bash", told
        name, code = told.get("file"), told.get("code")
        if name is not None:
            code = self.scripts.get(f"scripts/{group}/{name}")
        if not isinstance(code, str):
            raise TaskError(f"{where}: there is no script {name!r} of group {group!r}")
        language = told.get("language", "python" if str(name).endswith(".py") else "bash")
        if language not in ("bash", "python"):
            raise TaskError(f"{where}: language is {language!r}; bash and python are run")
        return language, code

    async def spec(self, task: Task, docker: Any) -> Spec:
        image = self.image or await docker.call(docker.default_image)
        limits = Limits(memory_bytes=512 * MIB, wall_s=30.0)
        return Spec(image=image, limits=limits, workdir="/root", root=True, writable=True, capabilities=CAPABILITIES)

    async def begin(self, sandbox: Sandbox, session: Session, task: Task, seed: int) -> None:
        """Lay the task out. `$RANDOM` of its scripts is seeded, so that equal seeds give equal worlds."""
        for language, code in task.data["init"]:
            seeded = f"RANDOM={seed % 32768}\n{code}" if language == "bash" else code
            await sandbox.exec(_argv((language, seeded)), timeout_s=CHECK_S)
        if task.data["start"]:
            await session.run(task.data["start"])

    async def final(self, sandbox: Sandbox, answer: str | None, task: Task) -> dict[str, Any]:
        data = task.data
        if data["match"] is not None:
            return {"answer": answer, "solved": answer is not None and _matches(answer, data["match"])}
        await sandbox.kill_all()
        told = [answer or ""]
        for number, script in enumerate(data["check"]):
            if script is None and data["example"] is None:
                raise TaskError(f"task {data['id']}: evaluation.check[{number}] is null and there is no example")
            done = await sandbox.exec([*_argv(script or data["example"], *told)], timeout_s=CHECK_S)
            if not done.ok:
                return {"answer": answer, "solved": False, "failed_check": number}
            told.append(done.stdout)
        return {"answer": answer, "solved": True}


def _argv(script: Sequence[str], *arguments: str) -> list[str]:
    language, code = script
    if language == "python":
        return ["python3", "-c", code, *arguments]
    return ["bash", "-c", code, *(("--", *arguments) if arguments else ())]


def _listed(told: Any) -> list[Any]:
    if told is None:
        return []
    return list(told) if isinstance(told, list) else [told]


def _matches(answer: str, wanted: str | Mapping[str, Any]) -> bool:
    text = wanted if isinstance(wanted, str) else str(wanted.get("answer", ""))
    return answer.strip() == text.strip()
