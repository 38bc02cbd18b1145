"""The sandbox that environments hold: starts at its first use, copies by snapshot, closes for good.

Owns both faces (async; `.sync` for plain code), paths and caps of what goes in and out, and the sentences about them.
How a backend carries it out is the backend's business."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar, cast

from agentgym.errors import ConfigError, PolicyError
from agentgym.loop import event_loop, run_sync
from agentgym.sandbox import archive
from agentgym.sandbox.contract import (
    MIB,
    Backend,
    Box,
    Command,
    ExecResult,
    Program,
    SandboxFileError,
    SandboxLost,
    Snapshot,
    Spec,
)
from agentgym.sandbox.programs import PROGRAMS

RESTARTED = "[the program had ended and was started anew; its state is lost]\n"
MAX_ARGUMENT = 120_000  # the kernel refuses 131,072 bytes in one
P = ParamSpec("P")
T = TypeVar("T")


def _at_home(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Run it on agentgym's own loop, to which pipes and sockets are bound, whatever loop the caller runs."""

    @functools.wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if asyncio.get_running_loop() is event_loop():
            return await method(*args, **kwargs)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(method(*args, **kwargs), event_loop()))

    return run


class Sandbox:
    """A closed place to run commands in. `Sandbox(backend("auto"))`, then `await sandbox.exec("ls")`.

    It starts at its first use. A deep copy is a sandbox of its own that begins with a snapshot of this one's files:
    that is how an environment with a sandbox forks. `grants` says what is open in it. Every method but `close` raises
    SandboxLost once the sandbox has died, EngineUnreachable where none can be had."""

    def __init__(
        self,
        source: Backend | Any,
        spec: Spec | None = None,
        *,
        files: Mapping[str, bytes] | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """`source` is a backend, or a Pool; `files` lie in the working folder from the start."""
        self.source = source
        self.spec = spec or getattr(source, "spec", None) or Spec()
        self._first_files = dict(files or {})
        self._snapshot = snapshot
        self._box: Box | None = None
        self._starting: asyncio.Task[Box] | None = None
        self._closed = False
        self._sessions: list[Session] = []

    @property
    def grants(self) -> dict[str, Any]:
        return self.spec.grants

    @property
    def is_started(self) -> bool:
        return self._box is not None

    @property
    def id(self) -> str | None:
        """Its name at the backend (docker: the container's id); None while it does not run."""
        return None if self._box is None else self._box.id

    @property
    def sync(self) -> SyncFace:
        """The same methods, waiting instead of awaited."""
        return SyncFace(self)

    # -- life ----------------------------------------------------------------------------------------------------------

    @_at_home
    async def start(self) -> None:
        """Come up now, rather than at the first command."""
        await self._running()

    async def _running(self) -> Box:
        if self._closed:
            raise ConfigError("this sandbox is closed; make another")
        if self._box is None:
            starting = self._starting = self._starting or asyncio.ensure_future(self._start())
            try:
                box = await asyncio.shield(starting)
            except asyncio.CancelledError:
                if self._closed:
                    raise SandboxLost("the sandbox was closed while it started") from None
                raise
            finally:
                if starting.done() and self._starting is starting:
                    self._starting = None
            if self._closed:
                raise SandboxLost("the sandbox was closed while it started")
            self._box = box
        return self._box

    async def _start(self) -> Box:
        snapshot = self._snapshot
        spec = self.spec if snapshot is None or snapshot.image is None else self.spec.with_(image=snapshot.image)
        box = await self.source.start(spec)
        try:
            if snapshot is not None and snapshot.files:
                await box.unpack(box.workdir, snapshot.files)
            if self._first_files:
                await box.unpack(box.workdir, archive.of_files(self._first_files))
        except BaseException:
            await asyncio.shield(box.close())
            raise
        return box

    @_at_home
    async def close(self) -> None:
        """End it and everything in it. May be called twice, and while commands run."""
        self._closed = True
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            with contextlib.suppress(BaseException):
                self._box = await starting
        box, self._box = self._box, None
        if box is not None:
            await asyncio.shield(box.close())

    def __del__(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(_quietly(box.close()), event_loop())

    def __deepcopy__(self, memo: dict[int, Any]) -> Sandbox:
        snapshot = self._snapshot if self._box is None else self.sync.snapshot()
        files = self._first_files if self._box is None else {}
        memo[id(self)] = made = Sandbox(self.source, self.spec, files=files, snapshot=snapshot)
        return made

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- commands ------------------------------------------------------------------------------------------------------

    @_at_home
    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        merge: bool = False,
        output_bytes: int | None = None,
    ) -> ExecResult:
        """Run a program (a list), or a line of shell (a string), to its end or its time-out (`limits.wall_s` where
        none is given; after it nothing that the command started is alive). `merge` puts stderr into stdout.

        Raises PolicyError for arguments that no kernel takes, ConfigError for a time-out or user that cannot be."""
        box = await self._running()
        argv = await self._argv(box, command)
        data = _encoded(stdin, "standard input") if isinstance(stdin, str) else stdin
        made = self._command(box, argv, timeout_s, env, cwd, merge, output_bytes, stdin=data, user=user)
        return await box.exec(made)

    def _command(
        self,
        box: Box,
        argv: Sequence[str],
        timeout_s: float | None,
        env: Mapping[str, str] | None,
        cwd: str | None,
        merge: bool,
        output_bytes: int | None,
        **more: Any,
    ) -> Command:
        limits = self.spec.limits
        seconds: float = limits.wall_s if timeout_s is None else timeout_s
        if not 0 < seconds < 1e7:
            raise ConfigError(f"timeout_s={timeout_s}: every command ends; give seconds above 0")
        cap = limits.output_bytes if output_bytes is None else output_bytes
        if not 0 < cap <= 4 * MIB:
            raise ConfigError(f"output_bytes={cap}: give 1 to {4 * MIB}")
        if more.get("user") is not None and not self.spec.root:
            raise ConfigError(f"user={more['user']!r}: only a sandbox opened with Spec(root=True) can change users")
        for name, value in (env or {}).items():
            if not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
                raise PolicyError(
                    f"env has {name[:40]!r}: {value!r:.40}; a name without '=' and a text, neither with NUL"
                )
            _encoded(name + value, f"env {name[:40]!r}")
        return Command(
            argv=tuple(argv), timeout_s=seconds, cwd=_path(box, cwd or "."), merge=merge, output_bytes=cap,
            env={**self.spec.env, **(env or {})}, **{"stdin": b"", "user": None, **more},
        )  # fmt: skip

    async def _argv(self, box: Box, command: str | Sequence[str]) -> Sequence[str]:
        if isinstance(command, str):
            if "\0" in command:
                raise PolicyError("the command holds a NUL byte; no shell reads on after one")
            data = _encoded(command, "the command")
            if len(data) <= MAX_ARGUMENT:
                return [box.shell, "-c", command]
            name = f"/tmp/.agentgym-{id(command):x}.sh"
            await box.write(name, data, 0o700)
            return [box.shell, name]
        argv = list(command)
        if not argv or not argv[0]:
            raise PolicyError("the command is empty; give a program and its arguments")
        for argument in argv:
            if "\0" in argument:
                raise PolicyError(f"the argument {argument[:40]!r} holds a NUL byte; no program can be given one")
            if len(_encoded(argument, "an argument")) > MAX_ARGUMENT:
                raise PolicyError(f"an argument has more than {MAX_ARGUMENT} bytes; write a file and pass its name")
        return argv

    def session(self, kind: str = "bash") -> Session:
        """A persistent program: "bash" or "python"; it starts at its first text."""
        if kind not in PROGRAMS:
            raise ConfigError(f"session {kind!r} is unknown; there are {', '.join(PROGRAMS)}")
        return Session(self, kind)

    @_at_home
    async def kill_all(self) -> None:
        """End every process in it; its files stay."""
        await (await self._running()).kill_all()

    @_at_home
    async def ping(self) -> None:
        await (await self._running()).ping()

    # -- files ---------------------------------------------------------------------------------------------------------

    @_at_home
    async def read(self, path: str, *, limit_bytes: int = 16 * MIB) -> bytes:
        """A regular file of the sandbox. Raises SandboxFileError where it is none, or longer than the limit."""
        box = await self._running()
        return await box.read(_path(box, path), limit_bytes)

    @_at_home
    async def write(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Make or replace a regular file; folders above it are made. A link is not followed: SandboxFileError."""
        data = data.encode() if isinstance(data, str) else data
        box = await self._running()
        await box.write(_path(box, path), data, mode)

    @_at_home
    async def upload(self, files: Mapping[str, bytes] | Path | str, to: str = ".") -> None:
        """Put files (relative name -> content), or a folder of this machine, into a folder of the sandbox.

        Raises ConfigError naming an entry that is absolute, leaves the folder, or is no file or folder."""
        tar = archive.of_files(files) if isinstance(files, Mapping) else archive.of_folder(Path(files))
        box = await self._running()
        await box.unpack(_path(box, to), tar)

    @_at_home
    async def download(
        self, path: str = ".", to: Path | str | None = None, *, limit_bytes: int = 256 * MIB
    ) -> dict[str, bytes]:
        """The regular files of a folder by relative name; written below `to`, where that is given.

        Raises SandboxFileError naming a link or device, or where there is more than the limit."""
        found = archive.extracted(await self._packed(path, limit_bytes), path)
        if to is not None:
            for name, data in found.items():
                target = Path(to, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        return found

    async def _packed(self, folder: str, limit_bytes: int) -> bytes:
        data, box = bytearray(), await self._running()
        async with contextlib.aclosing(cast(Any, box.pack(_path(box, folder)))) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > limit_bytes:
                    raise SandboxFileError(folder, 27, f"more than {limit_bytes} bytes to take out; raise limit_bytes")
        return bytes(data)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    @_at_home
    async def snapshot(self, *, limit_bytes: int = 1024 * MIB) -> Snapshot:
        """The files as they are. Sessions and processes are not in it."""
        box = await self._running()
        image = await box.commit() if self.spec.writable else None
        return Snapshot(image, b"" if image is not None else await self._packed(".", limit_bytes))

    def fresh(self, *, snapshot: Snapshot | None = None, spec: Spec | None = None) -> Sandbox:
        """Another sandbox of the same kind, not started; with those files, if any."""
        return Sandbox(self.source, spec or self.spec, files=None if snapshot else self._first_files, snapshot=snapshot)


class Session:
    """A persistent shell or Python of a sandbox. Where it ends (by `exit`, or by a time-out that nothing milder
    stopped), the next text starts a new one, and its result says `alive=False`."""

    def __init__(self, sandbox: Sandbox, kind: str) -> None:
        self.sandbox = sandbox
        self.kind = kind
        self._program: Program | None = None

    @property
    def sync(self) -> SyncFace:
        """The same methods, waiting instead of awaited."""
        return SyncFace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return Session(copy.deepcopy(self.sandbox, memo), self.kind)  # files are copied, running programs are not

    async def run(
        self, text: str, *, timeout_s: float | None = None, output_bytes: int | None = None, merge: bool = True
    ) -> ExecResult:
        """Run a text. Standard error comes within standard output, as on a terminal, unless the first text said no."""
        return await self._run(text, timeout_s, output_bytes, merge)

    @_at_home
    async def _run(self, text: str, timeout_s: float | None, output_bytes: int | None, merge: bool) -> ExecResult:
        if "\0" in text:
            raise PolicyError("the text holds a NUL byte")
        box = await self.sandbox._running()
        _encoded(text, "the text")
        command = self.sandbox._command(box, PROGRAMS[self.kind][0], timeout_s, None, None, merge, output_bytes)
        told = {"timeout_s": command.timeout_s, "output_bytes": command.output_bytes}
        try:
            if self._program is None:
                self._program = await box.open(command, self.kind)
            result = await self._program.tell(text, **told)
        except SandboxFileError as error:
            if error.errno != errno.ESRCH:
                raise
            self._program = await box.open(command, self.kind)  # it ended between two texts
            result = await self._program.tell(text, **told)
            result = replace(result, stdout=RESTARTED + result.stdout)
        if not result.alive:
            self._program = None
        return result

    async def close(self) -> None:
        await self._close()

    @_at_home
    async def _close(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            await program.close()


class SyncFace:
    """Waits for the methods of what it is the face of: `sandbox.sync.exec("ls")`."""

    def __init__(self, owner: Sandbox | Session) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._owner, name)

        def wait(*args: Any, **kwargs: Any) -> Any:
            return run_sync(method(*args, **kwargs))

        return wait


async def _quietly(ending: Awaitable[None]) -> None:
    with contextlib.suppress(Exception):
        await ending


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PolicyError(f"{what} holds a lone surrogate; no program can be given one") from None


def _path(box: Box, path: str) -> str:
    if "\0" in path or not path:
        raise PolicyError(f"{path!r} is no path")
    return str(PurePosixPath(box.workdir, path))
