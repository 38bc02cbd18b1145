"""The engine in this process: samples from the learner's own weights, keeps each episode's keys and values between
turns, and decodes all episodes together.

Owns the slot cache and the decoding loop. One step feeds every live row one token, forced (the environment's) or
sampled, so that no row waits for another's turn to end; long observations go in by chunks first. With `in_step`
a step starts only when every open session has asked for something: which rows share a batch is then a function of
the plan and never of arrival, and on a CPU the same seed gives the same bits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from agentgym.engines.base import FinishReason, Generation, Sampling
from agentgym.engines.causal import CausalLM
from agentgym.errors import ConfigError
from agentgym.ledger import IntArray

CHUNK_MIN = 24  # pending tokens from which a row is prefilled by chunk instead of token by token
CHUNK_TOKENS = 16_384  # cells of one prefill call
CHUNK_WIDTH = 2_048  # of which one row: the attention mask has as many lines
KEYS_STEP = 32  # the visible part of the cache grows by this many cells


@dataclass(slots=True, eq=False)
class _Request:
    """One `generate` in flight, and what it has sampled so far."""

    session: int
    ids: np.ndarray  # [n] int64, the history
    sampling: Sampling
    done: asyncio.Future[Generation]
    uniforms: np.ndarray = field(init=False)  # [max_tokens] float64
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A stream of its own per request: what is drawn does not depend on who shares the batch.
        stream = np.random.Generator(np.random.Philox(key=self.sampling.seed % (1 << 64)))
        self.uniforms = stream.random(self.sampling.max_tokens)


class _SlotCache(Cache):
    """Keys and values of all rows, [rows, heads, cells, width] per layer; a cell past a row's position is masked
    and later overwritten."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rows: Tensor | None = None  # rows of this call; None: the first `len(positions)`
        self.positions = torch.zeros(0, 1, dtype=torch.long)  # [B, n] where this call writes
        self.num_keys = 0  # cells visible to this call
        self.shape = (0, 0)  # rows, cells

    @torch.inference_mode()
    def reserve(self, rows: int, cells: int) -> None:
        """Make room for `rows` rows of `cells` cells. When rows get longer, only those in use are kept: a single long
        episode must not make the rows of all who have ended as long."""
        have = self.shape
        if rows <= have[0] and cells <= have[1]:
            return
        longer = max(cells, have[1] * 5 // 4) if cells > have[1] else have[1]
        # Whole steps: how many cells are visible to a call must not depend on how many there are.
        self.shape = rows if cells > have[1] else max(rows, have[0]), -(-longer // KEYS_STEP) * KEYS_STEP
        kept = min(have[0], self.shape[0])
        for store in (self.keys, self.values):
            for i, old in enumerate(store):
                new = old.new_zeros(self.shape[0], old.shape[1], self.shape[1], old.shape[3])
                new[:kept, :, : have[1]] = old[:kept]
                store[i] = new

    @torch.inference_mode()
    def keep(self, rows: Tensor, cells: int) -> None:
        """Move the first `cells` cells of the given rows to the front."""
        for store in (self.keys, self.values):
            for tensor in store:
                tensor[: len(rows), :, :cells] = tensor[rows, :, :cells]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object):
        """Write [B, heads, n, width] at this call's rows and positions; return the visible cells of those rows."""
        while len(self.keys) <= layer_idx:
            self.keys.append(
                key_states.new_zeros(self.shape[0], key_states.shape[1], self.shape[1], key_states.shape[3])
            )
            self.values.append(
                value_states.new_zeros(self.shape[0], value_states.shape[1], self.shape[1], value_states.shape[3])
            )
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        num_rows = len(self.positions)
        rows = torch.arange(num_rows, device=keys.device) if self.rows is None else self.rows
        keys[rows[:, None], :, self.positions] = key_states.transpose(1, 2)
        values[rows[:, None], :, self.positions] = value_states.transpose(1, 2)
        if self.rows is None:
            return keys[:num_rows, :, : self.num_keys], values[:num_rows, :, : self.num_keys]
        return keys[self.rows, :, : self.num_keys], values[self.rows, :, : self.num_keys]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_keys


class LocalEngine:
    """Samples from `lm` for many sessions at once.

    Protects from: a stale cache after `push` (recomputed), a rewritten history (the cache is cut back to the common
    prefix). Raises ConfigError for ids that are no history; one of `max_context` ids or more is answered by nothing."""

    def __init__(self, lm: CausalLM, *, max_context: int | None = None, in_step: bool = True) -> None:
        self.lm = lm
        self.max_context = min(max_context or lm.max_context, lm.max_context)
        self.in_step = in_step
        self.tokens_sampled = 0
        self.busy_s = 0.0
        self._version = 0
        self._next_session = 0
        self._sessions: dict[int, int] = {}  # session -> row, in the order opened; -1 before its first request
        self._queued: list[_Request] = []  # asked for, not yet in a row
        self._requests: dict[int, _Request] = {}  # row -> request being decoded
        self._dropped: list[int] = []  # rows whose session was closed in the middle of a request
        self._cache = _SlotCache()
        self._tokens = np.zeros((0, 0), np.int64)  # [rows, cells] the history of each row
        self._length = np.zeros(0, np.int64)  # tokens known per row
        self._cached = np.zeros(0, np.int64)  # of which the cache holds this many
        self._num_rows = 0
        self._pump: asyncio.Task[None] | None = None
        self._busy = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="agentgym-engine")

    @property
    def version(self) -> int:
        return self._version

    def open(self) -> int:
        session, self._next_session = self._next_session, self._next_session + 1
        self._sessions[session] = -1
        return session

    def close(self, session: int) -> None:
        row = self._sessions.pop(session, -1)
        for request in [r for r in (*self._queued, *self._requests.values()) if r.session == session]:
            request.done.cancel()
        self._queued = [r for r in self._queued if r.session != session]
        self._dropped.append(row)
        self._wake()

    def shutdown(self) -> None:
        """End the thread; a closed engine answers no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def push(self, version: int) -> None:
        """Weights changed in place: what was cached under the old ones is computed anew at its next use."""
        if version < self._version:
            raise ConfigError(f"version {version} after {self._version}; weights never go backwards")
        async with self._busy:
            self._version = version
            self._cached[:] = 0

    async def generate(self, session: int, ids: Sequence[int] | IntArray, sampling: Sampling) -> Generation:
        if session not in self._sessions:
            raise ConfigError(f"session {session} is not open; call engine.open() first")
        history = np.asarray(ids, np.int64)
        if history.ndim != 1 or not history.size:
            raise ConfigError(
                f"{history.size} ids of shape {history.shape}: give one flat sequence with at least one id"
            )
        for odd in (history.min(), history.max()):
            if not 0 <= odd < self.lm.vocab_size:
                raise ConfigError(f"id {odd} is outside the model's vocabulary of {self.lm.vocab_size}")
        if session in {r.session for r in self._queued} or self._sessions[session] in self._requests:
            raise ConfigError(f"session {session} is still answering; await that, or close it and open another")
        room = self.max_context - len(history)
        if room <= 0:
            return Generation(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int32), "context")
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room + 1))  # what it may need is set aside
        done = asyncio.get_running_loop().create_future()
        self._queued.append(_Request(session, history, sampling, done))
        self._wake()
        return await done

    # -- rows ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give every queued request its row: new ones in the order of their seeds, which the plan decides, and not of
        their arrival."""
        for row in self._dropped:
            self._requests.pop(row, None)
        self._dropped.clear()
        self._compact()
        fresh = sum(self._sessions[request.session] < 0 for request in self._queued)
        longest = max((len(r.ids) + r.sampling.max_tokens + 1 for r in self._queued), default=0)
        self._reserve(self._num_rows + fresh, longest)
        for request in sorted(self._queued, key=lambda r: (r.sampling.seed, r.session)):
            row = self._sessions[request.session]
            if row < 0:
                row = self._sessions[request.session] = self._num_rows
                self._num_rows += 1
            ids = request.ids
            cached = min(int(self._cached[row]), len(ids) - 1)
            differs = np.flatnonzero(self._tokens[row, :cached] != ids[:cached])
            self._cached[row] = differs[0] if differs.size else cached
            self._tokens[row, : len(ids)] = ids
            self._length[row] = len(ids)
            self._requests[row] = request
        self._queued = []

    def _reserve(self, rows: int, cells: int) -> None:
        have = self._tokens.shape
        if rows > have[0] or cells > have[1]:
            tokens = np.zeros((max(rows, have[0]), max(cells, have[1])), np.int64)
            tokens[: have[0], : have[1]] = self._tokens
            self._tokens = tokens
            extra_rows = len(tokens) - have[0]
            self._length = np.pad(self._length, (0, extra_rows))
            self._cached = np.pad(self._cached, (0, extra_rows))
        if self._num_rows == 0 and self._cache.shape[1] > 2 * cells:
            self._cache = _SlotCache()  # the last batch had a far longer episode: give its memory back
        self._cache.reserve(rows, cells)

    def _compact(self) -> None:
        """Drop the rows of closed sessions once they are a quarter of the batch."""
        held = [(session, row) for session, row in self._sessions.items() if row >= 0]
        if self._num_rows == 0 or len(held) > 0.75 * self._num_rows:
            return
        held.sort(key=lambda pair: pair[1])
        rows = np.array([row for _, row in held], np.int64)
        self._cache.keep(torch.from_numpy(rows).to(self.lm.device), int(self._cached[rows].max(initial=0)))
        for array in (self._tokens, self._length, self._cached):
            array[: len(rows)] = array[rows]
        self._requests = {new: self._requests[old] for new, (_, old) in enumerate(held) if old in self._requests}
        self._sessions.update({session: new for new, (session, _) in enumerate(held)})
        self._num_rows = len(rows)
        self._length[len(rows) :] = 0
        self._cached[len(rows) :] = 0

    # -- the loop -------------------------------------------------------------------------------------------------

    def _ready(self) -> bool:
        asking = len(self._queued) + len(self._requests.keys() - set(self._dropped))
        return asking > 0 and (not self.in_step or asking >= len(self._sessions))

    def _wake(self) -> None:
        if self._ready() and (self._pump is None or self._pump.done()):
            self._pump = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._ready():
            async with self._busy:
                began = perf_counter()
                try:
                    self._admit()
                    if not self._requests:  # closed while we waited for a push
                        continue
                    finished = await loop.run_in_executor(self._thread, self._decode)
                except Exception as error:  # whoever waits must hear of it
                    self._fail(error)
                    return
                self.busy_s += perf_counter() - began
                for row, reason in finished:
                    request = self._requests.pop(row)
                    if not request.done.done():
                        request.done.set_result(self._result(row, request, reason))

    def _fail(self, error: Exception) -> None:
        for request in (*self._requests.values(), *self._queued):
            if not request.done.done():
                request.done.set_exception(error)
        self._requests.clear()
        self._queued.clear()

    def _result(self, row: int, request: _Request, reason: FinishReason) -> Generation:
        ids = self._tokens[row, len(request.ids) : self._length[row]].astype(np.int32)
        logprobs = np.array(request.logprobs, np.float32)
        return Generation(ids, logprobs, np.array(request.versions, np.int32), reason)

    @torch.inference_mode()
    def _decode(self) -> list[tuple[int, FinishReason]]:
        """Step until a request ends or a new one has come. Runs in the engine's thread."""
        with self.lm.evaluating():
            self._prefill()
            while True:
                finished = self._step()
                if finished or self._queued or self._dropped:
                    return finished

    def _prefill(self) -> None:
        """Feed all but the last pending token of every row that has many, in right-padded chunks."""
        while True:
            rows = np.array(sorted(self._requests), np.int64)
            pending = self._length[rows] - 1 - self._cached[rows]
            order = np.argsort(-pending, kind="stable")
            rows = rows[order][pending[order] >= CHUNK_MIN]
            if not rows.size:
                return
            width = min(int(pending.max()), CHUNK_WIDTH)
            part = np.sort(rows[: max(1, CHUNK_TOKENS // width)])
            # Padding repeats the row's last token, whose cell is written again when its turn comes.
            last = self._length[part] - 1
            positions = np.minimum(self._cached[part][:, None] + np.arange(width), last[:, None])
            self._forward(part, self._tokens[part[:, None], positions], positions)
            self._cached[part] = np.minimum(self._cached[part] + width, last)

    def _step(self) -> list[tuple[int, FinishReason]]:
        """Feed every row one token; sample where a row has nothing left to be fed."""
        rows = np.arange(self._num_rows)
        positions = np.minimum(self._cached[: self._num_rows], np.maximum(self._length[: self._num_rows] - 1, 0))
        hidden = self._forward(None, self._tokens[rows, positions][:, None], positions[:, None])
        asking = np.array(sorted(self._requests), np.int64)
        self._cached[asking] = positions[asking] + 1
        due = asking[self._cached[asking] == self._length[asking]]
        if not due.size:
            return []
        requests = [self._requests[row] for row in due]
        index = torch.from_numpy(due).to(hidden.device)
        ids, logprobs = _sample(
            self.lm.logits(hidden[index, 0]),
            np.array([r.sampling.temperature for r in requests]),
            np.array([r.uniforms[len(r.logprobs)] for r in requests]),
            np.array([r.sampling.top_p for r in requests]),
        )
        self._tokens[due, self._length[due]] = ids
        self._length[due] += 1
        self.tokens_sampled += len(due)
        finished: list[tuple[int, FinishReason]] = []
        for row, request, token, logprob in zip(due, requests, ids.tolist(), logprobs.tolist(), strict=True):
            request.logprobs.append(logprob)
            request.versions.append(self._version)
            if token in request.sampling.stop_ids:
                finished.append((int(row), "stop"))
            elif len(request.logprobs) == request.sampling.max_tokens:
                finished.append((int(row), "length"))
            elif self._length[row] >= self.max_context:
                finished.append((int(row), "context"))
        return finished

    def _forward(self, rows: np.ndarray | None, ids: np.ndarray, positions: np.ndarray) -> Tensor:
        """ids and positions [B, n] -> hidden states [B, n, width]; writes the cache of those rows."""
        device = self.lm.device
        cache = self._cache
        where = torch.from_numpy(positions).to(device)
        num_keys = int(positions.max()) + 1
        cache.num_keys = min(-(-num_keys // KEYS_STEP) * KEYS_STEP, cache.shape[1])
        cache.rows = None if rows is None else torch.from_numpy(rows).to(device)
        cache.positions = where
        hidden = torch.arange(cache.num_keys, device=device)[None, None, None] > where[:, None, :, None]
        dtype = self.lm.model.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
        return self.lm.hidden(torch.from_numpy(ids).to(device), positions=where, mask=mask, cache=cache)


def _sample(
    logits: Tensor, temperatures: np.ndarray, uniforms: np.ndarray, top_p: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One token per row by inverting the distribution function at the row's own uniform number.

    logits [B, vocabulary] float32; temperatures, uniforms, top_p [B] -> ids [B] int64, log-probs [B] float32 under the
    distribution sampled from. Temperature 0 takes the likeliest token, whose log-prob is then 0."""
    greedy = torch.from_numpy(temperatures == 0).to(logits.device)
    scale = torch.from_numpy(np.where(temperatures == 0, 1.0, temperatures)).to(logits)
    logp = torch.log_softmax(logits / scale[:, None], dim=-1)
    if (top_p < 1).any():
        logp = _nucleus(logp, torch.from_numpy(top_p).to(logp))
    distribution = logp.exp().cumsum(-1, dtype=torch.float64)
    threshold = torch.from_numpy(uniforms).to(distribution) * distribution[:, -1]
    ids = torch.searchsorted(distribution, threshold[:, None], right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    ids = torch.where(greedy, logits.argmax(-1), ids)
    chosen = logp.gather(-1, ids[:, None])[:, 0].masked_fill_(greedy, 0.0)
    return ids.cpu().numpy(), chosen.cpu().numpy()


def _nucleus(logp: Tensor, top_p: Tensor) -> Tensor:
    """Log-probs [B, vocabulary] of the distribution cut to the fewest likeliest tokens that have `top_p` [B] together
    (Holtzman et al. 2020), normalised anew; -inf elsewhere."""
    ranked, order = logp.sort(dim=-1, descending=True, stable=True)
    before = ranked.exp().cumsum(-1) - ranked.exp()
    cut = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, before >= top_p[:, None])
    return torch.log_softmax(logp.masked_fill(cut & (top_p < 1)[:, None], -torch.inf), dim=-1)
