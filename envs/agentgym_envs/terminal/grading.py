"""The verdict on a terminal task: its own tests, in its own container, after every process of the agent is dead.

Owns the order of things: kill, put the image's programs back, lay the tests out afresh, run, read the reward that this
run wrote. What an agent left at the paths that count is gone before; the tests were never there while it ran."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentgym.sandbox import ExecResult, Sandbox, SandboxFileError
from agentgym_envs.terminal.folders import TaskFolder

TESTS = "/tests"
LOGS = "/logs/verifier"
REWARDS = (f"{LOGS}/reward.txt", f"{LOGS}/reward.json")
OUTPUT_BYTES = 65536
TAIL = 4000  # characters of the verifier's output that the record keeps
FAILED = "verifier failed"
CLEAN = (
    "set -e; export PATH=/usr/bin:/bin:/usr/sbin:/sbin; umask 022\n"
    f"rm -rf {TESTS}; if test -L /logs; then rm -f /logs; fi; rm -rf {LOGS}; mkdir -p {LOGS} {TESTS}\n"
    f"chown 0:0 {TESTS} /logs {LOGS}; chmod 755 {TESTS} /logs {LOGS}\n"
)
_SUMMARY = re.compile(r"^=+ (.*) in [0-9.]+s(?: \([0-9:]+\))? =+\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """What the verifier said. `reward` is 0 where it failed to say anything."""

    reward: float
    reason: str  # passed, failed, or "verifier failed: …"
    output: str = ""
    exit_code: int | None = None
    restored: list[str] = field(default_factory=list)

    @property
    def verifier_failed(self) -> bool:
        return self.reason.startswith(FAILED)

    def as_json(self) -> dict[str, Any]:
        return {
            "reward": self.reward, "reason": self.reason, "output": self.output[-TAIL:],
            "exit_code": self.exit_code, "restored": self.restored[:100],
        }  # fmt: skip


async def grade(sandbox: Sandbox, task: TaskFolder, docker: Any) -> Verdict:
    """Judge what the agent left. Raises SandboxLost, or what the engine's absence raises: then nothing is judged."""
    from agentgym_envs import outside  # noqa: PLC0415 - the Docker SDK is optional

    await sandbox.start()
    if not task.services:
        await sandbox.kill_all()
    restored = [] if task.system else await outside.restore(docker, sandbox)
    cleaned = await sandbox.exec(["sh", "-c", CLEAN], cwd="/")
    if not cleaned.ok:
        return Verdict(0.0, f"{FAILED}: {TESTS} and {LOGS} cannot be made anew: {cleaned.stderr[-300:]}")
    await sandbox.upload(task.tests, TESTS)
    script = f"{TESTS}/{task.script.name}"
    await sandbox.write(script, task.script.read_bytes(), mode=0o755)
    laid_out = await sandbox.download(TESTS)
    env = {"HOME": "/root", **task.verifier_env}
    done = await sandbox.exec(
        ["bash", script], timeout_s=task.verifier_s, env=env, merge=True, output_bytes=OUTPUT_BYTES
    )
    if not task.services:
        await sandbox.kill_all()
    verdict = await _by_file(sandbox, done) if task.by_reward_file else _by_pytest(done)
    if (edited := await _edited(sandbox, laid_out)) is not None:
        verdict = Verdict(0.0, f"failed: {TESTS}/{edited} was edited while the tests ran")
    return Verdict(verdict.reward, verdict.reason, done.stdout, done.exit_code, restored)


async def _edited(sandbox: Sandbox, laid_out: Mapping[str, bytes]) -> str | None:
    """The first of the verifier's files that is no longer what was laid out."""
    for name, data in laid_out.items():
        try:
            if await sandbox.read(f"{TESTS}/{name}", limit_bytes=len(data) + 1) == data:
                continue
        except SandboxFileError:
            pass
        return name
    return None


async def _by_file(sandbox: Sandbox, done: ExecResult) -> Verdict:
    if done.timed_out:
        return Verdict(0.0, f"{FAILED}: it ran over its time")
    for path in REWARDS:
        try:
            text = (await sandbox.read(path, limit_bytes=65536)).decode("utf-8", "replace")
        except SandboxFileError:
            continue
        reward = reward_in(text)
        if reward is None:
            return Verdict(0.0, f"{FAILED}: {path} holds {text[:60]!r}, no reward in [0, 1]")
        return Verdict(reward, "passed" if reward >= 1.0 else "failed")
    return Verdict(0.0, f"{FAILED}: it ended with status {done.exit_code} and wrote no reward")


def reward_in(text: str) -> float | None:
    """The reward that a file of the verifier states: a number, or an object's `reward`; None where it is none."""
    try:
        told = json.loads(text)
    except ValueError:
        return None
    if isinstance(told, dict):
        told = told.get("reward")
    if isinstance(told, bool) or not isinstance(told, (int, float)):
        return None
    return float(told) if 0.0 <= told <= 1.0 else None


def _by_pytest(done: ExecResult) -> Verdict:
    """The layout of Terminal-Bench 1: every test passed, by the status of the script and by pytest's last line."""
    if done.timed_out:
        return Verdict(0.0, f"{FAILED}: it ran over its time")
    lines = _SUMMARY.findall(done.stdout)
    if not lines:
        return Verdict(0.0, f"{FAILED}: it ended with status {done.exit_code} and no summary of pytest")
    passed = done.exit_code == 0 and re.search(r"\b[1-9]\d* passed", lines[-1]) is not None
    passed = passed and re.search(r"\b(failed|errors?)\b", lines[-1]) is None
    return Verdict(float(passed), "passed" if passed else "failed")
