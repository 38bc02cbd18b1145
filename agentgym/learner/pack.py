"""From ledgers to rows the model can read, in parts that fit in memory: padded, packed, or as a tree.

Owns Trajectory, Part and the three layouts, which give the same gradient. Which tokens train is read off the ledger's
own masks; a length, never a token id, says where padding begins. How a line is attended to is attention.py's."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgym.errors import LedgerError
from agentgym.ledger import BoolArray, FloatArray, Ledger, Row

MIN_CELLS = 512  # below this a padded part is too small to be worth a pass of its own
Trains = Literal["sampled", "written", "both"]
Layout = Literal["padded", "packed", "tree"]
Reach = Literal["turns", "trajectories", "all"]
Scope = Literal["token", "turn", "trajectory"]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A ledger and what credit gave each of its turns."""

    ledger: Ledger
    advantages: FloatArray  # [turns] float32
    trains: Trains = "sampled"
    group: int = 0
    proximal: FloatArray | None = None  # [num_trainable] float32, log-probs under the weights the update began with
    reference: FloatArray | None = None  # [num_trainable] float32, log-probs under the KL anchor

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

    def taught(self, row: Row, reach: Reach = "turns") -> BoolArray:
        """[n] True where a token of the row goes through the loss: it may train, and its turn (or trajectory) has an
        advantage, or all do."""
        mask = self.mask(row)
        if reach == "all" or (reach == "trajectories" and self.advantages.any()):
            return mask
        mask = mask.copy()
        mask[mask] = self.advantages[row.turns[mask]] != 0
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Lines that go through the model together; N tokens among them go through the loss.

    Padded lines attend to all before them. A packed line or tree holds its tokens in such an order that each attends
    to the earlier ones whose `ends` lie behind it: those of its own row, and in a tree of the rows that share it."""

    ids: Tensor  # [B, n] int64, right-padded
    positions: Tensor | None  # [B, n] int64 within the row; None: 0, 1, …
    ends: Tensor | None  # [n] int64, one past the last token that may attend to it; None: padded lines
    where: Tensor  # [N] int64 into the flattened [B * n]: the position *before* the token, whose output predicts it
    targets: Tensor  # [N] int64
    behaviour_logp: Tensor  # [N] float32
    advantage: Tensor  # [N] float32
    turn_index: Tensor  # [N] int64
    trajectory_index: Tensor  # [N] int64, into the list that was packed
    token_index: Tensor  # [N] int64, among the trajectory's trainable tokens
    proximal_logp: Tensor | None = None  # [N] float32
    reference_logp: Tensor | None = None  # [N] float32
    longest: int = 0  # tokens of the longest row

    def to(self, device: torch.device) -> Part:
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    @property
    def num_cells(self) -> int:
        return self.ids.numel()


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """A row up to its last token that goes through the loss."""

    index: int  # of its trajectory
    row: Row
    at: NDArray[np.int64]  # positions of the tokens that go through the loss
    nth: NDArray[np.int64]  # of each, its number among the trajectory's trainable tokens

    def __len__(self) -> int:
        return int(self.at[-1]) + 1

    @property
    def turns(self) -> tuple[int, int]:
        """Of its first and last token of the loss; a fork in mid-turn leaves one turn in two rows."""
        return int(self.row.turns[self.at[0]]), int(self.row.turns[self.at[-1]])

    @property
    def ids(self) -> NDArray[np.int32]:
        return self.row.ids[: len(self)]

    @property
    def key(self) -> bytes:
        """Orders rows as their ids do."""
        return self.ids.astype(">u4").tobytes()


_Unit = list[_Cut]  # what stays in one part: a row, or all rows of a trajectory whose ratio is taken over all of them


def pack(
    trajectories: Sequence[Trajectory],
    *,
    layout: Layout = "padded",
    max_tokens: int,
    reach: Reach = "turns",
    together: Scope = "token",
    multiple: int = 1,
) -> list[Part]:
    """Every token that goes through the loss, once; at most `max_tokens` cells per part (one row may exceed it, and
    the rows of a turn or trajectory that stay `together`). Packed and tree lines are filled up to a `multiple`."""
    units = _units(trajectories, reach, together)
    if layout == "padded":
        return [_padded(trajectories, cuts) for cuts in _by_width(units, max_tokens)]
    if layout == "packed":
        return [_line(trajectories, _chains(cuts), multiple) for cuts in _first_fit(units, max_tokens)]
    return [_line(trajectories, _trie(cuts), multiple) for cuts in _by_prefix(units, max_tokens)]


def _units(trajectories: Sequence[Trajectory], reach: Reach, together: Scope) -> list[_Unit]:
    units: list[_Unit] = []
    for index, trajectory in enumerate(trajectories):
        cuts: _Unit = []
        seen = 0
        for row in trajectory.ledger.rows():
            taught = trajectory.taught(row, reach)
            may = trajectory.mask(row)
            nth = (np.cumsum(may) - 1 + seen)[taught]
            seen += int(may.sum())
            if (at := np.flatnonzero(taught)).size:
                if at[0] == 0:
                    raise LedgerError(
                        "the first token of a row trains, but nothing comes before it; open with an observation"
                    )
                cuts.append(_Cut(index, row, at, nth))
        first = len(units)
        for cut in cuts:
            last = units[-1][-1] if len(units) > first else None
            if last and (together == "trajectory" or (together == "turn" and last.turns[1] == cut.turns[0])):
                units[-1].append(cut)
            else:
                units.append([cut])
    return units


# -- padded ------------------------------------------------------------------------------------------------------------


def _by_width(units: list[_Unit], max_tokens: int) -> Iterator[_Unit]:
    """Rows of like length together, and a new part rather than rows that are more than half padding."""
    units = sorted(units, key=lambda unit: max(map(len, unit)), reverse=True)
    start = 0
    while start < len(units):
        width = max(map(len, units[start]))
        cuts, end = list(units[start]), start + 1
        while end < len(units) and (len(cuts) + len(units[end])) * width <= max_tokens:
            if 2 * max(map(len, units[end])) < width and len(cuts) * width >= MIN_CELLS:
                break
            cuts += units[end]
            end += 1
        yield cuts
        start = end


def _padded(trajectories: Sequence[Trajectory], cuts: _Unit) -> Part:
    width = max(map(len, cuts))
    ids = np.zeros((len(cuts), width), np.int64)
    for r, cut in enumerate(cuts):
        ids[r, : len(cut)] = cut.ids
    where = [r * width + cut.at - 1 for r, cut in enumerate(cuts)]
    return _part(trajectories, cuts, ids, where, None, None)


# -- packed and tree ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """Tokens of many rows in one line, parents before children."""

    cuts: _Unit
    ids: NDArray[np.int64]  # [n]
    positions: NDArray[np.int64]  # [n] number of tokens before it in its row
    ends: NDArray[np.int64]  # [n]
    paths: list[NDArray[np.int64]]  # per cut: places of its tokens in the line


def _first_fit(units: list[_Unit], max_tokens: int) -> Iterator[_Unit]:
    """Bins of rows whose lengths add up to at most `max_tokens`: first fit, longest first (at most 22 % more bins than
    the best packing has; Johnson 1973)."""
    bins: list[_Unit] = []
    room: list[int] = []
    for unit in sorted(units, key=lambda unit: sum(map(len, unit)), reverse=True):
        size = sum(map(len, unit))
        for i, left in enumerate(room):
            if size <= left:
                bins[i] += unit
                room[i] -= size
                break
        else:
            bins.append(list(unit))
            room.append(max_tokens - size)
    yield from bins


def _chains(cuts: _Unit) -> _Line:
    sizes = np.array([len(cut) for cut in cuts])
    starts = np.cumsum(sizes) - sizes
    return _Line(
        cuts,
        np.concatenate([cut.ids for cut in cuts]).astype(np.int64),
        np.concatenate([np.arange(size) for size in sizes]),
        np.repeat(starts + sizes, sizes),
        [start + np.arange(size) for start, size in zip(starts, sizes, strict=True)],
    )


def _by_prefix(units: list[_Unit], max_tokens: int) -> Iterator[_Unit]:
    """Rows that share their beginnings together, until a part has `max_tokens` tokens that differ."""
    cuts: _Unit = []
    keys: list[tuple[bytes, int]] = []
    total = 0
    for unit in sorted(units, key=lambda unit: min(cut.key for cut in unit)):
        added = _added(keys, unit)
        if cuts and total + added > max_tokens:
            yield cuts
            cuts, keys, total = [], [], 0
            added = _added(keys, unit)
        cuts, total = [*cuts, *unit], total + added
    if cuts:
        yield cuts


def _added(keys: list[tuple[bytes, int]], unit: _Unit) -> int:
    """Tokens that the unit's rows add to a trie of the rows with those sorted keys, which are inserted."""
    added = 0
    for cut in unit:
        key = (cut.key, len(cut))
        place = bisect(keys, key)
        beside = [keys[i][0] for i in (place - 1, place) if 0 <= i < len(keys)]
        added += len(cut) - max((_common(key[0], other) for other in beside), default=0)
        keys.insert(place, key)
    return added


def _common(a: bytes, b: bytes) -> int:
    """Ids at the start of both."""
    n = min(len(a), len(b)) // 4
    differs = np.flatnonzero(np.frombuffer(a, "u4", n) != np.frombuffer(b, "u4", n))
    return int(differs[0]) if differs.size else n


def _trie(cuts: _Unit) -> _Line:
    """Shared beginnings once, in the order of a depth-first walk: who may attend to a token comes behind it without a
    gap (tree attention; AReaL, Fu et al. 2025)."""
    cuts = sorted(cuts, key=lambda cut: cut.key)
    ids: list[NDArray] = []
    positions: list[NDArray] = []
    paths: list[NDArray[np.int64]] = []
    ends = np.zeros(sum(map(len, cuts)), np.int64)
    path, before, size = np.zeros(0, np.int64), b"", 0
    for cut in cuts:
        shared = _common(before, cut.key)
        ends[path[shared:]] = size  # no later row passes through these
        fresh = len(cut) - shared
        ids.append(cut.ids[shared:])
        positions.append(np.arange(shared, len(cut)))
        path = np.concatenate([path[:shared], size + np.arange(fresh)])
        paths.append(path)
        before, size = cut.key, size + fresh
    ends[path] = size
    return _Line(cuts, np.concatenate(ids).astype(np.int64), np.concatenate(positions), ends[:size], paths)


def _line(trajectories: Sequence[Trajectory], line: _Line, multiple: int) -> Part:
    """A part of one line; what fills it up attends to itself alone."""
    size = len(line.ids)
    filled = -(-size // multiple) * multiple
    ids, positions = np.zeros(filled, np.int64), np.zeros(filled, np.int64)
    ids[:size], positions[:size] = line.ids, line.positions
    ends = np.arange(1, filled + 1)
    ends[:size] = line.ends
    where = [path[cut.at - 1] for cut, path in zip(line.cuts, line.paths, strict=True)]
    return _part(trajectories, line.cuts, ids[None], where, positions[None], ends)


def _part(
    trajectories: Sequence[Trajectory],
    cuts: _Unit,
    ids: NDArray[np.int64],
    where: list[NDArray[np.int64]],
    positions: NDArray[np.int64] | None,
    ends: NDArray[np.int64] | None,
) -> Part:
    def joined(values: Iterable[NDArray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(list(values))).to(dtype)

    def scored(name: str) -> Tensor | None:
        found = [getattr(trajectories[cut.index], name) for cut in cuts]
        if all(values is None for values in found):
            return None
        if any(values is None for values in found):
            raise LedgerError(
                f"some trajectories of the batch have {name} log-probs and others none; score all of them"
            )
        return joined((values[cut.nth] for values, cut in zip(found, cuts, strict=True)), torch.float32)

    return Part(
        ids=torch.from_numpy(ids),
        positions=None if positions is None else torch.from_numpy(positions),
        ends=None if ends is None else torch.from_numpy(ends),
        where=joined(where, torch.int64),
        targets=joined((cut.row.ids[cut.at] for cut in cuts), torch.int64),
        behaviour_logp=joined((cut.row.logprobs[cut.at] for cut in cuts), torch.float32),
        advantage=joined((trajectories[c.index].advantages[c.row.turns[c.at]] for c in cuts), torch.float32),
        turn_index=joined((cut.row.turns[cut.at] for cut in cuts), torch.int64),
        trajectory_index=joined((np.full(len(cut.at), cut.index) for cut in cuts), torch.int64),
        token_index=joined((cut.nth for cut in cuts), torch.int64),
        proximal_logp=scored("proximal"),
        reference_logp=scored("reference"),
        longest=max(map(len, cuts)),
    )
