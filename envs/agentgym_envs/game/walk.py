"""A player on a grid: letters in, a grid of text out.

Owns how moves are read and told. What a move does is each game's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentgym import ToolError
from agentgym.tools import shortened

STEPS = "udlr"


class Walk:
    """One game under way. Cells stand row by row in one list, each row ended by a line break; the border is wall."""

    is_solved = is_lost = False  # nothing ends such a game but its solution

    def __init__(self, rows: Sequence[str], players: str, max_moves: int) -> None:
        self.width = len(rows[0]) + 1
        self.max_moves = max_moves  # of one call
        self.cells = list("\n".join(rows))
        self.at = next(index for index, cell in enumerate(self.cells) if cell in players)
        self.shifts = dict(zip(STEPS, (-self.width, self.width, -1, 1), strict=True))

    def show(self) -> str:
        return "".join(self.cells)

    state_key = show

    def go(self, step: str) -> tuple[bool, str]:
        """Make one move: whether it could be made, and what the player is told of it; a walk ends where it is told."""
        raise NotImplementedError

    def play(self, moves: str) -> str:
        """Make moves, up to the first that tells something. Raises ToolError for what is no list of moves."""
        if not 1 <= len(moves) <= self.max_moves or moves.strip(STEPS):
            raise ToolError(f"moves is {shortened(moves)}; give 1 to {self.max_moves} letters of u, d, l and r")
        for done, step in enumerate(moves):
            went, told = self.go(step)
            if told:
                stopped = "" if went else f"Stopped after {done} of {len(moves)} moves: "
                return f"{stopped}{told}\n{self.show()}"
        return self.show()

    def final(self) -> Any:
        return {"rows": Walk.show(self).split("\n"), "at": list(divmod(self.at, self.width))}
