"""Judge stored episodes again, without the agent: from the task, the final state and the messages.

Owns which episodes can be judged again and how a second verdict is compared with the first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError, ConfigError
from agentgym.evaluation.compare import Comparison, by_place, compare
from agentgym.ledger import Episode
from agentgym.messages import JSON
from agentgym.rewards import Outcome, Score
from agentgym.tasks import Task

SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """One episode, and what it is worth now. `score` is None where it could not be judged; `why` says so."""

    episode: Episode
    score: Score | None
    why: str = ""

    @property
    def changed(self) -> bool:
        return self.score is not None and abs(self.score.reward - self.episode.reward) > SAME


def against_stored(verdicts: Iterable[Verdict]) -> list[Comparison]:
    """The stored verdicts (A) beside the new ones (B), of the episodes that were judged again."""
    judged = [(each.episode, replace(each.episode, reward=each.score.reward)) for each in verdicts if each.score]
    return compare(by_place(a for a, _ in judged), by_place(b for _, b in judged))


async def rescore(
    env: AgentEnv, episodes: Iterable[Episode], tasks: Mapping[str, Mapping[str, JSON]]
) -> AsyncIterator[Verdict]:
    """Verdicts in the order of the episodes; `tasks` are the stored ones, by id.

    An episode that failed for reasons that were not the policy's has nothing to be judged, and is passed over."""
    for episode in episodes:
        if episode.failure is not None:
            yield Verdict(episode, None, f"it failed ({episode.failure.kind}: {episode.failure.cause})")
            continue
        task = stored_task(episode, tasks)
        if task is None:
            yield Verdict(episode, None, "its task is not stored")
            continue
        try:
            score = await env.rubric.score(Outcome(task, episode.final, episode.messages))
        except ConfigError:
            raise
        except AgentGymError as error:
            yield Verdict(episode, None, f"{type(error).__name__}: {error}")
            continue
        yield Verdict(episode, None if score.unscored else score, score.unscored or "")


def stored_task(episode: Episode, tasks: Mapping[str, Mapping[str, JSON]]) -> Task | None:
    """The task that an episode was about, of those stored by id."""
    record = dict(tasks.get(episode.task_id) or {})
    if not record:
        return None
    record["gold"] = None if record.get("gold") is None else tuple(record["gold"])  # type: ignore[arg-type]
    return Task(**record)  # type: ignore[arg-type]
