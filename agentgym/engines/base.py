"""What an engine is: token ids in, token ids and their log-probs out, under weights of a known version.

Owns the protocol and its records. Knows nothing of text, messages or rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from agentgym.errors import ConfigError
from agentgym.ledger import FloatArray, IntArray

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request is sampled. Frozen: two requests never share a limit by accident."""

    seed: int
    max_tokens: int = 64
    temperature: float = 1.0  # 0 takes the likeliest token
    stop_ids: tuple[int, ...] = ()
    top_p: float = 1.0  # below 1 only the likeliest tokens that together have this much are drawn

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; a message needs at least 1")
        if not (self.temperature == 0 or 0.01 <= self.temperature <= 100):
            raise ConfigError(f"temperature is {self.temperature}; give 0 (greedy) or a number from 0.01 to 100")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; a share of the probability lies above 0 and up to 1")


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request sampled; the stop token, if one was met, is the last id."""

    ids: IntArray  # [n] int32
    logprobs: FloatArray  # [n] float32, natural log under the distribution sampled from, temperature included
    versions: IntArray  # [n] int32, the weights that sampled each id
    finish_reason: FinishReason

    def spans(self) -> list[tuple[int, int, int]]:
        """Consecutive ids of one version: (version, start, stop)."""
        edges = [0, *(i for i in range(1, len(self.ids)) if self.versions[i] != self.versions[i - 1]), len(self.ids)]
        return [(int(self.versions[a]), a, b) for a, b in pairwise(edges) if b > a]


class Engine(Protocol):
    """A sampler of one model. `open` and `close` bracket an episode, whose cache lives in between."""

    max_context: int
    """Longest history in ids, what is sampled included."""

    @property
    def version(self) -> int: ...

    @property
    def busy_s(self) -> float:
        """Seconds spent sampling so far; the rest of a collection's time is the environments' and the driver's."""
        ...

    def open(self) -> int:
        """A session: the engine keeps what it computed for it until `close`."""
        ...

    def close(self, session: int) -> None: ...

    async def generate(self, session: int, ids: Sequence[int] | IntArray, sampling: Sampling) -> Generation:
        """Continue `ids`, the whole history of the session."""
        ...

    async def push(self, version: int) -> None:
        """The weights are new: nothing computed under the old ones is used again."""
        ...
