"""Games on text grids, each with an exact solver as gold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from agentgym import AgentEnv, ConfigError, Message, Outcome, Rubric, Task, TaskSet, ToolError, assistant, call, tool
from agentgym.errors import nearest
from agentgym_envs.game import keys, levels, mines, sokoban

Game = Literal["keys", "mines", "sokoban"]
GAMES: Mapping[str, Any] = {"keys": keys, "mines": mines, "sokoban": sokoban}
MAX_MOVES = 10  # of one call in Sokoban
SOKOBAN_MOVES = 1_000  # that the turn limit of Sokoban leaves room for


def solved(outcome: Outcome) -> float:
    """1.0 where the final board is a solution of the task's own."""
    return GAMES[outcome.task.metadata["game"]].solved(outcome)


@lru_cache
def drawn(game: str, horizons: tuple[int, ...], difficulty: int) -> TaskSet:
    """The task set of one setting of the dials; one per process. Raises ConfigError."""
    if max(horizons, default=0) > GAMES[game].MAX_HORIZON:
        raise ConfigError(f"horizon={max(horizons)}: {game} has horizons 1 to {GAMES[game].MAX_HORIZON}")

    def make(rng: np.random.Generator, horizon: int) -> Task:
        level = GAMES[game].LEVELS[difficulty]
        rows = GAMES[game].drawn(rng, horizon, level)
        data, metadata = {"rows": rows}, {"game": game, "horizon": horizon, "difficulty": difficulty}
        return Task(GAMES[game].asked(rows, level), data=data, metadata=metadata)

    return TaskSet.procedural(make, horizons=horizons)


class GameEnv(AgentEnv):
    """One game per environment: `keys` (a chain of doors), `mines` (deduction, row by row) or `sokoban` (levels of a
    file at `data`; AGENTGYM_DATA without it). Reward 1 once the game is won.

    Dials: `horizon`, calls that a perfect player needs in keys and mines, a number or several that tasks take in turn;
    `difficulty`, see LEVELS of each game's module."""

    rubric = Rubric(solved=solved)
    blocking = False

    def __init__(
        self,
        *,
        game: Game = "keys",
        data: str | None = None,
        horizon: int | Sequence[int] = (1, 2, 3, 4, 5, 6),
        difficulty: int = 0,
        max_moves: int = MAX_MOVES,
        split: str | None = None,
        max_turns: int | None = None,
        max_tokens: int | None = None,
        max_time_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`max_moves` is what one call may hold in Sokoban: with fewer, more turns. `split` is "train" where the file
        has one, else its first. `max_turns` is by default twice the horizon + 4, in Sokoban 1000 moves (not told)."""
        if game not in GAMES:
            raise ConfigError(f"game={game!r} is unknown{nearest(str(game), GAMES)} There are {', '.join(GAMES)}")
        if difficulty not in range(len(GAMES[game].LEVELS)):
            raise ConfigError(f"difficulty={difficulty}: {game} has the levels 0 to {len(GAMES[game].LEVELS) - 1}")
        if max_moves < 1:
            raise ConfigError(f"max_moves={max_moves}: a call holds at least 1 move")
        if game == "sokoban":
            self.tasks = levels.load(data, difficulty)
        else:
            self.tasks = drawn(game, (horizon,) if isinstance(horizon, int) else tuple(horizon), difficulty)
        self.game = game
        self.max_moves = max_moves
        super().__init__(
            split=split or ("train" if "train" in self.tasks.names else self.tasks.names[0]),
            max_turns=max_turns, max_tokens=max_tokens, max_time_s=max_time_s, render_mode=render_mode,
        )  # fmt: skip

    def setup(self) -> None:
        self.world = self._begun(self.task.data["rows"])
        self.turn_of_call = 0  # the latest turn that had one

    def _begun(self, rows: list[str]) -> keys.Keys | mines.Mines | sokoban.Sokoban:
        if self.game == "keys":
            return keys.Keys(rows, keys.LEVELS[self.task.metadata["difficulty"]])
        return mines.Mines(rows) if self.game == "mines" else sokoban.Sokoban(rows, self.max_moves)

    def offered(self) -> Iterable[str]:
        return ("open",) if self.game == "mines" else ("move",)

    def turn_limit(self) -> int | None:
        horizon = self.task.horizon
        return 2 * horizon + 4 if horizon else -(-SOKOBAN_MOVES // self.max_moves)

    @tool
    def move(self, moves: str) -> str:
        """Make moves, up to the first that is blocked. One call per message.

        Args:
            moves: Letters of u (up), d (down), l (left) and r (right), such as `uurd`.
        """
        return self._made(moves)

    @tool
    def open(self, cells: str) -> str:
        """Open closed cells, up to the first mine. One call per message.

        Args:
            cells: Names of cells, with blanks between them, such as `b2 c2`.
        """
        return self._made(cells)

    def _made(self, what: str) -> str:
        if self.turn_of_call == self.num_turns:
            raise ToolError("one call per message: look at what the first one did")
        told = self.world.play(what)
        self.turn_of_call = self.num_turns
        if self.world.is_solved or self.world.is_lost:
            self.end()
        return told

    def final(self) -> Any:
        return self.world.final()

    def state_key(self) -> str:
        return self.world.state_key()

    def gold(self) -> Message | None:
        """The next call of an exact solver, from wherever the game stands; None where it knows none."""
        what = self.world.gold()
        if what is None:
            return None
        return assistant("", call("open", cells=what) if self.game == "mines" else call("move", moves=what))
