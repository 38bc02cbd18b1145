"""As much of pytest as test files of small benchmarks use, so that the image needs none and the tests are ours to run.

Owns the module `pytest` of the trusted process: marks, parameters, skip, raises, approx."""

from __future__ import annotations

import itertools
import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

Module, Function = type(math), type(lambda: None)


class Skipped(Exception):
    """The test asked to be left out."""


def skip(reason: str = "", **_: Any) -> None:
    raise Skipped(reason)


def fail(reason: str = "", **_: Any) -> None:
    raise AssertionError(reason)


class raises:
    """`with raises(ValueError):` a block that must raise it."""

    def __init__(self, kind: Any, *_: Any, **__: Any) -> None:
        self.kind = kind
        self.value: Any = None

    def __enter__(self) -> raises:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool:
        if kind is None:
            raise AssertionError("nothing was raised")
        self.value = value
        return issubclass(kind, self.kind)


class approx:
    """Equal within rounding: a relative millionth or an absolute 1e-12, unless said otherwise."""

    def __init__(self, expected: Any, rel: Any = None, abs: Any = None, nan_ok: bool = False) -> None:
        self.expected, self.rel, self.abs, self.nan_ok = expected, rel, abs, nan_ok

    def __eq__(self, other: Any) -> bool:
        return self._near(self.expected, other)

    def _near(self, expected: Any, other: Any) -> bool:
        if isinstance(expected, dict):
            return (
                isinstance(other, dict)
                and set(expected) == set(other)
                and all(self._near(expected[key], other[key]) for key in expected)
            )
        if isinstance(expected, (list, tuple)):
            same = type(expected) is type(other) and len(expected) == len(other)
            return same and all(map(self._near, expected, other))
        if not isinstance(other, (int, float, complex)) or isinstance(other, bool):
            return bool(expected == other)
        if isinstance(expected, float) and math.isnan(expected):
            return self.nan_ok and isinstance(other, float) and math.isnan(other)
        if expected == other:
            return True
        relative = 0.0 if self.rel is None and self.abs is not None else (1e-6 if self.rel is None else self.rel)
        allowed = max(relative * abs(expected), 1e-12 if self.abs is None else self.abs)
        return not math.isinf(abs(expected)) and abs(expected - other) <= allowed

    __hash__ = None  # type: ignore[assignment]


class _Mark:
    """`mark.parametrize`, `mark.skip`, `mark.skipif`; any other mark says nothing here."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def marked(*given: Any, **named: Any) -> Any:
            if len(given) == 1 and not named and callable(given[0]) and name not in ("parametrize", "skipif"):
                return _noted(given[0], name, (), {})
            return lambda function: _noted(function, name, given, named)

        return marked


def _noted(function: Any, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    function.__dict__.setdefault("_marks", []).append((name, given, named))
    return function


def cases(name: str, test: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A test function as pytest would collect it: one case per set of parameters."""
    if not isinstance(test, Function):
        return
    rows: list[list[dict[str, Any]]] = []
    for kind, given, named in test.__dict__.get("_marks", []):
        if kind == "skip" or (kind == "skipif" and given and given[0]):
            yield name, skip
            return
        if kind == "parametrize":
            keys, values = (*given, named.get("argvalues"))[:2]
            rows.append([_bound(keys, value) for value in values])
    for count, chosen in enumerate(itertools.product(*rows)):
        arguments = {key: value for row in chosen for key, value in row.items()}
        yield ("%s[%d]" % (name, count) if rows else name), _call(test, arguments)


def _bound(keys: Any, value: Any) -> dict[str, Any]:
    names = [key.strip() for key in keys.split(",")] if isinstance(keys, str) else list(keys)
    value = value.values if isinstance(value, param) else value if len(names) > 1 else (value,)
    if len(names) != len(value):
        raise ValueError("parametrize(%r): %d values" % (keys, len(value)))
    return dict(zip(names, value))


def _call(test: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], Any]:
    return lambda: test(**arguments)


class param:
    """`param(1, 2, id="…")`: one set of parameters."""

    def __init__(self, *values: Any, **_: Any) -> None:
        self.values = values


def module(settings: dict[str, Any]) -> Any:
    """The module `pytest`, with what a conftest would have set on it."""
    made = Module("pytest")
    for value in (skip, fail, raises, approx, param):
        setattr(made, value.__name__, value)
    vars(made).update(settings, mark=_Mark())
    return made
