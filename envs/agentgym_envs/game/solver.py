"""Sokoban solved exactly: A* over pushes.

Owns the search: push distances, dead squares, the matching of boxes and goals. Sets of cells are bits of
one integer, cell = row * width + column; the border of a level is wall, so that no shift wraps around. What a player
may do and sees is sokoban.py's."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache

from agentgym_envs.game.walk import STEPS

NODE_LIMIT = 100_000  # positions taken up before a level is given up
WEIGHT = 2  # of the pushes still to come beside those made: plans are found sooner, and up to twice as long as the best
Position = tuple[int, int]  # boxes, cells that the player reaches


@lru_cache(maxsize=4096)
def solve(rows: tuple[str, ...], limit: int = NODE_LIMIT) -> str | None:
    """Moves (`udlr`) that bring every box to a goal; None where there are none, or none within the limit."""
    return _Puzzle(rows).search(limit)


class _Puzzle:
    """One level, with the tables of its search."""

    def __init__(self, rows: tuple[str, ...]) -> None:
        width = len(rows[0])
        cells = "".join(rows)
        self.shifts = dict(zip(STEPS, (-width, width, -1, 1), strict=True))
        self.floor = _mask(cells, " @$.*+")
        self.boxes = _mask(cells, "$*")
        self.player = _mask(cells, "@+")
        goals = list(_bits(_mask(cells, ".*+")))
        self.distances: dict[int, list[tuple[int, int]]] = {}  # cell -> (a goal's bit, pushes to it)
        for number, goal in enumerate(goals):
            for cell, pushes in self._pushes_to(goal).items():
                self.distances.setdefault(cell, []).append((1 << number, pushes))
        self.live = sum(self.distances)  # from where a box alone reaches a goal
        self._bounds: dict[int, int | None] = {}

    def search(self, limit: int) -> str | None:
        """The moves of a solution; `came` says of each position how many pushes led there, and the last of them."""
        start = (self.boxes, self._flood(self.player, self.floor & ~self.boxes))
        queue = [] if (bound := self.bound(self.boxes)) is None else [(WEIGHT * bound, bound, start)]
        came: dict[Position, tuple[int, Position, int, str]] = {start: (0, start, 0, "")}
        while queue and limit:
            total, bound, position = heapq.heappop(queue)
            pushes = came[position][0]
            if total > pushes + WEIGHT * bound:
                continue  # a shorter way there was found since
            if bound == 0:
                return self._moves(came, position)
            limit -= 1
            for box, step, after in self._pushed(position):
                is_new = after not in came or pushes + 1 < came[after][0]
                if is_new and (bound := self.bound(after[0])) is not None:
                    came[after] = (pushes + 1, position, box, step)
                    heapq.heappush(queue, (pushes + 1 + WEIGHT * bound, bound, after))
        return None

    def _pushed(self, position: Position) -> Iterator[tuple[int, str, Position]]:
        """Every push that leaves the box where it could reach a goal, were it alone."""
        boxes, reach = position
        for step, shift in self.shifts.items():
            for box in _bits(boxes & _shifted(reach, shift) & _shifted(self.live & ~boxes, -shift)):
                after = boxes ^ box ^ _shifted(box, shift)
                yield box, step, (after, self._flood(box, self.floor & ~after))

    def bound(self, boxes: int) -> int | None:
        """Pushes that are needed at least: the cheapest matching of boxes and goals; None where there is none."""
        if boxes not in self._bounds:
            best = {0: 0}  # goals taken -> pushes
            for box in _bits(boxes):
                following: dict[int, int] = {}
                for taken, pushes in best.items():
                    for goal, distance in self.distances.get(box, ()):
                        if not taken & goal:
                            total = pushes + distance
                            following[taken | goal] = min(total, following.get(taken | goal, total))
                best = following
            self._bounds[boxes] = min(best.values(), default=None)
        return self._bounds[boxes]

    def _pushes_to(self, goal: int) -> dict[int, int]:
        """Pushes that one box alone needs from each cell to the goal, wherever the player stands."""
        found, queue = {goal: 0}, deque([goal])
        while queue:
            cell = queue.popleft()
            for shift in self.shifts.values():
                before = _shifted(cell, -shift)
                if before & self.floor and _shifted(before, -shift) & self.floor and before not in found:
                    found[before] = found[cell] + 1
                    queue.append(before)
        return found

    def _flood(self, start: int, free: int) -> int:
        """Cells that are reached on foot."""
        up = self.shifts["d"]
        reach = start
        while True:
            grown = (reach | reach << 1 | reach >> 1 | reach << up | reach >> up) & free
            if grown == reach:
                return reach
            reach = grown

    def _moves(self, came: Mapping[Position, tuple[int, Position, int, str]], position: Position) -> str:
        """The way to a position: its pushes, with the walks between them."""
        pushes = []
        while came[position][0]:
            _, position, box, step = came[position]
            pushes.append((position[0], box, step))
        player, moves = self.player, ""
        for boxes, box, step in reversed(pushes):
            moves += self._walk(player, _shifted(box, -self.shifts[step]), self.floor & ~boxes) + step
            player = box
        return moves

    def _walk(self, start: int, end: int, free: int) -> str:
        """The shortest way on foot; the end is known to be within reach."""
        ways, queue = {start: ""}, deque([start])
        while end not in ways:
            cell = queue.popleft()
            for step, shift in self.shifts.items():
                to = _shifted(cell, shift)
                if to & free and to not in ways:
                    ways[to] = ways[cell] + step
                    queue.append(to)
        return ways[end]


def _mask(cells: str, kinds: str) -> int:
    return sum(1 << index for index, cell in enumerate(cells) if cell in kinds)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low
        mask ^= low


def _shifted(mask: int, shift: int) -> int:
    return mask << shift if shift > 0 else mask >> -shift
