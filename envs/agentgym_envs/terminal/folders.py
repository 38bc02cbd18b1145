"""Terminal tasks as folders: the Harbor layout (task.toml), and that of Terminal-Bench 1 (task.yaml).

Owns reading and checking them; every complaint is a TaskError that names the file and the field. Where a task runs and
how it is graded is env.py's and grading.py's."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgym import ConfigError, TaskError
from agentgym.errors import nearest
from agentgym.sandbox import parse_bytes

OVERLAY = Path(__file__).parent / "overlay.toml"
ROWS = ("services", "system")
GIB = 1 << 30
NOT_THE_AGENTS = ("tests", "solution.sh", "run-tests.sh", "task.yaml", "docker-compose.yaml")


@dataclass(frozen=True)
class TaskFolder:
    """One task: what the agent is told, where it works, how it is judged, and what it may take."""

    name: str
    folder: Path
    instruction: str
    environment: Path  # the folder that the image is built from
    script: Path  # the verifier's
    tests: Path  # goes to /tests, after the agent's last turn
    solution: Path | None  # a script; its folder goes with it
    by_reward_file: bool  # else the exit status of `script`, and what pytest says, decide
    build_s: float = 600.0
    agent_s: float = 900.0
    verifier_s: float = 900.0
    cpus: float = 1.0
    memory_bytes: int = 2 * GIB
    disk_bytes: int = 10 * GIB
    left_out: tuple[str, ...] = ()  # of the environment's folder: what the image must not hold
    verifier_env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    services: bool = False
    system: bool = False

    @property
    def digest(self) -> str:
        """A hash of every file of the folder, so that a changed task is another task."""
        total = hashlib.sha256()
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            total.update(f"{path.relative_to(self.folder)}\0{path.stat().st_mode & 0o777:o}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()[:16]


def load(folder: Path, overlay: Path = OVERLAY) -> list[TaskFolder]:
    """Every task below a folder, or the folder's own, by name. Raises ConfigError where there is none."""
    if not folder.is_dir():
        raise ConfigError(f"tasks={str(folder)!r} is no folder; give one whose folders hold task.toml or task.yaml")
    rows = read_overlay(overlay)
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = [task for place in places if (task := _read(place, rows.get(place.name, {}))) is not None]
    if not found:
        raise ConfigError(f"tasks={str(folder)!r}: no folder in it holds a task.toml or a task.yaml")
    return found


def read_overlay(path: Path) -> dict[str, dict[str, bool]]:
    """Rows by the task's name. Raises ConfigError naming the row."""
    rows = _toml(path)
    for name, row in rows.items():
        for key, value in row.items() if isinstance(row, dict) else [(str(row), row)]:
            if key not in ROWS or not isinstance(value, bool):
                raise ConfigError(f"{path}: [{name}] {key} = {value!r}; a row has {' or '.join(ROWS)}, true or false")
    return rows


def _read(folder: Path, row: Mapping[str, bool]) -> TaskFolder | None:
    if (folder / "task.toml").is_file():
        return harbor(folder, row)
    if (folder / "task.yaml").is_file():
        return terminal_bench_1(folder, row)
    return None


def harbor(folder: Path, row: Mapping[str, bool] | None = None) -> TaskFolder:
    """A folder of task.toml, instruction.md, environment/, tests/test.sh and solution/solve.sh."""
    path = folder / "task.toml"
    told = _toml(path)
    fields = _Fields(path, told)
    environment = folder / "environment"
    solution = folder / "solution" / "solve.sh"
    memory = fields.text("environment.memory", None)
    if memory is None and (megabytes := fields.number("environment.memory_mb", 0.0)) > 0:
        memory = f"{megabytes:g}m"
    return TaskFolder(
        name=folder.name, folder=folder, instruction=_text(folder / "instruction.md"), environment=environment,
        script=_file(folder / "tests" / "test.sh"), tests=folder / "tests", by_reward_file=True,
        solution=solution if solution.is_file() else None,
        build_s=fields.seconds("environment.build_timeout_sec", 600.0),
        agent_s=fields.seconds("agent.timeout_sec", 900.0),
        verifier_s=fields.seconds("verifier.timeout_sec", 900.0),
        cpus=fields.seconds("environment.cpus", 1.0),
        memory_bytes=fields.size("environment.memory", memory, 2 * GIB),
        disk_bytes=fields.size("environment.storage", fields.text("environment.storage", None), 10 * GIB),
        verifier_env={str(k): str(v) for k, v in fields.table("verifier.env").items()},
        metadata=_plain(fields.table("metadata")), **_row(environment, row),
    )  # fmt: skip


def terminal_bench_1(folder: Path, row: Mapping[str, bool] | None = None) -> TaskFolder:
    """A folder of task.yaml, Dockerfile, run-tests.sh, tests/ and solution.sh. One container, judged by pytest."""
    path = folder / "task.yaml"
    fields = _Fields(path, _yaml(path))
    parser = fields.text("parser_name", "pytest")
    if parser != "pytest":
        raise TaskError(f"{path}: parser_name is {parser!r}; only what pytest says is read here")
    compose = folder / "docker-compose.yaml"
    services = _yaml(compose).get("services", {}) if compose.is_file() else {}
    if len(services) > 1:
        raise TaskError(f"{compose}: services names {', '.join(services)}; a task has one container here")
    solution = folder / "solution.sh"
    instruction = fields.text("instruction", None)
    if not instruction:
        raise TaskError(f"{path}: instruction is missing or empty; say what is to be done")
    return TaskFolder(
        name=folder.name, folder=folder, instruction=instruction, environment=folder,
        script=_file(folder / "run-tests.sh"), tests=folder / "tests", by_reward_file=False,
        solution=solution if solution.is_file() else None,
        agent_s=fields.seconds("max_agent_timeout_sec", 360.0),
        verifier_s=fields.seconds("max_test_timeout_sec", 60.0),
        verifier_env={"TEST_DIR": "/tests"}, left_out=NOT_THE_AGENTS,
        metadata={name: fields.text(name, "") for name in ("difficulty", "category")}, **_row(folder, row),
    )  # fmt: skip


def _row(environment: Path, row: Mapping[str, bool] | None) -> dict[str, Any]:
    _file(environment / "Dockerfile")
    return {name: (row or {}).get(name, False) for name in ROWS}


class _Fields:
    """Fields of a task's file by dotted name, checked as they are read."""

    def __init__(self, path: Path, told: Mapping[str, Any]) -> None:
        self.path = path
        self.told = told

    def _get(self, name: str) -> Any:
        value: Any = self.told
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def _refuse(self, name: str, value: Any, wanted: str) -> TaskError:
        return TaskError(f"{self.path}: {name} is {value!r:.80}; give {wanted}")

    def text(self, name: str, default: str | None) -> str | None:
        value = self._get(name)
        if value is not None and not isinstance(value, str):
            raise self._refuse(name, value, "text")
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        value = self._get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self._refuse(name, value, "a number")
        return default if value is None else float(value)

    def seconds(self, name: str, default: float) -> float:
        value = self.number(name, default)
        if not 0 < value < 1e6:
            raise self._refuse(name, value, "a number above 0")
        return value

    def size(self, name: str, value: str | None, default: int) -> int:
        try:
            return default if value is None else parse_bytes(value)
        except ConfigError as error:
            raise self._refuse(name, value, "a size such as 512M or 2G") from error

    def table(self, name: str) -> Mapping[str, Any]:
        value = self._get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._refuse(name, value, "a table")
        return value or {}


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    minutes = table.get("expert_time_estimate_min")
    more = {"human_minutes": float(minutes)} if isinstance(minutes, (int, float)) else {}
    return {name: str(table[name]) for name in ("difficulty", "category") if name in table} | more


def _file(path: Path) -> Path:
    if not path.is_file():
        near = nearest(path.name, (entry.name for entry in path.parent.iterdir())) if path.parent.is_dir() else "."
        raise TaskError(f"{path} is missing{near} A task needs it")
    return path


def _text(path: Path) -> str:
    try:
        text = _file(path).read_text()
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: {error}") from error
    if not text.strip():
        raise TaskError(f"{path} is empty; it says what is to be done")
    return text


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_file(path).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs the package PyYAML: pip install pyyaml") from error
    try:
        told = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: {error}") from error
    if not isinstance(told, dict):
        raise TaskError(f"{path}: it holds {told!r:.60}, not fields with names")
    return told
