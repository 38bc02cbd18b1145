"""Follow links from key to key up to the first red one: how many turns does a skill carry?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from agentgym import AgentEnv, ConfigError, Message, Rubric, ToolError, answer_equals, assistant, call, tool
from agentgym_envs.lookup.tasks import LEVELS, chains

DEMONSTRATOR: Mapping[str, float] = {
    "notice": 0.2,  # chance to stop at a red key just seen
    "give_up": 0.1,  # chance to stop at any other, before each look-up
    "slip": 0.05,  # chance of a random key at each look-up
    "max_lookups": 40,
}
FILLER = "the index card is worn and someone has noted on its back that links were checked in spring"


class LookupEnv(AgentEnv):
    """`lookup(key)` answers the key that `key` links to, and its colour. Horizon: `horizon` look-ups and an answer.

    Dials: `horizon`, a number or several that tasks take in turn; `difficulty` 0 to 3, see `tasks.LEVELS`."""

    rubric = Rubric(right_key=answer_equals)
    blocking = False

    def __init__(
        self,
        *,
        horizon: int | Sequence[int] = (1, 2, 3, 4, 5, 6),
        difficulty: int = 0,
        demonstrator: Mapping[str, float] | None = None,
        split: str = "train",
        max_turns: int | None = None,
        max_tokens: int | None = None,
        max_time_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`demonstrator` changes constants of DEMONSTRATOR. `max_turns` is by default the horizon + 4 (not told)."""
        unknown = set(demonstrator or {}) - set(DEMONSTRATOR)
        if unknown:
            raise ConfigError(f"demonstrator has no {min(unknown)!r}; it has {', '.join(DEMONSTRATOR)}")
        self.tasks = chains((horizon,) if isinstance(horizon, int) else tuple(horizon), difficulty)
        self.level = LEVELS[difficulty]
        self.demonstrator = {**DEMONSTRATOR, **(demonstrator or {})}
        super().__init__(
            split=split, max_turns=max_turns, max_tokens=max_tokens, max_time_s=max_time_s, render_mode=render_mode
        )

    def setup(self) -> None:
        keys, colours = self.task.data["keys"], self.task.data["colours"]
        self.links = dict(zip(keys, keys[1:] + keys[:1], strict=True))
        self.colour = {key: "red" if mark == "r" else "blue" for key, mark in zip(keys, colours, strict=True)}
        self.at = keys[0]  # the key seen last
        self.num_passed = 0  # how much of the right way has been seen

    def turn_limit(self) -> int:
        return self.task.metadata["horizon"] + 4

    @tool
    def lookup(self, key: int) -> str:
        """Look up which key a key links to, and that key's colour.

        Args:
            key: The key to look up.
        """
        if key not in self.links:
            raise ToolError(f"there is no key {str(key)[:40]}")
        if key == self.task.data["keys"][self.num_passed]:
            self.num_passed += 1
        self.at = self.links[key]
        return self._told(self.at)

    def _told(self, key: int) -> str:
        """`48 blue`, and on higher levels idle words before and other keys behind it."""
        link = f"{key} {self.colour[key]}"
        if self.level.words:
            filler = FILLER.split()
            offset = int(self.np_random.integers(len(filler)))
            words = [filler[(offset + i) % len(filler)] for i in range(self.level.words)]
            link = f"{' '.join(words)}. Link: {link}."
        if self.level.distractors:
            others = self.np_random.choice(self.task.data["keys"], self.level.distractors).tolist()
            link += f" Unrelated: {', '.join(f'{other} {self.colour[other]}' for other in others)}."
        return link

    def state_key(self) -> str:
        return str(self.at)

    def gold(self) -> Message:
        if self.num_passed < self.task.metadata["horizon"]:
            return assistant("", call("lookup", key=self.task.data["keys"][self.num_passed]))
        return assistant(str(self.task.answer))

    def demonstrate(self, rng: np.random.Generator) -> Message:
        """A distracted walker: notices a red key now and then, gives up now and then, and slips. What it does never
        depends on how far it has come, so that imitation learns no length."""
        chances = self.demonstrator
        is_red = self.num_turns > 0 and self.colour[self.at] == "red"
        stops = rng.random() < chances["notice" if is_red else "give_up"]
        if stops or self.num_turns >= chances["max_lookups"]:
            return assistant(str(self.at))
        keys = self.task.data["keys"]
        slips = rng.random() < chances["slip"]
        return assistant("", call("lookup", key=keys[int(rng.integers(len(keys)))] if slips else self.at))
