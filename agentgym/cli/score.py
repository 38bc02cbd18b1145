"""`agentgym score`: judge a run's episodes again, without the agent.

Owns the command and its table. How an episode is judged again is evaluation/score.py's business."""

from __future__ import annotations

import json as json_
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress

from agentgym.cli import say
from agentgym.cli.compare import Side, remarks, shown, table
from agentgym.cli.eval import parts_of
from agentgym.cli.options import parse, settings
from agentgym.cli.show import choose_phases, find_run, read_config
from agentgym.env import AgentEnv
from agentgym.errors import ConfigError
from agentgym.evaluation.score import Verdict, against_stored, rescore, stored_task
from agentgym.ledger import Episode
from agentgym.loop import run_sync
from agentgym.registry import make
from agentgym.rewards import Score
from agentgym.rollout.replay import replay
from agentgym.rollout.store import Store

EXAMPLE = "agentgym score runs/eval-Code-v0-gold-1 --set sandbox=bubblewrap"


@dataclass(frozen=True)
class ScoreConfig:
    """Judge the stored episodes of a run again, without the agent: from their final states, with today's verifier; or
    with --replay by playing their messages again.

    Changes nothing in the run; exits with 1 where a verdict differs from the stored one."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of a run, or its name under runs/"""
    phase: str | None = None
    """which episodes: before, after, train, eval; without it every part of an evaluation, or what a run ended with"""
    limit: int | None = None
    """the first so many episodes of a phase"""
    set: tuple[str, ...] = ()
    """other arguments of the environment than the run's, name=JSON: --set sandbox=bubblewrap"""
    replay: bool = False
    """play the recorded messages again in the environment, and say where the two first part"""
    json: bool = False
    """print one object per episode"""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: give at least 1")


def main(argv: Sequence[str]) -> int:
    config = parse(ScoreConfig, argv, "agentgym score", EXAMPLE)
    folder = find_run(config.run)
    told, parts = read_config(folder), parts_of(folder)
    has_changed = False
    with Store(folder / "run.sqlite", readonly=True) as store:
        tasks = store.tasks()
        for phase in choose_phases(config.phase, store.runs(), folder):
            episodes = list(store.episodes(run=phase, limit=config.limit))
            env_kwargs = parts[phase].set if phase in parts else settings(told.get("set", ()))
            verdicts = _judged(config, episodes, tasks, env_kwargs)
            has_changed |= any(verdict.changed for verdict in verdicts)
            if config.json:
                say("\n".join(json_.dumps(_as_json(verdict)) for verdict in verdicts))
            else:
                _tell(verdicts, phase, folder)
    return 1 if has_changed else 0


def _judged(
    config: ScoreConfig, episodes: Sequence[Episode], tasks: Any, env_kwargs: Mapping[str, Any]
) -> list[Verdict]:
    """Verdicts on the episodes of one environment."""
    if not episodes[0].env_id:
        raise ConfigError(f"{config.run}: its episodes name no environment, so nothing can judge them")
    env = make(episodes[0].env_id, **{**env_kwargs, **settings(config.set)})
    base: Any = env.unwrapped
    judged = _replayed(base, episodes, tasks) if config.replay else rescore(base, episodes, tasks)
    try:
        return run_sync(_gathered(judged, len(episodes)))
    finally:
        env.close()


async def _gathered(judged: AsyncIterator[Verdict], total: int) -> list[Verdict]:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("judging", total=total)
        found = []
        async for verdict in judged:
            found.append(verdict)
            bar.advance(task)
    return found


async def _replayed(env: AgentEnv, episodes: Sequence[Episode], tasks: Any) -> AsyncIterator[Verdict]:
    for episode in episodes:
        found = await replay(env, episode, stored_task(episode, tasks))
        score = None if found.reward is None else Score(found.reward, {})
        told = found.why
        if (first := found.divergence) is not None:
            told = f"parts at turn {first.turn} of {found.num_turns} ({found.num_equal} of {found.num_compared} "
            told += f"messages equal): recorded {first.recorded!r}, replayed {first.replayed!r}"
        yield Verdict(episode, score, told)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    episode, score = verdict.episode, verdict.score
    return {
        "task_id": episode.task_id, "attempt": episode.attempt, "update": episode.update, "stored": episode.reward,
        "reward": None if score is None else score.reward, "reward_parts": {} if score is None else dict(score.parts),
        "changed": verdict.changed, "why": verdict.why,
    }  # fmt: skip


def _tell(verdicts: Sequence[Verdict], phase: str, folder: Path) -> None:
    for verdict in verdicts:
        if verdict.changed and verdict.score is not None:
            before, after = verdict.episode.reward, verdict.score.reward
            say(f"{verdict.episode.task_id} attempt {verdict.episode.attempt}: {before:g} -> {after:g}")
    num_judged, num_changed = sum(v.score is not None for v in verdicts), sum(v.changed for v in verdicts)
    comparisons = against_stored(verdicts)
    told = "; ".join(f"success {each.b}" for each in comparisons)
    say(f"phase {phase}: {num_judged} of {len(verdicts)} judged again{f', {told}' if told else ''}; "
        f"{num_changed} differ from the stored verdict.")  # fmt: skip
    if num_changed:
        side = Side(folder, (phase,), {})
        say("A: the stored verdicts; B: those of now")
        Console().print(table(comparisons, len(comparisons)))
        for line in remarks(comparisons, lambda flip: shown(flip, side, side)[:1]):
            say(line)
    for verdict in sorted((v for v in verdicts if v.why), key=lambda v: v.score is not None)[:5]:
        what = "not judged: " if verdict.score is None else ""
        say(f"  {what}{verdict.episode.task_id} attempt {verdict.episode.attempt}: {verdict.why}")
