"""Run 7: programs with one wrong line, judged by Repair-v0 in sandboxes, with the exact counts of their tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from acceptance_runs.base import Found, Setup, num_solved, play, run
from agentgym import Outcome, assistant, call
from agentgym.ledger import Episode
from agentgym.loop import run_sync
from agentgym.policies.builtin import Gold, Scripted
from agentgym.registry import make

REPAIR = "agentgym/Repair-v0"
Counts = Mapping[str, int]


def counts(setup: Setup, episodes: Sequence[Episode], **kwargs: Any) -> list[Counts]:
    """Tests by what came of them, of stored episodes that are judged again without the agent."""
    env: Any = make(REPAIR, sandbox=setup.backend, **kwargs)
    world = env.unwrapped
    busy = asyncio.Semaphore(setup.workers)

    async def judged(episode: Episode) -> Counts:
        async with busy:
            _, task = world.tasks.find(episode.task_id)
            verdict = await world.verdict(Outcome(task, episode.final, tuple(episode.messages)))
        found = {"failed": verdict.count("failed", "timed_out"), "passed": verdict.count("passed")}
        return {**found, "skipped": verdict.count("skipped")}

    async def all_of_them() -> list[Counts]:
        return list(await asyncio.gather(*map(judged, episodes)))

    try:
        return run_sync(all_of_them())
    finally:
        env.close()


def _sum(found: Sequence[Counts], name: str) -> int:
    return sum(each.get(name, 0) for each in found)


@run(7, "program repair")
def program_repair(setup: Setup) -> Found:
    kwargs: dict[str, Any] = {"layout": "quixbugs", "data": str(setup.data)}
    fixed = play(setup, REPAIR, Gold(), **kwargs)
    buggy = play(setup, REPAIR, Scripted([assistant("", call("submit"))]), **kwargs)
    told = [episode.metadata["counts"] for episode in fixed]
    fixed_counts, buggy_counts = counts(setup, fixed, **kwargs), counts(setup, buggy, **kwargs)
    exact = sum(
        all(counted[result] == known.get(result, 0) for result in counted)
        for name, found in (("correct", fixed_counts), ("buggy", buggy_counts))
        for counted, known in zip(found, [each[name] for each in told], strict=True)
    )
    n = len(fixed)
    expected = (
        f"fixed {n}/{n}, {_sum([c['correct'] for c in told], 'passed')} tests pass; "
        f"buggy 0/{n}, {_sum([c['buggy'] for c in told], 'failed')} tests fail; counts exact {2 * n}/{2 * n}"
    )
    observed = (
        f"fixed {num_solved(fixed)}/{n}, {_sum(fixed_counts, 'passed')} tests pass; "
        f"buggy {num_solved(buggy)}/{n}, {_sum(buggy_counts, 'failed')} tests fail; counts exact {exact}/{2 * n}"
    )
    return Found(n, expected, observed, passed=expected == observed and n > 0)
