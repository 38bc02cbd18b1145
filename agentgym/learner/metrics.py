"""`metrics.jsonl`: one line per update, in order, none twice.

Owns the file. What the figures mean is audit.py's business; nothing heavy is imported, so that a viewer may read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentgym.errors import ConfigError


class MetricsLog:
    """Appends to the file; a resumed run begins by dropping what its checkpoint does not know of. With `writes` False
    another process does."""

    def __init__(self, path: Path, *, updates_done: int, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        if not writes:
            return
        kept = [line for line in read_metrics(path) if line["update"] < updates_done]
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        aside.replace(path)

    def add(self, line: dict[str, Any]) -> None:
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One record per update; a torn last line counts not at all. Raises ConfigError naming any other bad line."""
    if not path.is_file():
        return []
    records: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records[int(record["update"])] = record
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise ConfigError(
                    f"{path}, line {number}: not a record of an update ({error}); remove that line"
                ) from error
    return [records[update] for update in sorted(records)]
