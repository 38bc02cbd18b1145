"""Suites: a TOML file that names environments, and how much each of them weighs.

Owns the file's format, the shipped suites, and the weighted mean. Playing a part is run.py's business."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from agentgym.errors import ConfigError, nearest
from agentgym.evaluation.intervals import Interval
from agentgym.messages import JSON

SHIPPED = Path(__file__).parent / "suites"
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """What is attempted in one environment."""

    env: str
    name: str = ""  # of the part, where it is not the environment's id
    split: str = "test"
    limit: int = 100  # tasks; with horizons, of each
    attempts: int = 1
    horizon: tuple[int, ...] = ()
    task: tuple[str, ...] = ()  # ids, in place of the first so many
    set: Mapping[str, JSON] = field(default_factory=dict)  # more arguments of the environment
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.env)
        for name in ("limit", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: give at least 1")
        if any(horizon < 1 for horizon in self.horizon):
            raise ConfigError(f"horizon {' '.join(map(str, self.horizon))}: a horizon is at least 1 turn")
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"weight {self.weight} is not above 0")


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn, for all parts; None leaves it to the command."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Suite:
    parts: tuple[Part, ...]
    sampling: Sampling = Sampling()


def load(name: str) -> Suite:
    """The suite in a file, or the shipped one of that name. Raises ConfigError with the place and the nearest name."""
    known = {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}
    path = known.get(name, Path(name))
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--suite {name}: no such file, nor a shipped suite{nearest(name, known)} There are {', '.join(known)}"
        ) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--suite {name}: not readable as TOML: {error}") from error
    for key in table:
        if key not in ("part", "sampling"):
            raise ConfigError(f"{path}: there is no table {key!r}{nearest(key, ('part', 'sampling'))}")
    tables = table.get("part")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path} names no environment: give one or more [[part]] with env = …")
    parts = tuple(_made(Part, part, f"{path}: part {number}") for number, part in enumerate(tables, 1))
    refuse_doubles(parts)
    return Suite(parts, _made(Sampling, table.get("sampling", {}), f"{path}: sampling"))


def refuse_doubles(parts: Sequence[Part]) -> None:
    """Parts are told apart by their names."""
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name!r} occurs {names.count(name)} times; give each part of a suite its own name")


def weighted(rates: Sequence[tuple[float, Interval]]) -> dict[str, Any]:
    """The weighted mean of success rates that were measured independently, for summary.json. Its bounds lie as far off
    as the root of the summed squares of the weighted distances of theirs (MOVER; Zou & Donner 2008).
    rates: (weight, success of one environment)."""
    total = sum(weight for weight, _ in rates)
    shares = [(weight / total, each) for weight, each in rates]
    n = sum(each.n for _, each in shares)
    if any(not each.n for _, each in shares):
        return {"rate": None, "low": 0.0, "high": 1.0, "n": n}
    rate = sum(weight * each.rate for weight, each in rates) / total
    below = math.hypot(*(share * (each.rate - each.low) for share, each in shares))
    above = math.hypot(*(share * (each.high - each.rate) for share, each in shares))
    return {"rate": rate, "low": max(0.0, rate - below), "high": min(1.0, rate + above), "n": n}


def _made(cls: type[T], table: Any, place: str) -> T:
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415  70 ms, for suites only

    if not isinstance(table, dict):
        raise ConfigError(f"{place} is no table")
    known = [each.name for each in fields(cls)]  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigError(f"{place}: there is no setting {key!r}{nearest(key, known)}")
    try:
        return TypeAdapter(cls).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        told = f"{key} = {table[key]!r}: {first['msg'].lower()}" if key in table else f"{key} is missing"
        raise ConfigError(f"{place}: {told}") from None
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
