"""Verdicts on a candidate's program: its hidden tests, run in a sandbox that the agent has never been in.

Owns the way in and out (a plan goes in, a Verdict comes out) and how many sandboxes judge at once. What happens inside
is judge/'s. The verdict is the exit status of a trusted process, read from outside; its line tells the share."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentgym import ConfigError, InfrastructureError, Outcome
from agentgym.loop import at_home
from agentgym.sandbox import Backend, ExecResult, Sandbox, SandboxExhausted, Spec
from agentgym.sandbox.shipped import LOADER, packed, shipped

PACKAGE = "agentgym_envs.code.judge"
INSIDE = ("codec", "remote", "pytest_shim", "functions", "cases")  # each imports those before it only
CANDIDATE = ("codec", "child")
BOOT = f"import marshal,sys\np=marshal.loads(sys.stdin.buffer.read())\nS=p['sources']\n{LOADER}sys.exit(m.main(p))"
SLACK_S = 10.0  # the sandbox's own time-out, over the judge's
PLACES = ". /tmp /dev/shm"  # where a program can write
CLEAN = f"for d in {PLACES}; do if [ -O $d ]; then chmod 1777 $d || exit 1; fi; done; find {PLACES} -mindepth 1 -delete"
_log = logging.getLogger(__name__)
Plan = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of each test: passed, failed, skipped or timed_out. None at all where the program did not load."""

    tests: tuple[tuple[str, str], ...]
    solved: bool  # by exit status

    def count(self, *results: str) -> int:
        return sum(result in results for _, result in self.tests)

    @property
    def share(self) -> float:
        """Of the tests that were not skipped, those that passed."""
        counted = len(self.tests) - self.count("skipped")
        return self.count("passed") / counted if counted else 0.0


NOTHING = Verdict((), solved=False)


class Judge:
    """Runs plans, each in a sandbox that no agent was in; at most one per CPU at a time in this process.

    A sandbox is used once. With `uses` above 1, one in which a plan came to its own end serves again, after everything
    in it was killed and its files deleted: for tasks by the thousand, where starting one is most of the time."""

    def __init__(self, source: Backend | Any, spec: Spec, *, uses: int = 1) -> None:
        if uses < 1:
            raise ConfigError(f"judge_uses={uses}: a sandbox is used at least once")
        self.source, self.spec, self.uses = source, spec, uses
        self._last: tuple[Outcome, Verdict] | None = None

    async def on(self, outcome: Outcome, plan: Callable[[], Plan]) -> Verdict:
        """The verdict on an outcome; verifiers that look at one and the same outcome share it."""
        if self._last is None or self._last[0] is not outcome:
            self._last = outcome, await self.run(plan())
        return self._last[1]

    async def with_files(self, outcome: Outcome, work: Callable[[Sandbox], Awaitable[ExecResult]]) -> Verdict:
        """As `on`, where `work` itself lays out a fresh sandbox and runs the trusted process."""
        if self._last is None or self._last[0] is not outcome:
            self._last = outcome, await at_home(self._seated(work))
        return self._last[1]

    async def run(self, plan: Plan) -> Verdict:
        """The verdict on a plan. Raises InfrastructureError where no sandbox is to be had, or one is lost."""
        modules = {"sources": shipped(PACKAGE, INSIDE), "child": shipped(PACKAGE, CANDIDATE)}
        payload = packed({**modules, "plan": dict(plan)})
        command = ["python3", "-I", "-S", "-B", "-c", BOOT]
        timeout_s = plan["total_s"] + SLACK_S

        async def work(sandbox: Sandbox) -> ExecResult:
            return await sandbox.exec(command, stdin=payload, timeout_s=timeout_s, output_bytes=1 << 20)

        return await at_home(self._seated(work))

    async def _seated(self, work: Callable[[Sandbox], Awaitable[ExecResult]]) -> Verdict:
        bench = _bench(self.source, self.spec)
        async with bench.seats:
            sandbox, used = bench.idle.pop() if bench.idle else (Sandbox(self.source, self.spec), 0)
            ended_well = False
            try:
                result = await work(sandbox)
                ended_well = result.exit_code in (0, 1) and not result.timed_out and not result.oom
                ended_well = ended_well and used + 1 < self.uses and await _is_clean(sandbox)
                return read(result)
            except SandboxExhausted:  # by the program that was judged
                return NOTHING
            finally:
                if ended_well:
                    bench.idle.append((sandbox, used + 1))
                else:
                    await sandbox.close()

    def open(self) -> None:
        """Somebody will judge; until `close`, sandboxes may be kept for the next plan."""
        if self.uses > 1:
            _bench(self.source, self.spec).users += 1

    async def close(self) -> None:
        """Nobody here will judge any more; the last one out ends what was kept."""
        if self.uses > 1:
            await at_home(_bench(self.source, self.spec).left())

    def __deepcopy__(self, memo: dict[int, Any]) -> Judge:
        return self  # a service that snapshots share


class _Bench:
    """The sandboxes of one kind that judge in this process."""

    def __init__(self) -> None:
        self.seats = asyncio.Semaphore(2 * (os.cpu_count() or 1))
        self.idle: list[tuple[Sandbox, int]] = []  # with how often each was used
        self.users = 0

    async def left(self) -> None:
        self.users -= 1
        if self.users == 0:
            kept, self.idle = self.idle, []
            await asyncio.gather(*(sandbox.close() for sandbox, _ in kept))


_benches: dict[tuple[int, str], tuple[Any, _Bench]] = {}


def _bench(source: Any, spec: Spec) -> _Bench:
    key = (id(source), repr(spec))
    if key not in _benches:
        _benches[key] = (source, _Bench())  # the source is held, so that its id stays its own
    return _benches[key][1]


async def _is_clean(sandbox: Sandbox) -> bool:
    await sandbox.kill_all()
    return (await sandbox.exec(CLEAN, timeout_s=5)).ok


def read(result: ExecResult) -> Verdict:
    """Raises ConfigError where the image cannot judge, InfrastructureError where the judge did not begin; whatever else
    went wrong is the judged program's doing."""
    if result.exit_code == 127:
        raise ConfigError("the sandbox's image has no python3, and programs are judged by one; give another --image")
    if result.exit_code == 126:
        raise InfrastructureError(f"the judge could not be started: {result.stderr.strip()[-300:]}")
    if result.exit_code not in (0, 1) or result.timed_out:
        return NOTHING
    try:
        tests = json.loads(result.stdout)["tests"]
    except (ValueError, KeyError):
        _log.warning("a judge said no verdict: %s", result.stderr[-500:])
        return NOTHING
    return Verdict(tuple((name, end) for name, end in tests), solved=result.exit_code == 0)
