"""From a frozen dataclass to flags, and between it and a TOML file.

Owns parsing, defaults from `--config FILE.toml`, and writing the resolved values. What the knobs mean is the business
of the dataclass, whose docstring under a field is the flag's help."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from agentgym.cli import say
from agentgym.errors import ConfigError, nearest

Config = TypeVar("Config")
MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)  # --resume, not --resume/--no-resume; flat names


def parse(config_class: type[Config], argv: Sequence[str], prog: str, example: str) -> Config:
    """The command's configuration: its defaults, then `--config FILE.toml`, then the flags.

    Flags are the field names in kebab case; nested dataclasses lend theirs without a prefix. `--help` ends in the
    example. Wrong usage leaves through SystemExit(2), a wrong file through ConfigError."""
    args, path = _without_config(_joined(config_class, argv))
    default = tyro.MISSING_NONPROP if path is None else from_toml(config_class, path)
    try:
        return tyro.cli(config_class, prog=prog, args=args, default=default, config=MARKERS)
    except SystemExit as done:
        if done.code in (0, None):
            say("  --config FILE.toml  read defaults from a file; flags override them")
            say(f"example: {example}")
        raise


def from_toml(config_class: type[Config], path: Path) -> Config:
    """An instance that holds the file's values, for use as defaults: required fields may still be missing, and the
    class's own checks run when the flags are in. A `[versions]` table, as runs write it, is passed over."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not readable as TOML: {error}") from error
    table.pop("versions", None)
    return _filled(config_class, table, str(path), base=None)


def to_toml(config: Any, versions: Mapping[str, str | None] | None = None) -> str:
    """The resolved values, readable by `--config`. A field that is None is left out: TOML has no null."""
    table = {name: value for name, value in as_dict(config).items() if value is not None}
    nested: dict[str, Mapping[str, Any]] = {name: value for name, value in table.items() if isinstance(value, dict)}
    lines = [f"{name} = {_toml_value(value)}" for name, value in table.items() if name not in nested]
    if versions is not None:
        nested["versions"] = versions
    for name, values in nested.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def as_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values, nested as the dataclasses are."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def leaves(config: Any) -> dict[str, Any]:
    """Every knob by its flag's name, nested ones without their owner's."""
    found: dict[str, Any] = {}
    for name, value in as_dict(config).items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def settings(pairs: Sequence[str], flag: str = "--set") -> dict[str, Any]:
    """A flag's `name=JSON` pairs as keyword arguments; a value that is no JSON is a text."""
    made: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{flag} {pair}: write name=value, the value in JSON, such as {flag} level=1")
        try:
            made[name] = json.loads(value)
        except json.JSONDecodeError:
            made[name] = value
    return made


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_value(key)} = {_toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)  # 1e-05, inf and nan are TOML too
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _joined(config_class: type, argv: Sequence[str]) -> list[str]:
    """The arguments with the values of a flag that occurs more than once behind its first place: tyro would keep those
    of the last alone."""
    values: dict[str, list[str]] = {f"--{name.replace('_', '-')}": [] for name in _tuples(config_class)}
    kept: list[str] = []
    target, given = kept, []
    for arg in argv:
        flag, equals, value = arg.partition("=")
        flag = flag.replace("_", "-")
        if flag in values:
            target = values[flag]
            given.append(flag)
            target += [value] if equals else []
            continue
        if arg.startswith("-") and not arg[1:2].isdigit():
            target = kept
        target.append(arg)
    return kept + [each for flag in dict.fromkeys(given) for each in (flag, *values[flag])]


def _tuples(config_class: type) -> set[str]:
    """Fields that take any number of values, those of nested dataclasses among them."""
    found: set[str] = set()
    for name, hint in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(hint):
            found |= _tuples(hint)  # type: ignore[arg-type]
        elif typing.get_origin(hint) is tuple:
            found.add(name)
    return found


def _without_config(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments without `--config FILE`, and the file."""
    args, path = list(argv), None
    for i, arg in enumerate(args):
        if arg.startswith("--config="):
            path = arg.partition("=")[2]
            del args[i]
        elif arg == "--config":
            if i + 1 == len(args):
                raise ConfigError("--config needs a file: --config FILE.toml")
            path = args[i + 1]
            del args[i : i + 2]
        else:
            continue
        break
    return args, None if path is None else Path(path)


def _filled(config_class: type[Config], table: Mapping[str, Any], place: str, base: Config | None) -> Config:
    """An instance made of the table's values over the base's or the class's defaults, unchecked by __post_init__."""
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    nested: dict[str, Any] = {
        name: hint for name, hint in hints.items() if name in fields and dataclasses.is_dataclass(hint)
    }
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {name: {} for name in nested}
    for key, value in table.items():
        name = key.replace("-", "_")
        owners = [n for n, hint in nested.items() if name in {f.name for f in dataclasses.fields(hint)}]
        if name in nested and isinstance(value, dict):
            inner[name].update(value)
        elif name in fields:
            values[name] = _checked(hints[name], value, f"{place}: {key}")
        elif len(owners) == 1:
            inner[owners[0]][name] = value
        else:
            known = [*fields, *(f.name for hint in nested.values() for f in dataclasses.fields(hint))]
            raise ConfigError(f"{place}: there is no setting {key!r}{nearest(name, known)}")
    made = object.__new__(config_class)
    for name, field in fields.items():
        value = values[name] if name in values else _default(field, base)
        if inner.get(name):
            value = _filled(nested[name], inner[name], f"{place}: [{name}]", base=value)
        object.__setattr__(made, name, value)
    return made


def _default(field: dataclasses.Field, base: Any) -> Any:
    if base is not None and base is not tyro.MISSING:
        return getattr(base, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    return tyro.MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()


def _checked(hint: Any, value: Any, place: str) -> Any:
    """The value as the field's type; TOML's own types are strict, only lists become tuples and texts paths."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415  100 ms, for --config only

    try:
        return TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{place} = {value!r}: {error.errors()[0]['msg'].lower()}") from None
