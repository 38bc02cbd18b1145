"""What episodes come to: the figures of an evaluation, each with its denominator, and its coverage.

Owns what counts where. The statistics are intervals.py's, passes.py's and horizon.py's; what was spent budget.py's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agentgym.evaluation.budget import Budget
from agentgym.evaluation.calibration import Calibration, calibration_of
from agentgym.evaluation.horizon import Point, success_curve
from agentgym.evaluation.intervals import Interval, by_task, mean_interval, success_interval
from agentgym.evaluation.minutes import Minutes, runs_of, time_horizon
from agentgym.evaluation.passes import Passes, passes
from agentgym.ledger import NONE, Episode, Tokens

MIN_COVERAGE = 0.9  # below it the verdict is "undecided": too much of the evaluation is missing


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the attempts over a split came to. Every rate carries its denominator: the scored episodes, unless it says
    another."""

    env_id: str
    env_version: str
    split: str
    overall: Interval
    reward: Interval
    reward_parts: Mapping[str, float]  # means; 0 where an episode ended without a verdict by the policy's own fault
    passes: tuple[Passes, ...]  # for every k up to the attempts
    by_horizon: tuple[Point, ...]
    num_planned: int
    num_played: int
    num_cut: int  # under way when the budget was spent, and left out: the long ones
    failures: Mapping[str, int]  # by kind; policy failures count in every rate, the others in none
    causes: tuple[Cause, ...]  # of failures, the most frequent first
    stop_reasons: Mapping[str, int]
    mean_turns: float
    tokens: Tokens  # of all that was played
    seconds: float  # summed over episodes: policy and environment
    cost: float | None  # money; None where no price is known, or nobody counted tokens
    flops: float | None  # None where the model's size is not known
    calibration: Calibration | None = None  # of stated confidences
    minutes: Minutes | None = None  # where tasks name how long they take people

    @property
    def num_scored(self) -> int:
        return self.overall.n

    @property
    def coverage(self) -> float:
        """Share of the planned attempts that could be scored."""
        return self.num_scored / self.num_planned if self.num_planned else 0.0

    @property
    def undecided(self) -> bool:
        return self.coverage < MIN_COVERAGE

    @property
    def cost_per_success(self) -> float | None:
        return self.cost / self.overall.successes if self.cost is not None and self.overall.successes else None

    def as_json(self) -> dict[str, Any]:
        """For summary.json, where what is not known is null."""
        return {
            "env": self.env_id, "env_version": self.env_version, "split": self.split,
            "verdict": "undecided" if self.undecided else "decided",
            "success": self.overall.as_json(), "reward": self.reward.as_json(), "reward_parts": dict(self.reward_parts),
            "passes": [each.as_json() for each in self.passes],
            "by_horizon": [point.as_json() for point in self.by_horizon],
            "num_planned": self.num_planned, "num_played": self.num_played, "num_cut": self.num_cut,
            "num_scored": self.num_scored, "coverage": self.coverage,
            "failures": dict(self.failures), "causes": [asdict(cause) for cause in self.causes],
            "stop_reasons": dict(self.stop_reasons), "mean_turns": self.mean_turns,
            "prompt_tokens": self.tokens.prompt, "sampled_tokens": self.tokens.sampled,
            "seconds_episodes": self.seconds, "flops": self.flops, "cost": self.cost,
            "cost_per_episode": None if self.cost is None else self.cost / max(self.num_played, 1),
            "cost_per_success": self.cost_per_success,
            "calibration": self.calibration and self.calibration.as_json(),
            "human_minutes": self.minutes and self.minutes.as_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cause:
    """Failures of one type."""

    cause: str
    n: int
    first: str  # message


@dataclass
class Tally:
    """An evaluation under way: what has come in so far, for its progress and in the end for its figures."""

    num_planned: int = 0
    episodes: list[Episode] = field(default_factory=list)
    tokens: Tokens = NONE
    failures: Counter[str] = field(default_factory=Counter)  # by kind
    is_pilot: bool = False  # while the first few are played, whose cost is the first estimate

    def add(self, episode: Episode) -> None:
        self.episodes.append(episode)
        self.tokens += episode.tokens
        if episode.failure is not None:
            self.failures[str(episode.failure.kind)] += 1

    @property
    def tokens_in_all(self) -> Tokens:
        """What all that is planned would cost, if the rest were like what is done."""
        ratio = self.num_planned / max(len(self.episodes), 1)
        return Tokens(round(self.tokens.prompt * ratio), round(self.tokens.sampled * ratio))


def summarise(
    env_id: str, split: str, episodes: Iterable[Episode], *, num_planned: int | None = None, num_cut: int = 0,
    budget: Budget | None = None, num_parameters: int | None = None,
) -> Evaluation:  # fmt: skip
    """The figures of a set of episodes; without `num_planned`, they are all that was planned."""
    episodes = list(episodes)
    scored = [e for e in episodes if e.counts]
    tokens = sum((e.tokens for e in episodes), NONE)
    runs = runs_of(scored)
    are_counted = bool(tokens.total) or not episodes
    is_unit = all(0 <= e.reward <= 1 for e in scored)
    parts = dict.fromkeys(name for e in scored for name in e.reward_parts)
    return Evaluation(
        env_id=env_id, env_version=episodes[0].env_version if episodes else "", split=split,
        overall=success_interval(scored),
        reward=mean_interval(by_task(scored, lambda e: e.reward), within_unit=is_unit),
        reward_parts={name: sum(e.reward_parts.get(name, 0.0) for e in scored) / len(scored) for name in parts},
        passes=tuple(passes({e.task_id: [] for e in episodes} | by_task(scored, lambda e: e.success))),
        by_horizon=tuple(success_curve(episodes)),
        num_planned=len(episodes) if num_planned is None else num_planned, num_played=len(episodes), num_cut=num_cut,
        failures=Counter(str(e.failure.kind) for e in episodes if e.failure is not None), causes=_causes(episodes),
        stop_reasons=Counter(str(e.stop_reason) for e in episodes),
        mean_turns=sum(len(e.turns) for e in scored) / max(len(scored), 1),
        tokens=tokens, seconds=sum(turn.policy_s + turn.env_s for e in episodes for turn in e.turns),
        cost=budget.cost(tokens) if budget is not None and are_counted else None,
        flops=forward_flops(num_parameters, tokens) if num_parameters is not None and are_counted else None,
        calibration=calibration_of(scored),
        minutes=time_horizon(runs) if len({run.minutes for run in runs}) > 1 else None,
    )  # fmt: skip


def forward_flops(num_parameters: int, tokens: Tokens) -> float:
    """Two for each parameter and token, prompts included (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, without
    attention)."""
    return 2.0 * num_parameters * tokens.total


def _causes(episodes: Iterable[Episode]) -> tuple[Cause, ...]:
    failures = [e.failure for e in episodes if e.failure is not None]
    return tuple(
        Cause(cause, n, next(f.message for f in failures if f.cause == cause))
        for cause, n in Counter(failure.cause for failure in failures).most_common()
    )
