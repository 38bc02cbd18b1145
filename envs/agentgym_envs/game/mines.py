"""Minesweeper that needs no guess: each row follows from the clues of the row above it.

Owns the dials, how a field is drawn so that every row can be deduced, the rules, and the deduction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from string import ascii_lowercase
from typing import Any

import numpy as np

from agentgym import Outcome, ToolError
from agentgym.tools import shortened

MAX_CELLS = 16  # of one call
MAX_HORIZON = 98
TOLD = (
    "Minesweeper. `.` a closed cell, a digit an open one: how many of the up to eight cells around it are mines. "
    "Open every cell that is no mine; nothing opens by itself, and an open mine `*` ends the game. "
    "No guess is ever needed. Cells are named by column and row, such as b2."
)
Row = tuple[bool, ...]  # which cells are mines
Clues = Sequence[int | None]  # how many mines each cell above sees in the row; None where it is one itself


@dataclass(frozen=True)
class Level:
    """One step of difficulty."""

    width: int
    mines: tuple[int, ...]  # in a row, one of these
    one_clue: bool  # whether reading one clue at a time is enough in every row; else it is enough in none


LEVELS = (Level(7, (1, 2), True), Level(8, (1, 2, 3), True), Level(8, (1, 2, 3), False), Level(9, (2, 3), False))


def drawn(rng: np.random.Generator, horizon: int, level: Level) -> list[str]:
    """A row that is open from the start, and `horizon` rows that follow from one another."""
    following = _following(level)
    rows, choices = [], list(following)
    for _ in range(horizon + 1):
        rows.append(choices[int(rng.integers(len(choices)))])
        choices = following[rows[-1]]
    return ["".join(".*"[mine] for mine in row) for row in rows]


@lru_cache
def _following(level: Level) -> Mapping[Row, list[Row]]:
    """The rows of a level, and those that may come below each: its clues leave no doubt about them, and they are as
    hard as the level says. A row that none may follow is no row of the level."""
    following = {row: _deducible(row, level) for row in _sums(level.width) if sum(row) in level.mines}
    while dead := {above for above, below in following.items() if not below}:
        following = {a: [row for row in below if row not in dead] for a, below in following.items() if a not in dead}
    return following


def _deducible(above: Row, level: Level) -> list[Row]:
    by_clues: dict[tuple[int | None, ...], list[Row]] = {}
    for row, told in _sums(level.width).items():
        clues = tuple([None if mine else clue for mine, clue in zip(above, told, strict=True)])
        by_clues.setdefault(clues, []).append(row)
    return [
        rows[0]
        for clues, rows in by_clues.items()
        if len(rows) == 1 and sum(rows[0]) in level.mines and _by_one_clue(clues) == level.one_clue
    ]


def _by_one_clue(clues: Clues) -> bool:
    """Whether a row follows from one clue at a time and what was said before."""
    told: dict[int, bool] = {}
    changed = True
    while changed:
        changed = False
        for column, clue in enumerate(clues):
            window = _window(column, len(clues))
            closed = [other for other in window if other not in told]
            if clue is not None and closed and (left := clue - sum(told.get(o, 0) for o in window)) in (0, len(closed)):
                told.update(dict.fromkeys(closed, left > 0))
                changed = True
    return len(told) == len(clues)


@lru_cache
def _sums(width: int) -> Mapping[Row, tuple[int, ...]]:
    """Every row there is, and how many of its mines lie below each cell above it."""
    rows = product((False, True), repeat=width)
    return {row: tuple(sum(row[j] for j in _window(i, width)) for i in range(width)) for row in rows}


def _window(column: int, width: int) -> range:
    return range(max(0, column - 1), min(width, column + 2))


class Mines:
    """One field under way. The text of the board stands in one list, cell by cell."""

    is_solved = is_lost = False

    def __init__(self, rows: Sequence[str]) -> None:
        self.rows = rows
        self.width = len(rows[0])
        lines = [f"{number:>2} {'.' * self.width}" for number in range(1, len(rows) + 1)]
        self.board = list("\n".join([f"   {ascii_lowercase[: self.width]}", *lines]))
        self.num_closed = sum(row.count(".") for row in rows)  # that are no mines
        for column in range(self.width):
            if rows[0][column] == ".":
                self._open(0, column)

    def _place(self, row: int, column: int) -> int:
        return (row + 1) * (self.width + 4) + 3 + column

    def _open(self, row: int, column: int) -> None:
        place = self._place(row, column)
        self.is_lost = self.rows[row][column] == "*"
        if self.board[place] == ".":
            around = self.rows[max(0, row - 1) : row + 2]
            clue = sum(line[max(0, column - 1) : column + 2].count("*") for line in around)
            self.board[place] = "*" if self.is_lost else str(clue)
            self.num_closed -= not self.is_lost

    def show(self) -> str:
        return "".join(self.board)

    state_key = show

    def play(self, cells: str) -> str:
        """Open cells, up to the first mine. Raises ToolError for what is no cell, before any is opened."""
        names = cells.replace(",", " ").split()
        if not 1 <= len(names) <= MAX_CELLS:
            raise ToolError(f"{len(names)} cells in one call; give 1 to {MAX_CELLS}, such as b2 c2")
        for row, column in [self._read(name) for name in names]:
            self._open(row, column)
            if self.is_lost:
                return f"{ascii_lowercase[column]}{row + 1} is a mine.\n{self.show()}"
        self.is_solved = self.num_closed == 0
        return f"Every cell without a mine is open.\n{self.show()}" if self.is_solved else self.show()

    def _read(self, name: str) -> tuple[int, int]:
        match = re.fullmatch(r"([a-z])([1-9][0-9]?)", name)
        row, column = (int(match[2]) - 1, ascii_lowercase.index(match[1])) if match else (-1, -1)
        if not (0 <= row < len(self.rows) and column < self.width):
            last = f"{ascii_lowercase[self.width - 1]}{len(self.rows)}"
            raise ToolError(f"there is no cell {shortened(name)}; they are a1 to {last}")
        return row, column

    def gold(self) -> str | None:
        """The closed cells of the first row that has some which no row that fits the digits above it has a mine in."""
        for row in range(1, len(self.rows)):
            clues = [(column, clue) for column, clue in enumerate(self._clues(row)) if clue is not None]
            fit = [mines for mines, sums in _sums(self.width).items() if all(sums[c] == clue for c, clue in clues)]
            closed = [column for column in range(self.width) if self.board[self._place(row, column)] == "."]
            if safe := [column for column in closed if fit and not any(mines[column] for mines in fit)]:
                return " ".join(f"{ascii_lowercase[column]}{row + 1}" for column in safe)
        return None

    def _clues(self, row: int) -> Clues:
        """What the digits above a row tell of it. What is still closed above it is a mine."""
        clues: list[int | None] = []
        for column in range(self.width):
            digit = self.board[self._place(row - 1, column)]
            around = [self._place(r, c) for r in range(max(0, row - 2), row) for c in _window(column, self.width)]
            clues.append(int(digit) - sum(self.board[p] in ".*" for p in around) if digit.isdecimal() else None)
        return clues

    def final(self) -> Any:
        return {"board": self.show().split("\n")[1:]}


def asked(rows: Sequence[str], level: Level) -> str:
    """What the first message says."""
    return f"{TOLD}\n\n{Mines(rows).show()}"


def solved(outcome: Outcome) -> float:
    """1.0 where every cell of the task's own field is open but for the mines, and no mine is."""
    shown = str.maketrans("012345678.*", ".........*?")
    return float([line[3:].translate(shown) for line in outcome.final["board"]] == list(outcome.task.data["rows"]))
