"""The exact record of an episode: which tokens, who wrote them, with what probability, under which weights.

Owns Segment, Ledger, Turn, Episode and StopReason: data only. Masks and positions are derived, never stored.
How text becomes tokens is policies/render.py's business; how records reach the disk is rollout/store.py's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentgym.errors import Failure, LedgerError
from agentgym.messages import JSON, Message

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What was read and what was sampled."""

    prompt: int = 0
    sampled: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.sampled + other.sampled)

    def at_least(self, other: Tokens) -> Tokens:
        """The larger of each."""
        return Tokens(max(self.prompt, other.prompt), max(self.sampled, other.sampled))

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.sampled - other.sampled)

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Tokens:
        """What a message cost, as far as somebody counted."""
        return cls(message.get("prompt_tokens", 0), message.get("num_tokens", 0))

    @property
    def total(self) -> int:
        return self.prompt + self.sampled


NONE = Tokens()


class Source(StrEnum):
    """Who wrote a token."""

    SAMPLED = "sampled"  # by the policy: log-probs and version required
    WRITTEN = "written"  # assistant text that nobody sampled: demonstrations, imports
    OBSERVED = "observed"  # the environment, the user, the template


class StopReason(StrEnum):
    """Why an episode ended. The last five are limits: truncated, not terminated."""

    ANSWERED = "answered"  # a message without a tool call
    ENDED = "ended"  # a tool called self.end()
    FAILED = "failed"  # see Episode.failure
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    MAX_TIME = "max_time"
    CONTEXT = "context"  # the policy's context window is full
    CANCELLED = "cancelled"

    @property
    def is_limit(self) -> bool:
        return self in (self.MAX_TURNS, self.MAX_TOKENS, self.MAX_TIME, self.CONTEXT, self.CANCELLED)


def _frozen(values: ArrayLike, dtype: type) -> NDArray:
    array = np.array(values, dtype=dtype)  # a copy: nobody else holds it
    array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Consecutive tokens written by one side during one turn."""

    ids: IntArray  # [n] int32, read-only
    source: Source
    turn: int
    logprobs: FloatArray | None = None  # [n] float32, natural log under the distribution sampled from; iff sampled
    version: int | None = None  # weights that sampled it; iff sampled
    forks: bool = False  # opens a new row: the template or the context policy rewrote what went before

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _frozen(self.ids, np.int32))
        object.__setattr__(self, "source", Source(self.source))
        where = f"turn {self.turn}: {len(self.ids)} {self.source} ids"
        if self.ids.ndim != 1:
            raise LedgerError(f"turn {self.turn}: ids have shape {self.ids.shape}; give one flat sequence")
        if self.ids.size and self.ids.min() < 0:
            raise LedgerError(f"{where} hold the negative id {self.ids.min()}; ids index the vocabulary")
        if self.source is not Source.SAMPLED:
            if self.logprobs is not None or self.version is not None:
                raise LedgerError(f"{where} with log-probs or a version; only sampled tokens have them")
            return
        if self.logprobs is None or self.version is None:
            raise LedgerError(f"{where} without log-probs or version; engine.generate() returns both")
        object.__setattr__(self, "logprobs", _frozen(self.logprobs, np.float32))
        if self.logprobs.shape != self.ids.shape:
            raise LedgerError(f"{where} but {self.logprobs.size} log-probs. Record one per id, the stop token included")
        if np.isnan(self.logprobs).any() or (self.logprobs > 1e-5).any():
            raise LedgerError(f"{where} with a log-prob that is NaN or above 0; it cannot be a probability")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One token sequence of a ledger, as the learner packs it. All arrays have the same length n."""

    ids: IntArray  # [n] int32
    sampled: BoolArray  # [n] True where the policy sampled the token (the action mask)
    written: BoolArray  # [n] True where assistant text was written, not sampled
    logprobs: FloatArray  # [n] float32; 0 where not sampled
    turns: IntArray  # [n] int32, turn of the segment
    versions: IntArray  # [n] int32; -1 where not sampled

    def __len__(self) -> int:
        return len(self.ids)


class Ledger:
    """Append-only segments of one episode. Sampled ids are never re-encoded, and never trained twice:
    a fork re-observes what was sampled before it."""

    __slots__ = ("_segments",)

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self._segments: list[Segment] = []
        for segment in segments:
            self.append(segment)

    def append(self, segment: Segment) -> None:
        """Add what came next. Raises LedgerError where turn or version goes backwards."""
        if self._segments and segment.turn < self._segments[-1].turn:
            raise LedgerError(f"turn {segment.turn} after turn {self._segments[-1].turn}; a ledger only grows")
        if segment.version is not None:
            last = max((s.version for s in self._segments if s.version is not None), default=segment.version)
            if segment.version < last:
                raise LedgerError(
                    f"turn {segment.turn}: version {segment.version} after {last}; weights never go backwards"
                )
        self._segments.append(segment)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self.fingerprint() == other.fingerprint()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def fingerprint(self) -> tuple:
        """All that is recorded, comparable bit for bit."""
        return tuple(
            (
                s.ids.tobytes(),
                s.source,
                s.turn,
                s.version,
                s.forks,
                None if s.logprobs is None else s.logprobs.tobytes(),
            )
            for s in self._segments
        )

    @property
    def num_sampled(self) -> int:
        return sum(len(s) for s in self._segments if s.source is Source.SAMPLED)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self._segments))

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.num_tokens - self.num_sampled, self.num_sampled)

    @property
    def num_turns(self) -> int:
        return self._segments[-1].turn + 1 if self._segments else 0

    def rows(self) -> list[Row]:
        """The token sequences: one, and one more per fork."""
        if not self._segments:
            return []
        starts = [i for i, s in enumerate(self._segments) if i == 0 or s.forks]
        return [_row(self._segments[a:b]) for a, b in zip(starts, [*starts[1:], len(self)], strict=True)]


def _row(segments: list[Segment]) -> Row:
    lengths = [len(s) for s in segments]

    def spread(values: list, dtype: type) -> NDArray:
        return np.repeat(np.array(values, dtype=dtype), lengths)

    logprobs = [np.zeros(len(s), np.float32) if s.logprobs is None else s.logprobs for s in segments]
    return Row(
        ids=np.concatenate([s.ids for s in segments]),
        sampled=spread([s.source is Source.SAMPLED for s in segments], np.bool_),
        written=spread([s.source is Source.WRITTEN for s in segments], np.bool_),
        logprobs=np.concatenate(logprobs),
        turns=spread([s.turn for s in segments], np.int32),
        versions=spread([-1 if s.version is None else s.version for s in segments], np.int32),
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """What one `env.step` gave back."""

    reward: float
    state_key: str | None = None  # names states that are equal for credit
    policy_s: float = 0.0  # seconds the policy took
    env_s: float = 0.0  # seconds the environment took


@dataclass(frozen=True, slots=True)
class Episode:
    """One `reset` to its end: all that the learner and the evaluation ever see.

    Its key is (run, update, task_id, attempt): no clock, no path, no random identifier."""

    run: str  # the phase of the run: "train", "before", "after", …
    update: int
    task_id: str
    attempt: int
    seed: int
    split: str
    group: int
    env_id: str
    env_version: str
    messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
    reward: float
    reward_parts: Mapping[str, float]
    terminated: bool
    truncated: bool
    stop_reason: StopReason
    failure: Failure | None = None
    ledger: Ledger | None = None  # None for a policy without tokens (gold, human, HTTP)
    final: JSON = None
    grants: Mapping[str, JSON] = field(default_factory=dict)  # what a sandbox was opened for
    metadata: Mapping[str, JSON] = field(default_factory=dict)  # the task's: horizon, difficulty, human_minutes
    tools: tuple[Mapping[str, JSON], ...] = ()  # what was on offer, each as first described

    @property
    def key(self) -> tuple[str, int, str, int]:
        return (self.run, self.update, self.task_id, self.attempt)

    @property
    def success(self) -> bool:
        """Full reward, within rounding."""
        return self.failure is None and self.reward >= 1 - 1e-6

    @property
    def counts(self) -> bool:
        """Whether it belongs in a denominator: everything but broken data and broken infrastructure."""
        return self.failure is None or self.failure.kind == "policy"

    @property
    def tokens(self) -> Tokens:
        """What it cost. With a ledger each token was read once (the engine keeps its cache); from a server they are
        what it counted, where every reply reads the whole conversation again."""
        return self.ledger.tokens if self.ledger is not None else sum(map(Tokens.of, self.messages), NONE)
