"""Problems, and the disjoint named sets they come in.

Owns Task (one problem and its content hash), TaskSet and Split (finite, or drawn from a seeded generator).
How a problem is played is env.py's business, how it is judged rewards.py's."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain, islice
from typing import Any, SupportsIndex

import numpy as np

from agentgym.errors import ConfigError, TaskError, nearest
from agentgym.messages import JSON, Message, canonical

SHARES: Mapping[str, int] = {"train": 55, "validation": 5, "test": 25, "demonstrations": 15}  # per cent of all content
DEFAULT_SIZE = 100_000  # tasks per procedural split
MAX_DRAWS = 2_000  # draws for one task before a generator is called too narrow for its split


@dataclass(frozen=True, eq=False)
class Task:
    """One problem, of which only `prompt` is shown. Equal content means equal task, whatever its place in a list."""

    prompt: str
    answer: JSON = None  # never shown
    files: Mapping[str, str] = field(default_factory=dict)  # path -> text, laid out by environments that have a disk
    gold: tuple[Message, ...] | None = None  # the assistant messages of one full solution
    data: Mapping[str, JSON] = field(default_factory=dict)  # what the environment builds its world from; never shown
    metadata: Mapping[str, JSON] = field(default_factory=dict)  # horizon (turns), difficulty, human_minutes

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the content's SHA-256. Raises TaskError where the content is not JSON."""
        return _hash(self, self.prompt, self.answer, dict(self.files), self.gold, dict(self.data), dict(self.metadata))

    @cached_property
    def bucket(self) -> int:
        """0..99, from what makes the problem that problem (not its gold or metadata): decides a procedural split."""
        return int(_hash(self, self.prompt, self.answer, dict(self.files), dict(self.data)), 16) % 100

    @property
    def horizon(self) -> int | None:
        """Turns that a good solution needs, where the task says so."""
        return self.metadata.get("horizon")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Task:
        return self  # frozen: snapshots share it


def _hash(task: Task, *content: JSON) -> str:
    try:
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"task {task.prompt[:60]!r}: its content is not JSON ({error}); use str, int, list, dict"
        ) from error


class Split:
    """A named, indexable set of tasks. The id of a task is `split:digest`, whatever its position.

    Finite splits look ids up; a procedural split remembers the ids it has generated and else enumerates."""

    def __init__(self, name: str, size: int, make: Callable[[int], Task], stride: int = 1) -> None:
        self.name = name
        self._size = size
        self._stride = stride  # indices that are equal modulo this have equal horizons
        self._make = lru_cache(maxsize=1024)(make)
        self._index: dict[str, int] = {}  # digest -> first index seen
        self._enumerated = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Task]:
        return (self[index] for index in range(self._size))

    def __getitem__(self, index: SupportsIndex) -> Task:
        """The task at a position, counted from the end where negative. Raises ConfigError outside the split."""
        position = operator.index(index)
        if not -self._size <= position < self._size:
            raise ConfigError(
                f"split {self.name!r} has {self._size} tasks, no index {position}; the last is {self._size - 1}"
            )
        position %= self._size
        task = self._make(position)
        self._index.setdefault(task.digest, position)
        return task

    def id(self, index: SupportsIndex) -> str:
        return self.id_of(self[index])

    def id_of(self, task: Task) -> str:
        return f"{self.name}:{task.digest}"

    def find(self, task_id: str) -> Task:
        """The task with this id. Raises ConfigError naming the nearest where there is none."""
        digest = task_id.removeprefix(f"{self.name}:")
        if digest not in self._index:
            self._enumerate(digest)
        if digest not in self._index:
            known = [f"{self.name}:{d}" for d in self._index]
            raise ConfigError(
                f"no task {task_id!r} among the {self._size} of split {self.name!r}{nearest(task_id, known)}"
            )
        return self[self._index[digest]]

    def _enumerate(self, digest: str) -> None:
        while self._enumerated < self._size and digest not in self._index:
            self[self._enumerated]
            self._enumerated += 1

    def take(self, count: int, start: int = 0) -> list[tuple[str, Task]]:
        """`count` different (id, task) pairs from position `start` on (wrapping around at the end).

        A procedural split may repeat a task at another index: then the next new one of equal horizon takes its place,
        and those after it move on. A larger count begins with what a smaller one gives."""
        start, stride = start % (self._size or 1), self._stride
        walks = [
            chain(range(start + (first - start) % stride, self._size, stride), range(first, start, stride))
            for first in range(stride)
        ]
        taken: dict[str, Task] = {}
        for place in range(start, start + count):
            walk = islice(walks[place % self._size % stride], MAX_DRAWS)
            index = next((i for i in walk if self.id(i) not in taken), None)
            if index is None:
                raise ConfigError(f"split {self.name!r} has fewer than {count} different tasks; ask for fewer")
            taken[self.id(index)] = self[index]
        return list(taken.items())


class TaskSet:
    """Disjoint named splits: `TaskSet({"train": […], "test": […]})`, or `TaskSet.procedural(make)`.

    `left_out` says of each record that became no task why not. Raises TaskError where one problem occurs twice,
    within a split or across two."""

    def __init__(self, splits: Mapping[str, Sequence[Task]], left_out: Sequence[str] = ()) -> None:
        self.left_out = tuple(left_out)
        seen: dict[str, str] = {}
        for name, tasks in splits.items():
            for index, task in enumerate(tasks):
                place = f"{name}[{index}]"
                if (first := seen.setdefault(task.digest, place)) != place:
                    raise TaskError(
                        f"{place} is the same task as {first} ({task.prompt[:60]!r}); "
                        "splits are disjoint and ids unique: keep it once"
                    )
        self._splits = {name: Split(name, len(tasks), list(tasks).__getitem__) for name, tasks in splits.items()}

    @classmethod
    def procedural(
        cls,
        make: Callable[..., Task],
        seed: int = 0,
        horizons: Sequence[int] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> TaskSet:
        """Tasks drawn by `make(rng)`, or by `make(rng, horizon)` where `horizons` are given: task i has
        `horizons[i % len(horizons)]`. Task i of a split is drawn from `PCG64(seed + i)`: the same on every machine.

        Splits `train`, `validation`, `test`, `demonstrations` are disjoint by construction: a hash of the content says
        whose it is, and a draw that belongs to another split is drawn again. `sizes` says how many tasks each has."""
        levels = None if horizons is None else tuple(horizons)
        if levels is not None and (not levels or any(type(h) is not int or h < 1 for h in levels)):
            raise ConfigError(f"horizons={horizons!r}: give one or more whole numbers of at least 1")
        unknown = sorted(set(sizes or {}) - set(SHARES))
        if unknown:
            raise ConfigError(f"sizes name no procedural split: {unknown[0]!r}{nearest(unknown[0], SHARES)}")
        tasks = cls({})
        low = 0
        for name, share in SHARES.items():
            draw = _Draw(make, seed, levels, name, range(low, low + share))
            tasks._splits[name] = Split(name, (sizes or {}).get(name, DEFAULT_SIZE), draw, len(levels or (1,)))
            low += share
        return tasks

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def split(self, name: str) -> Split:
        """Raises ConfigError naming the nearest split where there is none of that name."""
        if name not in self._splits:
            raise ConfigError(
                f"no split {name!r}{nearest(name, self._splits)} This task set has {', '.join(self._splits)}"
            )
        return self._splits[name]

    def find(self, task_id: str) -> tuple[Split, Task]:
        """The split and task of an id of the form `split:digest`. Raises ConfigError."""
        split = self.split(task_id.partition(":")[0])
        return split, split.find(task_id)

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskSet:
        return self  # tasks are frozen; the rest is memory of what was drawn


@dataclass(frozen=True)
class _Draw:
    """Index -> task of one procedural split."""

    make: Callable[..., Task]
    seed: int
    horizons: tuple[int, ...] | None
    split: str
    buckets: range

    def __call__(self, index: int) -> Task:
        rng = np.random.Generator(np.random.PCG64(self.seed + index))
        args = () if self.horizons is None else (self.horizons[index % len(self.horizons)],)
        for _ in range(MAX_DRAWS):
            task = self.make(rng, *args)
            if task.bucket in self.buckets:
                return task
        raise TaskError(
            f"split {self.split!r}, index {index}: {MAX_DRAWS} draws and none belongs to this split; "
            "the generator makes too few different tasks: use more of `rng`, or a finite TaskSet"
        )
