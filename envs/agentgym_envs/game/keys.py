"""Keys and doors: each door's key lies behind the door before it.

Owns the dials, how a map is drawn so that it can be solved and never spoilt, the rules, and the shortest way on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentgym import Outcome, TaskError
from agentgym_envs.game.walk import Walk

MAX_MOVES = 100  # of one call
MAX_HORIZON = 100
LETTERS = "abcdefghijklmnopqrst"  # of keys; they come again once they are used up
PITCH = 4  # cells from one room to the next: three of floor and a wall
PILLAR = 0.25  # chance of each corner of a room to be wall
ATTEMPTS = 2_000  # to draw a map that does not run into itself
SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
Room = tuple[int, int]


@dataclass(frozen=True)
class Level:
    """One step of difficulty."""

    back: int  # rooms between a key and its door, at most
    is_dark: bool  # whether only the room around the player is shown


LEVELS = (Level(0, False), Level(4, False), Level(4, True), Level(8, True))
TOLD = (
    "Find the exit. `#` wall, `.` floor, `@` you, `>` the exit, small letters keys, capitals locked doors, `/` an open "
    "door. Walk over a key to take it and against a door to open it: `A` takes one key `a`, which is used up. "
    "A walk ends where a door opens."
)
DARK = " Only the room around you is lit: remember the others."


def drawn(rng: np.random.Generator, horizon: int, level: Level) -> list[str]:
    """A map with `horizon` - 1 doors. Door k leads from a room behind door k - 20 or later into the k-th room, and its
    key lies in the room before: doors open in order, and no key can be used up on another door."""
    for _ in range(ATTEMPTS):
        rooms, entered_from = [(0, 0)], [0]
        for number in range(1, horizon):
            near = _near(entered_from, number - 1, level.back)
            if not _add(rng, rooms, entered_from, [index for index in near if index >= number - len(LETTERS)]):
                break
        else:
            return _painted(rng, rooms, entered_from)
    raise TaskError(f"horizon={horizon}: {ATTEMPTS} maps ran into themselves; choose a lower horizon")


def _add(rng: np.random.Generator, rooms: list[Room], entered_from: list[int], near: Sequence[int]) -> bool:
    """Lay out one more room beside one of those; False where there is no place."""
    around = [(i, (rooms[i][0] + down, rooms[i][1] + right)) for i in near for down, right in SIDES]
    if free := [(index, room) for index, room in around if room not in rooms]:
        index, room = free[int(rng.integers(len(free)))]
        rooms.append(room)
        entered_from.append(index)
    return bool(free)


def _near(entered_from: list[int], start: int, limit: int) -> list[int]:
    """Rooms that are at most `limit` doors away, in the order they were laid out."""
    found = {start}
    for _ in range(limit):
        beyond = {index for index, parent in enumerate(entered_from) if parent in found}
        found |= beyond | {entered_from[index] for index in found}
    return sorted(found)


def _painted(rng: np.random.Generator, rooms: list[Room], entered_from: list[int]) -> list[str]:
    corner = np.min(rooms, axis=0)
    middles = ((np.array(rooms) - corner) * PITCH + 2).tolist()
    height, width = (np.max(middles, axis=0) + 3).tolist()
    cells = [["#"] * width for _ in range(height)]
    things = [LETTERS[number % len(LETTERS)] for number in range(len(rooms) - 1)] + [">"]
    for number, (row, column) in enumerate(middles):
        pillars = rng.random(9) < PILLAR
        floor = [(row + i // 3 - 1, column + i % 3 - 1) for i in range(9) if not (i in (0, 2, 6, 8) and pillars[i])]
        places = [floor[i] for i in rng.permutation(len(floor))]
        for (r, c), cell in zip(places, [things[number], "." if number else "@", *"......."], strict=False):
            cells[r][c] = cell
        if number:
            other = middles[entered_from[number]]
            cells[(row + other[0]) // 2][(column + other[1]) // 2] = things[number - 1].upper()
    return ["".join(line) for line in cells]


class Keys(Walk):
    """One map under way."""

    def __init__(self, rows: Sequence[str], level: Level) -> None:
        super().__init__(rows, "@", MAX_MOVES)
        self.cells[self.at] = "."
        self.is_dark = level.is_dark
        self.carried: list[str] = []

    def show(self) -> str:
        lines, (row, column) = "".join(self.cells).split("\n"), divmod(self.at, self.width)
        lines[row] = f"{lines[row][:column]}@{lines[row][column + 1 :]}"
        if self.is_dark:  # but for the room around the player, or the two that a door joins
            top, bottom = (row - 1) // PITCH * PITCH, row // PITCH * PITCH + PITCH
            left, right = (column - 1) // PITCH * PITCH, column // PITCH * PITCH + PITCH
            lit = [line[left : right + 1] for line in lines[top : bottom + 1]]
            lines = [f"Rows {top} to {bottom}, columns {left} to {right}:", *lit]
        return "\n".join([*lines, f"You carry: {' '.join(self.carried) or 'nothing'}"])

    def state_key(self) -> str:
        return f"{self.at} {''.join(self.cells)}"

    def go(self, step: str) -> tuple[bool, str]:
        to = self.at + self.shifts[step]
        cell = self.cells[to]
        if cell == "#":
            return False, "a wall."
        if cell.isupper() and cell.lower() not in self.carried:
            return False, f"door {cell} is locked."
        self.at = to
        if cell.isupper():
            self.carried.remove(cell.lower())
            self.cells[to] = "/"
            return True, f"Door {cell} opens."
        if cell.islower():
            self.carried.append(cell)
            self.cells[to] = "."
        self.is_solved = cell == ">"
        return True, "You are at the exit." if self.is_solved else ""

    def gold(self) -> str:
        """The shortest way to the exit, or to a door that opens, or to a key and its door."""
        way = self._way(self.at, self.carried, lambda cell: cell == ">" or cell.isupper())
        if way is None:
            to_key = self._way(self.at, self.carried, str.islower) or ""
            at = self.at + sum(self.shifts[step] for step in to_key)
            way = to_key + (self._way(at, [*self.carried, self.cells[at]], str.isupper) or "")
        return way[:MAX_MOVES]

    def _way(self, start: int, carried: list[str], wanted: Callable[[str], bool]) -> str | None:
        """The shortest way to a cell that is wanted, with these keys in hand."""
        ways, queue = {start: ""}, deque([start])
        while queue:
            at = queue.popleft()
            for step, shift in self.shifts.items():
                to, cell = at + shift, self.cells[at + shift]
                if to in ways or cell == "#" or (cell.isupper() and cell.lower() not in carried):
                    continue
                ways[to] = ways[at] + step
                if wanted(cell):
                    return ways[to]
                queue.append(to)
        return None


def asked(rows: Sequence[str], level: Level) -> str:
    """What the first message says."""
    return f"{TOLD}{DARK if level.is_dark else ''}\n\n{Keys(rows, level).show()}"


def solved(outcome: Outcome) -> float:
    """1.0 where the player stands at the exit of the task's own map."""
    row, column = outcome.final["at"]
    return float(outcome.task.data["rows"][row][column] == ">")
