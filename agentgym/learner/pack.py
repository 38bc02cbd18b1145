"""From ledgers to rows the model can read: the padded layout, in parts that fit in memory.

Owns Trajectory and Part. Which tokens train is read off the ledger's own masks; a length, never a token id, says
where padding begins. Other layouts (packed, tree) are further functions of the same shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgym.errors import LedgerError
from agentgym.ledger import BoolArray, FloatArray, Ledger, Row

MIN_CELLS = 512  # below this a part is too small to be worth a pass of its own
Trains = Literal["sampled", "written", "both"]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A ledger and what credit gave each of its turns."""

    ledger: Ledger
    advantages: FloatArray  # [turns] float32; a turn with 0 has nothing to teach and is left out of the rows
    trains: Trains = "sampled"

    def mask(self, row: Row) -> BoolArray:
        """[n] True where a token of the row may train. Reinforcement refuses written tokens."""
        if self.trains == "sampled":
            if row.written.any():
                raise LedgerError(
                    f"{int(row.written.sum())} written tokens in a reinforcement batch: nobody sampled them, so they "
                    "have no behaviour log-prob. Train on demonstrations with warm_start()."
                )
            return row.sampled
        return row.written if self.trains == "written" else row.sampled | row.written

    @property
    def num_trainable(self) -> int:
        """Tokens that may train, whatever their advantage: what denominators count."""
        return sum(int(self.mask(row).sum()) for row in self.ledger.rows())

    def taught(self, row: Row) -> BoolArray:
        """[n] True where a token of the row trains: it may, and its turn has an advantage."""
        mask = self.mask(row).copy()
        mask[mask] = self.advantages[row.turns[mask]] != 0
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows that go through the model together; N trainable tokens among them."""

    ids: Tensor  # [B, n] int64, right-padded
    where: Tensor  # [N] int64 into the flattened [B * n]: the position *before* the token, whose output predicts it
    targets: Tensor  # [N] int64
    behaviour_logp: Tensor  # [N] float32
    advantage: Tensor  # [N] float32
    turn_index: Tensor  # [N] int64
    trajectory_index: Tensor  # [N] int64, into the list that was packed

    def to(self, device: torch.device) -> Part:
        return Part(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


def padded(trajectories: Sequence[Trajectory], *, max_tokens: int) -> list[Part]:
    """Rows of like length together: at most `max_tokens` cells per part (one row may exceed it), and a new part
    rather than rows that are more than half padding. A row ends with its last token that trains."""
    rows = [
        _Cut(index, row, at)
        for index, trajectory in enumerate(trajectories)
        for row in trajectory.ledger.rows()
        if (at := np.flatnonzero(trajectory.taught(row))).size
    ]
    rows.sort(key=len, reverse=True)
    parts, start = [], 0
    while start < len(rows):
        width = len(rows[start])
        end = start + 1
        while end < len(rows) and (end + 1 - start) * width <= max_tokens:
            if 2 * len(rows[end]) < width and (end - start) * width >= MIN_CELLS:
                break
            end += 1
        parts.append(_part(trajectories, rows[start:end]))
        start = end
    return parts


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """A row up to its last token that trains."""

    index: int  # of its trajectory
    row: Row
    at: NDArray[np.int64]  # positions of the tokens that train

    def __len__(self) -> int:
        return int(self.at[-1]) + 1


def _part(trajectories: Sequence[Trajectory], cuts: Sequence[_Cut]) -> Part:
    width = max(map(len, cuts))
    ids = np.zeros((len(cuts), width), np.int64)
    for r, cut in enumerate(cuts):
        if cut.at[0] == 0:
            raise LedgerError("the first token of a row trains, but nothing comes before it; open with an observation")
        ids[r, : len(cut)] = cut.row.ids[: len(cut)]

    def joined(values: Iterable[NDArray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(list(values))).to(dtype)

    return Part(
        ids=torch.from_numpy(ids),
        where=joined((r * width + cut.at - 1 for r, cut in enumerate(cuts)), torch.int64),
        targets=joined((cut.row.ids[cut.at] for cut in cuts), torch.int64),
        behaviour_logp=joined((cut.row.logprobs[cut.at] for cut in cuts), torch.float32),
        advantage=joined((trajectories[c.index].advantages[c.row.turns[c.at]] for c in cuts), torch.float32),
        turn_index=joined((cut.row.turns[cut.at] for cut in cuts), torch.int64),
        trajectory_index=joined((np.full(len(cut.at), cut.index) for cut in cuts), torch.int64),
    )
