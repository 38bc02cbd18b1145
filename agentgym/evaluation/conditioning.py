"""Self-conditioning: do wrong steps in the history make the next step worse?

Owns the planting of wrong steps, the judgement of the step that follows, and the slope. Playing the episodes is
run.py's business. The question is from Sinha et al. (2025, arXiv 2509.09677): strict success cannot ask it, because
the first error ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium
import numpy as np

from agentgym.env import AgentEnv, Observation
from agentgym.errors import ConfigError, TaskError
from agentgym.evaluation.intervals import Interval, mean_interval, wilson
from agentgym.evaluation.run import evaluate
from agentgym.ledger import Episode, Ledger
from agentgym.messages import JSON, Message
from agentgym.policies.base import Actor, Policy
from agentgym.policies.builtin import Gold
from agentgym.policies.compute import Computed
from agentgym.rollout.driver import derive_seed
from agentgym.rollout.store import Store

SHARES = (0.0, 0.1, 0.25, 0.5)
SURE = 0.99  # level of the interval behind the verdict
MIN_TASKS = 8  # for a verdict


class Planted:
    """Plays `history` turns, `share` of them wrong, and lets the policy play on from there.

    A right step is gold's; a wrong one repeats an earlier step of gold at a time when gold does another. Gold itself
    puts it right, and the last step of the history is always right, so that whoever looks at that step alone sees no
    difference. The policy finds the whole history in its first observation, as if it had said it. Which steps are wrong
    depends on task and seed only, and those of a smaller share are among those of a larger one."""

    def __init__(self, policy: Policy, share: float, history: int) -> None:
        if not 0 <= share <= 0.5 or history < 4:
            raise ConfigError(f"{100 * share:g} % wrong of {history} steps: plant 0 to 50 % of at least 4")
        self.policy = policy
        self.num_wrong = round(share * history)
        self.history = history

    def begin(self, env: gymnasium.Env, *, seed: int) -> Actor:
        return _PlantedActor(self, env, self.policy.begin(env, seed=seed))


class _PlantedActor:
    """Gold and its repetitions, then the policy's own actor."""

    ledger: Ledger | None = None  # the policy has not sampled what the history makes it say

    def __init__(self, plan: Planted, env: gymnasium.Env, actor: Actor) -> None:
        self._plan, self._actor = plan, actor
        self._gold = Gold().begin(env, seed=0)  # refuses what is no AgentEnv
        self._world: AgentEnv = env.unwrapped  # type: ignore[assignment]
        self._said: list[Message] = []
        self._tools: list[dict[str, JSON]] | None = None

    async def act(self, observation: Observation) -> Message:
        turn = self._world.num_turns
        self._tools = self._tools if observation["tools"] is None else observation["tools"]
        if turn > self._plan.history:
            return await self._actor.act(observation)
        if turn == self._plan.history:
            return await self._actor.act({"messages": list(self._world.messages), "tools": self._tools})
        if turn == 0:
            self._rng = np.random.default_rng(derive_seed("planted", self._world.task_id, self._world.np_random_seed))
            places = 1 + self._rng.permutation(self._plan.history - 2)
            self._wrong = set(places[: self._plan.num_wrong].tolist())
            self._owed = 0
        return self._planted(turn, await self._gold.act(observation))

    def _planted(self, turn: int, right: Message) -> Message:
        """Gold's message, or in a wrong place an earlier one; where none differs, the next place is wrong instead."""
        self._owed += turn in self._wrong
        others = [said for said in self._said if spoken(said) != spoken(right)]
        self._said.append(right)
        if turn == self._plan.history - 1 and self._owed:
            raise TaskError(f"{self._owed} wrong steps found no place: gold says too few different things")
        if not self._owed or not others:
            return right
        self._owed -= 1
        return others[int(self._rng.integers(len(others)))]

    async def close(self) -> None:
        await self._actor.close()


def spoken(message: Message) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What a message says: its text, and its calls without their ids."""
    calls = tuple((c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ()))
    return message["content"], calls


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Accuracy of the step after a history, by the share of it that was wrong."""

    history: int  # steps before the one that is judged
    shares: tuple[float, ...]  # as planted: whole steps of the history
    accuracy: tuple[Interval, ...]
    slope: Interval  # of accuracy, from a history without errors to one of nothing else
    sure: tuple[float, float]  # the wider interval of the slope that the verdict uses

    @property
    def verdict(self) -> Literal["errors breed errors", "errors help", "none seen", "cannot tell"]:
        if self.slope.num_tasks < MIN_TASKS:
            return "cannot tell"
        if self.sure[1] < 0:
            return "errors breed errors"
        return "errors help" if self.sure[0] > 0 else "none seen"

    def as_json(self) -> dict[str, Any]:
        rows = [{"share": q, **rate.as_json()} for q, rate in zip(self.shares, self.accuracy, strict=True)]
        return {"history": self.history, "by_share": rows, "slope": self.slope.as_json(), "verdict": self.verdict}


def conditioned(outcomes: Mapping[str, Sequence[bool]], shares: Sequence[float], history: int) -> Conditioning:
    """The slope of every task, fitted to its own steps by least squares, and their mean (tasks are the clusters).
    outcomes: task id -> whether the step was right, for each share.

    Tasks that lack a share are left out. Where all slopes are equal there is no spread to go by: then their mean is as
    uncertain as Wilson's interval allows between two shares. Raises ConfigError without a whole task."""
    whole = {task: right for task, right in outcomes.items() if len(right) == len(shares)}
    if not whole or len(set(shares)) < 2:
        raise ConfigError(f"{len(whole)} tasks with a step after each of the shares {shares}: nothing to compare")
    right = np.array(list(whole.values()), dtype=np.float64)
    centred = np.array(shares) - np.mean(shares)
    each = right @ centred / (centred @ centred)
    slopes = {task: [slope] for task, slope in zip(whole, each.tolist(), strict=True)}
    rates = [wilson(int(column.sum()), len(whole)) for column in right.T]
    mean, sure = mean_interval(slopes), mean_interval(slopes, SURE)
    if np.ptp(each) < 1e-9:
        half = max(rate.high - rate.low for rate in rates) / max(shares)
        sure = mean = replace(mean, low=mean.mean - half, high=mean.mean + half)
    return Conditioning(history, tuple(shares), tuple(rates), mean, (sure.low, sure.high))


async def conditioning(
    env_id: str, policy: Policy, *, store: Store, run: str, history: int, shares: Sequence[float] = SHARES,
    env_kwargs: Mapping[str, Any] | None = None, **played: Any,
) -> Conditioning:  # fmt: skip
    """Play the step after `history` steps on the same tasks for every share, and gold's step beside it.

    The step is right where it leads to the state that gold's leads to, or, where gold's leads to no other state or the
    environment names none, where it says the same. The history has as many steps for every share, so the more of them
    are wrong, the less of the task is done. `played` goes to `evaluate`: limit, split, seed, concurrency,
    progress, plan. The environment takes `horizon`, and its gold goes on from any state. Raises ConfigError."""
    shares = tuple(sorted(dict.fromkeys(round(share * history) / history for share in shares)))
    found: dict[str, list[bool]] = {}
    if (plan := played.pop("plan", None)) is not None:  # of the policy's own step, never of the history
        policy = Computed(policy, plan)
    for share in shares:
        after = []
        for name, player in ((run, policy), ("gold", Gold())):
            phase = f"{name}-planted-{round(share * history)}-of-{history}"
            await evaluate(
                env_id, Planted(player, share, history), store=store, run=phase, horizons=[history + 1],
                env_kwargs={**(env_kwargs or {}), "max_turns": history + 1}, **played,
            )  # fmt: skip
            after.append({e.task_id: e for e in store.episodes(run=phase) if e.counts})
        ours, gold = after
        for task in sorted(ours.keys() & gold.keys()):
            found.setdefault(task, []).append(_is_right(ours[task], gold[task], history))
    return conditioned(found, shares, history)


def _is_right(ours: Episode, gold: Episode, history: int) -> bool:
    """Whether the step after the history is as good as gold's."""
    if len(ours.turns) <= history or ours.terminated != gold.terminated:
        return False
    before, after = (gold.turns[turn].state_key for turn in (history - 1, history))
    if after != before:
        return ours.turns[history].state_key == after
    said = ([spoken(m) for m in e.messages if m["role"] == "assistant"][history] for e in (ours, gold))
    return len(set(said)) == 1
