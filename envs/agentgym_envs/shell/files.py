"""Reading the data sets a user brings: JSON, JSON lines, each plain or gzipped. Complaints name the file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentgym import ConfigError, TaskError


def _text(folder: Path, name: str) -> tuple[Path, str]:
    """A file, or its gzipped twin. Raises ConfigError where there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            try:
                data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                return path, data.decode()
            except (OSError, EOFError, UnicodeDecodeError) as error:
                raise TaskError(f"{path} cannot be read: {error}") from error
    raise ConfigError(f"data={str(folder)!r}: there is no {name} or {name}.gz in it")


def lines(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line number, record) of tasks.jsonl."""
    path, text = _text(folder, "tasks.jsonl")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise TaskError(f"{path}:{number}: {error}") from error
            if not isinstance(record, dict):
                raise TaskError(f"{path}:{number}: a record is an object, not {record!r:.60}")
            yield f"{path}:{number}", record


def scripts(folder: Path, name: str) -> dict[str, str]:
    """The scripts of `<name>.json` by their names."""
    path, text = _text(folder, f"{name}.json")
    try:
        told = json.loads(text)
    except ValueError as error:
        raise TaskError(f"{path}: {error}") from error
    if not isinstance(told, dict) or not all(isinstance(code, str) for code in told.values()):
        raise TaskError(f"{path}: it holds no scripts by name")
    return told
