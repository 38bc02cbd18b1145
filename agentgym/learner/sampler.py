"""Which tasks the next batch is about.

Owns the position in the split and the curriculum of horizons: state that a checkpoint keeps. What is learned from the
episodes is selection.py's and credit.py's business."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal

from agentgym.errors import ConfigError
from agentgym.rollout.driver import Slot, derive_seed
from agentgym.tasks import Split


@dataclass(frozen=True, slots=True)
class CurriculumConfig:
    """Short tasks first (h1, 2025; ScalingInter-RL, AgentGym-RL 2025)."""

    curriculum: Literal["none", "updates", "success"] = "none"
    """When the longest trained horizon grows: never, every so many updates, or when it is mastered."""
    curriculum_start: int = 1
    """The longest horizon trained at first."""
    curriculum_step: int = 1
    """By how much it grows."""
    curriculum_every: int = 10
    """updates: after how many it grows."""
    curriculum_success: float = 0.7
    """success: the share of an update's episodes at the longest horizon that must succeed."""

    def __post_init__(self) -> None:
        for name in ("curriculum_start", "curriculum_step", "curriculum_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 < self.curriculum_success <= 1:
            raise ConfigError(f"curriculum_success is {self.curriculum_success}; a share lies above 0 and up to 1")


class Sampler:
    """Consecutive tasks of a split, those beyond the curriculum's horizon left out."""

    def __init__(self, split: Split, config: CurriculumConfig, *, seed: int) -> None:
        self.split = split
        self.config = config
        self.seed = seed
        self.position = 0
        self.longest = config.curriculum_start if config.curriculum != "none" else 0  # 0: no bound

    def slots(
        self, update: int, groups: int, group_size: int, *, first_group: int = 0, taken: Container[str] = ()
    ) -> list[Slot]:
        """The next `groups` tasks, `group_size` attempts each; those `taken` are passed over, and where no others are
        left there are fewer groups."""
        return [
            Slot(task_id, attempt, first_group + group, derive_seed(self.seed, "episode", update, task_id) >> 32)
            for group, task_id in enumerate(self._take(groups, taken))
            for attempt in range(group_size)
        ]

    def _take(self, count: int, passed_over: Container[str]) -> list[str]:
        if not self.longest and not passed_over:
            taken = [task_id for task_id, _ in self.split.take(count, start=self.position % len(self.split))]
            self.position += count
            return taken
        found: dict[str, None] = {}
        for _ in range(len(self.split)):
            task = self.split[self.position % len(self.split)]
            self.position += 1
            task_id = self.split.id_of(task)
            fits = not self.longest or task.horizon is None or task.horizon <= self.longest
            if fits and task_id not in passed_over:
                found[task_id] = None
            if len(found) == count:
                return list(found)
        if passed_over:
            return list(found)
        raise ConfigError(
            f"split {self.split.name!r} has {len(found)} tasks of horizon {self.longest} or less, {count} groups are "
            "wanted; raise --curriculum-start or lower --groups"
        )

    def learned(self, line: dict[str, Any]) -> None:
        """An update is done, with that audit: let the curriculum grow."""
        c = self.config
        trained = {int(h): rate for h, rate in line["by_horizon"].items() if int(h) <= self.longest}
        mastered = bool(trained) and trained[max(trained)] >= c.curriculum_success  # horizons may have gaps
        due = (line["update"] + 1) % c.curriculum_every == 0 if c.curriculum == "updates" else mastered
        if c.curriculum != "none" and due:
            self.longest += c.curriculum_step

    def state(self) -> dict[str, int]:
        return {"position": self.position, "longest": self.longest}

    def load(self, state: dict[str, int]) -> None:
        self.position, self.longest = state["position"], state["longest"]
