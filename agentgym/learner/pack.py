"""From ledgers to rows the model can read: the padded layout, in parts that fit in memory.

Owns Trajectory and Part. Which tokens train is read off the ledger's own masks; a length, never a token id, says
where padding begins. Other layouts (packed, tree) are further functions of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from agentgym.errors import LedgerError
from agentgym.ledger import BoolArray, Ledger, Row

MIN_CELLS = 512  # below this a part is too small to be worth a pass of its own
Trains = Literal["sampled", "written", "both"]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A ledger and what credit gave it."""

    ledger: Ledger
    advantage: float
    trains: Trains = "sampled"

    def mask(self, row: Row) -> BoolArray:
        """[n] True where a token of the row trains. Reinforcement refuses written tokens."""
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
        return sum(int(self.mask(row).sum()) for row in self.ledger.rows())


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
    rather than rows that are more than half padding."""
    rows = [(i, row) for i, t in enumerate(trajectories) for row in t.ledger.rows()]
    rows.sort(key=lambda pair: len(pair[1]), reverse=True)
    parts, at = [], 0
    while at < len(rows):
        width = len(rows[at][1])
        end = at + 1
        while end < len(rows) and (end + 1 - at) * width <= max_tokens:
            if 2 * len(rows[end][1]) < width and (end - at) * width >= MIN_CELLS:
                break
            end += 1
        parts.append(_part(trajectories, rows[at:end]))
        at = end
    return parts


def _part(trajectories: Sequence[Trajectory], rows: list[tuple[int, Row]]) -> Part:
    width = max(len(row) for _, row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    found: dict[str, list[np.ndarray]] = {"where": [], "targets": [], "logp": [], "advantage": [], "turn": [], "index": []}
    for r, (index, row) in enumerate(rows):
        ids[r, : len(row)] = row.ids
        mask = trajectories[index].mask(row)
        if mask[0]:
            raise LedgerError("the first token of a row trains, but nothing comes before it; open with an observation")
        at = np.flatnonzero(mask)
        found["where"].append(r * width + at - 1)
        found["targets"].append(row.ids[at])
        found["logp"].append(row.logprobs[at])
        found["turn"].append(row.turns[at])
        found["advantage"].append(np.full(len(at), trajectories[index].advantage))
        found["index"].append(np.full(len(at), index))

    def joined(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(found[name])).to(dtype)

    return Part(
        ids=torch.from_numpy(ids),
        where=joined("where", torch.int64),
        targets=joined("targets", torch.int64),
        behaviour_logp=joined("logp", torch.float32),
        advantage=joined("advantage", torch.float32),
        turn_index=joined("turn", torch.int64),
        trajectory_index=joined("index", torch.int64),
    )
