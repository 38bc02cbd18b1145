"""Sokoban: push every box to a goal.

Owns the rules, as a player meets them. Where levels come from is levels.py's business, their solutions solver.py's."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym import Outcome
from agentgym_envs.game.solver import solve
from agentgym_envs.game.walk import Walk

TOLD = (
    "Sokoban. `#` wall, `@` you, `$` box, `.` goal, `*` box on a goal, `+` you on a goal. "
    "Push every box to a goal: walk against one, and it moves if nothing is behind it. Boxes are never pulled."
)
LEVELS = ("unfiltered", "medium", "hard")  # the published sets, by difficulty
ENTERED = {" ": "@", ".": "+"}
LEFT = {"@": " ", "+": "."}
BOXED = {" ": "$", ".": "*"}
UNBOXED = {"$": " ", "*": "."}


class Sokoban(Walk):
    """One level under way."""

    def __init__(self, rows: Sequence[str], max_moves: int) -> None:
        super().__init__(rows, "@+", max_moves)
        self.plan: str | None = None  # what is left of a solution, where one was asked for

    def go(self, step: str) -> tuple[bool, str]:
        cells, to, behind = self.cells, self.at + self.shifts[step], self.at + 2 * self.shifts[step]
        is_box = cells[to] in UNBOXED
        if not (is_box and cells[behind] in BOXED) and cells[to] not in ENTERED:
            return False, "the way is blocked."
        if is_box:
            cells[behind] = BOXED[cells[behind]]
            cells[to] = UNBOXED[cells[to]]
        cells[self.at] = LEFT[cells[self.at]]
        cells[to] = ENTERED[cells[to]]
        self.at = to
        self.plan = self.plan[1:] if self.plan and self.plan[0] == step else None
        self.is_solved = is_box and "$" not in cells
        return True, "Every box is on a goal." if self.is_solved else ""

    def gold(self) -> str | None:
        """The next moves of a solution from here; None where there is none within the solver's limit."""
        self.plan = self.plan or solve(tuple(self.show().split("\n")))
        return self.plan and self.plan[: self.max_moves]


def solved(outcome: Outcome) -> float:
    """1.0 where the boxes stand on the goals of the task's own level, one on each."""
    goals = [cell in ".*+" for cell in "\n".join(outcome.task.data["rows"])]
    return float(goals == [cell in "$*" for cell in "\n".join(outcome.final["rows"])])
