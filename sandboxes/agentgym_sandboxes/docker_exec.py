"""The exec carrier: commands through the engine's exec, for images without Python 3.8 or newer.

About 50 ms a command. An exec cannot be killed from outside, so a time-out ends the whole sandbox; and a process that
the command left behind is not found before that. It does not protect the main process of the container from a
`kill -9 -1` of the agent: then the sandbox is lost."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

from agentgym.errors import ConfigError
from agentgym.sandbox import Command, ExecResult, Output, Program, SandboxExhausted, SandboxFileError, SandboxLost, Spec
from agentgym_sandboxes.inside.commands import Capture

HEADER = struct.Struct(">BxxxI")
DRAIN_S = 5.0
ENGINES_OWN = (126, 127, 137)  # exit codes that may be the engine's word on a container that ended, not the command's


class ExecBox:
    """A running container whose commands are engine execs."""

    carrier = "exec"

    def __init__(self, container: Any, spec: Spec) -> None:
        self.container = container
        self.id = container.id
        self.spec = spec
        self.workdir = spec.workdir
        self.shell = "sh"
        self._over: SandboxExhausted | None = None

    @classmethod
    async def on(cls, container: Any, spec: Spec) -> ExecBox:
        box = cls(container, spec)
        if (await box._run(["bash", "-c", "exit 0"], timeout_s=spec.limits.start_s)).exit_code == 0:
            box.shell = "bash"
        return box

    async def exec(self, command: Command) -> ExecResult:
        return await self._run(
            list(command.argv), timeout_s=command.timeout_s, stdin=command.stdin, env=dict(command.env),
            cwd=command.cwd, user=command.user, cap=command.output_bytes, merge=command.merge,
        )  # fmt: skip

    async def _run(
        self, argv: list[str], *, timeout_s: float, stdin: bytes = b"", env: dict[str, str] | None = None,
        cwd: str | None = None, user: str | None = None, cap: int = 65536, merge: bool = False,
        sink: bytearray | None = None,
    ) -> ExecResult:  # fmt: skip
        self._require_alive()
        if merge:
            argv = ["sh", "-c", 'exec "$@" 2>&1', "sh", *argv]
        call, api = self.container.backend.call, self.container.api
        began = time.monotonic()
        made = await call(
            api.exec_create, self.id, argv, stdin=bool(stdin), environment=env, workdir=cwd or self.workdir,
            user=user or "",
        )  # fmt: skip
        stream = _Stream(await call(api.exec_start, made["Id"], socket=True))
        captures = {1: Capture(cap), 2: Capture(cap)}
        timed_out = False
        feeding = asyncio.ensure_future(stream.feed(stdin))
        try:
            async with asyncio.timeout(timeout_s):
                async for number, data in stream:
                    if sink is not None and number == 1:
                        sink += data
                    else:
                        captures[number].add(data)
        except TimeoutError:
            timed_out = True
            self._over = SandboxExhausted(
                f"a command ran over its {timeout_s} s, and without Python in the image only the sandbox's end stops it"
            )
            await self.container.remove()
        finally:
            feeding.cancel()
            stream.close()
        code = 137 if timed_out else (await self._ended(made["Id"]))
        out, err = _taken(captures[1]), _taken(captures[2])
        if code in (126, 127) and b"OCI runtime exec failed" in out.head:  # the engine says so on standard output
            code = 127 if b"not found" in out.head or b"no such file" in out.head else 126
            out, err = Output(b"", b"", 0), out
        return ExecResult.of(
            out, err, exit_code=code,
            timed_out=timed_out, oom=False, duration_s=time.monotonic() - began, carrier="exec",
        )  # fmt: skip

    async def _ended(self, exec_id: str) -> int:
        found: dict[str, Any] = {"ExitCode": None}
        for _ in range(200):
            found = await self.container.backend.call(self.container.api.exec_inspect, exec_id)
            if not found["Running"]:
                break
            await asyncio.sleep(0.01)
        code = found["ExitCode"]
        if code in (None, *ENGINES_OWN) and (
            (state := await self.container.inspect()) is None or not state["State"]["Running"]
        ):
            raise await self.container.diagnose("the command ended with its container")
        return 137 if code is None else code

    def _require_alive(self) -> None:
        if self._over is not None:
            raise self._over

    async def open(self, command: Command, kind: str) -> Program:
        if kind != "bash":
            raise ConfigError(f"a {kind} session needs Python in the image; this one has none")
        return _Shell(self, command)

    async def read(self, path: str, limit: int) -> bytes:
        data = bytearray()
        script = 'test -f "$1" || { echo "not a regular file, or not there" >&2; exit 1; }; exec head -c "$2" "$1"'
        done = await self._run(["sh", "-c", script, "sh", path, str(limit + 1)], timeout_s=60, sink=data)
        if done.exit_code:
            raise SandboxFileError(path, 2, done.stderr.strip() or "cannot be read")
        if len(data) > limit:
            raise SandboxFileError(path, 27, f"over the limit of {limit} bytes")
        return bytes(data)

    async def write(self, path: str, data: bytes, mode: int) -> None:
        script = (
            'mkdir -p "$(dirname "$1")" && if test -L "$1" || { test -e "$1" && ! test -f "$1"; }; then '
            'echo "not a regular file" >&2; exit 1; fi && head -c "$3" > "$1" && chmod "$2" "$1"'
        )
        argv = ["sh", "-c", script, "sh", path, f"{mode:o}", str(len(data))]
        done = await self._run(argv, timeout_s=60, stdin=data or b"\n")
        if done.exit_code:
            raise SandboxFileError(
                path, 28 if "space" in done.stderr else 22, done.stderr.strip() or "cannot be written"
            )

    async def pack(self, folder: str) -> AsyncIterator[bytes]:
        data = bytearray()
        script = 'cd "$1" && tar -cf - .'
        done = await self._run(["sh", "-c", script, "sh", folder], timeout_s=self.spec.limits.start_s, sink=data)
        if done.exit_code:
            raise SandboxFileError(folder, 5, done.stderr.strip() or "tar failed")
        yield bytes(data)

    async def unpack(self, folder: str, tar: bytes) -> None:
        script = 'mkdir -p "$1" && cd "$1" && tar -xf -'
        done = await self._run(["sh", "-c", script, "sh", folder], timeout_s=self.spec.limits.start_s, stdin=tar)
        if done.exit_code:
            raise SandboxFileError(folder, 5, done.stderr.strip() or "tar failed")

    async def kill_all(self) -> None:
        await self._run(["sh", "-c", "kill -9 -1"], timeout_s=10)

    async def ping(self) -> None:
        await self._run(["true"], timeout_s=5)

    async def commit(self) -> str | None:
        found = await self.container.backend.call(self.container.api.commit, self.id)
        return found["Id"]

    async def close(self) -> None:
        await self.container.remove()


class _Stream:
    """The hijacked connection of one exec: its output in the engine's frames."""

    def __init__(self, attached: Any) -> None:
        self._outer = attached
        self.sock: socket.socket = getattr(attached, "_sock", attached)
        self.sock.setblocking(False)
        self._inbox = bytearray()

    async def feed(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            if data:
                await loop.sock_sendall(self.sock, data)
            self.sock.shutdown(socket.SHUT_WR)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        while True:
            while len(self._inbox) >= HEADER.size:
                number, length = HEADER.unpack_from(self._inbox)
                end = HEADER.size + length
                if len(self._inbox) < end:
                    break
                yield (2 if number == 2 else 1), bytes(self._inbox[HEADER.size : end])
                del self._inbox[:end]
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
            if not data:
                return
            self._inbox += data

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        with contextlib.suppress(OSError):
            self._outer.close()


class _Shell:
    """A persistent `sh`: each text is one `eval`, and a mark that nobody can guess ends its output."""

    def __init__(self, box: ExecBox, command: Command) -> None:
        self.box, self.command = box, command
        self.stream: _Stream | None = None
        self.chunks: Any = None

    async def tell(self, text: str, *, timeout_s: float, output_bytes: int) -> ExecResult:
        self.box._require_alive()
        if self.stream is None:
            call, api = self.box.container.backend.call, self.box.container.api
            merged = ["sh", "-c", f"exec {self.box.shell} 2>&1"] if self.command.merge else [self.box.shell]
            made = await call(
                api.exec_create, self.box.id, merged, stdin=True, environment=dict(self.command.env),
                workdir=self.command.cwd,
            )  # fmt: skip
            self.stream = _Stream(await call(api.exec_start, made["Id"], socket=True))
            self.chunks = aiter(self.stream)
        mark = secrets.token_hex(16)
        ends = f"printf '%s %d.' {mark} $?" + ("" if self.command.merge else f"; printf %s {mark} >&2")
        began = time.monotonic()
        line = f"eval {shlex.quote(text)} </dev/null; {ends}\n"
        kept = {1: bytearray(), 2: bytearray()}
        totals = {1: 0, 2: 0}
        status: int | None = None
        timed_out = False
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(self.stream.sock, line.encode()))
        try:
            async with asyncio.timeout(timeout_s):
                async for number, data in self.chunks:
                    totals[number] += len(data)
                    kept[number] += data
                    if len(kept[number]) > 16 * output_bytes + (1 << 20):
                        del kept[number][output_bytes : -output_bytes - 128]
                    status = _status(kept[1], mark)
                    if status is not None and (self.command.merge or mark.encode() in kept[2]):
                        break
        except TimeoutError:
            timed_out = True
            self.box._over = SandboxExhausted(f"a command ran over its {timeout_s} s; its sandbox had to end")
            await self.box.container.remove()
        finally:
            sending.cancel()
        alive = status is not None
        if not alive:
            self.stream.close()
            self.stream = None
        outputs = [_before(kept[n], mark, totals[n], output_bytes) for n in (1, 2)]
        return ExecResult.of(
            *outputs, exit_code=137 if timed_out else (status or 0), timed_out=timed_out, oom=False,
            duration_s=time.monotonic() - began, carrier="exec", alive=alive,
        )  # fmt: skip

    async def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def _taken(capture: Any) -> Output:
    kept = capture.take()
    return Output(bytes(kept["head"]), bytes(kept["tail"]), kept["total"])


def _status(data: bytearray, mark: str) -> int | None:
    found = data.rfind(mark.encode())
    end = data.find(b".", found) if found >= 0 else -1
    return int(data[found + len(mark) : end]) if end > 0 else None


def _before(data: bytearray, mark: str, total: int, cap: int) -> Output:
    found = data.rfind(mark.encode())
    body = bytes(data[:found] if found >= 0 else data)
    total -= len(data) - len(body)
    if total <= cap:
        return Output(body, b"", total)
    head = cap - cap // 4
    return Output(body[:head], body[len(body) - cap // 4 :], total)


__all__ = ["ExecBox", "SandboxLost"]
