"""What a sandbox is: its limits, what it is opened for, what a command gives back, and what a backend must provide.

Owns the words between environments and backends. How commands are carried, killed and limited is a backend's business;
`Sandbox`, the object that environments hold, is sandbox.py's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from agentgym.errors import ConfigError, InfrastructureError, PolicyError
from agentgym.messages import JSON

MIB = 1 << 20
WORKSPACE = "/workspace"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class SandboxLost(InfrastructureError):
    """The sandbox died, or answers nonsense: the episode is played again in a fresh one, never scored."""


class EngineUnreachable(InfrastructureError):
    """No sandbox can be had: the engine or the program that makes them is not there, or refuses."""


class SandboxExhausted(PolicyError):
    """The agent's own doing ended its sandbox (memory, or a time-out that only its end could stop): it counts."""


class SandboxFileError(PolicyError):
    """A file of the sandbox cannot be read or written as asked. `errno` is the system's number."""

    def __init__(self, path: str, errno: int, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.path = path
        self.errno = errno


MAX_LIMIT = 1 << 50


def parse_bytes(text: str | int) -> int:
    """`"512m"`, `"2g"`, `"65536"` in bytes. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)i?b?", str(text).strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is no size; write 65536, 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True, slots=True)
class Limits:
    """What the agent's processes get, all of them together unless said otherwise. Raises ConfigError for nonsense."""

    memory_bytes: int = 1024 * MIB
    cpus: float = 1.0
    processes: int = 256
    disk_bytes: int | None = None  # of the workspace, in memory; a quarter of `memory_bytes` where None
    num_files: int = 100_000  # of the workspace
    file_bytes: int = 256 * MIB  # of one file
    open_files: int = 1024  # of one process
    output_bytes: int = 65536  # kept of each stream of one command: its first three quarters and its last quarter
    wall_s: float = 30.0  # of a command that states no time-out of its own
    grace_s: float = 0.5  # between SIGTERM and SIGKILL
    start_s: float = 60.0  # for the sandbox to come up
    life_s: float = 24 * 3600.0  # after which the sandbox ends by itself, whoever forgot it

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"Limits({name}={value}): a limit is above 0")
            if value is not None and value > MAX_LIMIT:
                raise ConfigError(f"Limits({name}={value}): no machine has so much; at most {MAX_LIMIT}")
        if self.output_bytes > 4 * MIB:
            raise ConfigError(f"Limits(output_bytes={self.output_bytes}): at most {4 * MIB} of a stream are kept")
        if self.memory_bytes < 16 * MIB:
            raise ConfigError(f"Limits(memory_bytes={self.memory_bytes}): nothing runs in less than {16 * MIB}")
        if self.workspace_bytes + self.tmp_bytes + self.shm_bytes > self.memory_bytes * 7 // 8:
            raise ConfigError(
                f"Limits(disk_bytes={self.disk_bytes}): files live in the sandbox's memory, {self.memory_bytes} bytes; "
                f"at most half of it can be disk"
            )

    @property
    def workspace_bytes(self) -> int:
        return self.memory_bytes // 4 if self.disk_bytes is None else self.disk_bytes

    @property
    def tmp_bytes(self) -> int:
        return self.workspace_bytes // 2

    @property
    def shm_bytes(self) -> int:
        return self.workspace_bytes // 4


@dataclass(frozen=True, slots=True)
class Spec:
    """What kind of sandbox. Everything that is not said is closed; what is opened stands in the episode's record."""

    image: str | None = None  # docker: an image; bubblewrap: a folder that holds a root; None: the backend's own
    limits: Limits = field(default_factory=Limits)
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = WORKSPACE
    network: bool = False
    root: bool = False  # commands run as user 0 of the sandbox
    writable: bool = False  # the root file system can be written; its size has no limit of ours
    capabilities: tuple[str, ...] = ()  # beyond none

    @property
    def grants(self) -> dict[str, JSON]:
        """What is open that is closed by default."""
        opened: dict[str, JSON] = {name: True for name in ("network", "root", "writable") if getattr(self, name)}
        if self.capabilities:
            opened["capabilities"] = list(self.capabilities)
        return opened

    def with_(self, **changes: Any) -> Spec:
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Output:
    """What was kept of one stream: raw bytes from its beginning and its end, and how many there were."""

    head: bytes
    tail: bytes
    total: int

    @property
    def is_cut(self) -> bool:
        return self.total > len(self.head) + len(self.tail)

    def text(self) -> tuple[str, bool]:
        """The stream as text, a marker where it was cut; and whether bytes that are no UTF-8 were replaced."""
        head, tail = self.head, self.tail
        if not self.is_cut:
            whole = (head + tail).decode("utf-8", "replace")
            return whole, "�" in whole and "�".encode() not in head + tail
        head, tail = _whole_characters(head), tail.lstrip(bytes(range(0x80, 0xC0)))
        parts = [part.decode("utf-8", "replace") for part in (head, tail)]
        left_out = self.total - len(head) - len(tail)
        replaced = any("�" in part for part in parts) and "�".encode() not in head + tail
        return f"{parts[0]}\n[… {left_out} bytes left out …]\n{parts[1]}", replaced


def _whole_characters(data: bytes) -> bytes:
    """Without the beginning of a character whose end was cut off."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return data[:-back] if needed > back else data
        if byte < 0x80:
            break
    return data


@dataclass(frozen=True, slots=True)
class ExecResult:
    """One command's end. That it failed is a result, not an error."""

    stdout: str
    stderr: str
    exit_code: int  # 128 + n for signal n; 127 not found, 126 not executable
    timed_out: bool
    truncated: bool  # a stream was longer than `output_bytes`
    oom: bool  # the kernel killed something of the sandbox for memory
    duration_s: float
    carrier: str  # "agent": about a millisecond; "exec": an engine's exec, for an image without Python
    stdout_bytes: int = 0  # before the cut
    stderr_bytes: int = 0
    undecodable: bool = False  # bytes that are no UTF-8 were replaced
    alive: bool = False  # of a session: its program goes on

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and not self.timed_out

    @classmethod
    def of(cls, out: Output, err: Output, *, notes: str = "", **more: Any) -> ExecResult:
        (stdout, bad_out), (stderr, bad_err) = out.text(), err.text()
        return cls(
            stdout, stderr + notes, truncated=out.is_cut or err.is_cut, undecodable=bad_out or bad_err,
            stdout_bytes=out.total, stderr_bytes=err.total, **more,
        )  # fmt: skip

    def as_json(self) -> dict[str, JSON]:
        names = ("stdout", "stderr", "exit_code", "timed_out", "truncated", "oom", "duration_s", "carrier")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Command:
    """One command as a backend gets it."""

    argv: tuple[str, ...]
    timeout_s: float
    cwd: str
    env: Mapping[str, str]
    stdin: bytes
    user: str | None  # another user of the sandbox, where it runs as root
    merge: bool  # stderr into stdout, in the order of writing
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a workspace (a tar), and the image they lie on. Processes are not in it."""

    image: str | None
    files: bytes


class Program(Protocol):
    """A persistent program inside a sandbox that is told one text after the other."""

    async def tell(self, text: str, *, timeout_s: float, output_bytes: int) -> ExecResult: ...
    async def close(self) -> None: ...


class Box(Protocol):
    """A running sandbox, as a backend gives it. All of it is awaited on agentgym's own event loop."""

    carrier: str
    id: str
    shell: str  # bash, where the image has it
    workdir: str  # where relative paths begin: the Spec's, but where a backend cannot give that

    async def exec(self, command: Command) -> ExecResult: ...
    async def open(self, command: Command, kind: str) -> Program: ...
    async def read(self, path: str, limit: int) -> bytes: ...
    async def write(self, path: str, data: bytes, mode: int) -> None: ...
    def pack(self, folder: str) -> AsyncIterator[bytes]: ...
    async def unpack(self, folder: str, tar: bytes) -> None: ...
    async def kill_all(self) -> None: ...
    async def ping(self) -> None: ...
    async def commit(self) -> str | None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Listed:
    """Something of agentgym's on this machine."""

    id: str
    kind: str  # container, image, control group
    owner: str  # boot:process:start of the process that made it
    is_left_over: bool  # its owner is dead, or its time is over


class Backend(Protocol):
    """Makes sandboxes of one kind. Its docstring says what it does not protect from."""

    name: str

    async def probe(self) -> str: ...
    async def start(self, spec: Spec) -> Box: ...
    def listed(self) -> Sequence[Listed]: ...
    def reap(self) -> Sequence[str]: ...
