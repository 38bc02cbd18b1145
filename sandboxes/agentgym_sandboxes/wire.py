"""The caller's end of the wire to the agent inside a sandbox: requests out, answers in, in any order.

Owns frames, request numbers and what happens to waiting callers when the wire breaks. What a broken wire means (died,
killed for memory, removed) its backend says; how bytes travel is the link's business."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from agentgym.errors import AgentGymError
from agentgym.sandbox import Command, ExecResult, Limits, Output, Program, SandboxFileError, SandboxLost
from agentgym.sandbox.programs import PROGRAMS
from agentgym.sandbox.shipped import LOADER, packed, shipped
from agentgym_sandboxes.inside import codec

INSIDE = ("codec", "supervisor", "commands", "agent")  # in the order of their imports
# What the interpreter inside is started with: the agent's sources come on its standard input, not in its arguments,
# where every `ps` in the sandbox would show them.
BOOT = f"""import marshal,os,sys
n=int(os.read(0,8));s=b''
while len(s)<n:s+=os.read(0,n-len(s))
S=marshal.loads(s)
{LOADER}m.main()"""
PYTHON = ("python3", "-I", "-S", "-B", "-c", BOOT)
STDIN_CHUNK = 1 << 20
LATE_S = 15.0  # an answer that is so much over its time never comes


Answers = asyncio.Queue[dict[str, Any] | None]


class Link(Protocol):
    """Bytes to the agent and from it."""

    async def send(self, data: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    def close(self) -> None: ...


class SocketLink:
    """A connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # a close alone does not wake a pending receive
        self.sock.close()


@functools.cache
def _sources() -> bytes:
    return packed(shipped("agentgym_sandboxes.inside", INSIDE))


class Wire:
    """Requests to one agent. Once it breaks, `diagnose()` gives the error that everybody gets, then and later."""

    def __init__(self, link: Link, diagnose: Callable[[str], Awaitable[AgentGymError]]) -> None:
        self._link = link
        self._diagnose = diagnose
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Answers] = {}
        self._sending = asyncio.Lock()
        self._broken: AgentGymError | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def boot(self, limits: Limits, oom_file: str = "") -> dict[str, Any]:
        """Send the agent's own source, and its orders."""
        await self._link.send(b"%8d" % len(_sources()) + _sources())
        return await self.ask("hello", life_ms=int(limits.life_s * 1000), oom_file=oom_file)

    async def ask(self, op: str, *, within_s: float = LATE_S, **arguments: Any) -> dict[str, Any]:
        """One request with one answer. Raises SandboxLost, or what the agent says is wrong as SandboxFileError."""
        async with self.request(op, **arguments) as (_, answers):
            return await self.next(answers, within_s)

    @contextlib.asynccontextmanager
    async def request(self, op: str, **arguments: Any) -> AsyncIterator[tuple[int, Answers]]:
        number = next(self._numbers)
        answers: Answers = asyncio.Queue()
        self._waiting[number] = answers
        try:
            await self.send(number, op, **arguments)
            yield number, answers
        finally:
            self._waiting.pop(number, None)

    async def send(self, number: int, op: str, **arguments: Any) -> None:
        if self._broken is not None:
            raise self._broken
        body = codec.encode({"op": op, **arguments})
        try:
            async with self._sending:
                await self._link.send(codec.HEAD.pack(number, len(body)) + body)
        except OSError as error:
            raise await self._break(str(error)) from error

    async def next(self, answers: Answers, within_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(within_s):  # unlike wait_for, no task of its own
                answer = await answers.get()
        except TimeoutError:
            raise await self._break(f"no answer within {within_s:.0f} s") from None
        if answer is None:
            assert_error = self._broken
            raise assert_error if assert_error is not None else SandboxLost("the sandbox was closed")
        if "errno" in answer:
            raise SandboxFileError("", answer["errno"], answer["text"].decode("utf-8", "replace"))
        return answer

    async def _read(self) -> None:
        inbox = bytearray()
        try:
            while data := await self._link.receive():
                inbox += data
                while len(inbox) >= codec.HEAD.size:
                    number, length = codec.HEAD.unpack_from(inbox)
                    if length > codec.MAX_FRAME:
                        raise ValueError(f"a frame of {length} bytes")
                    end = codec.HEAD.size + length
                    if len(inbox) < end:
                        break
                    answer: Any = codec.decode(bytes(inbox[codec.HEAD.size : end]))[0]
                    del inbox[:end]
                    if number in self._waiting:
                        self._waiting[number].put_nowait(answer)
            await self._break("the connection ended")
        except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:
            await self._break(f"the connection broke ({error})")

    async def _break(self, what: str) -> AgentGymError:
        """Never resynchronised: whatever it was, this sandbox is over."""
        if self._broken is None:
            self._broken = SandboxLost(f"the sandbox is lost: {what}")
            self._broken = await self._diagnose(what)
            self._link.close()
            for answers in self._waiting.values():
                answers.put_nowait(None)
        return self._broken

    def close(self) -> None:
        if self._broken is None:
            self._broken = SandboxLost("the sandbox was closed")
        self._reader.cancel()
        self._link.close()
        for answers in self._waiting.values():
            answers.put_nowait(None)


class AgentBox:
    """A running sandbox whose agent answers on a wire. Backends add how it ends (`close`, `commit`)."""

    carrier = "agent"

    def __init__(
        self, id: str, wire: Wire, limits: Limits, *, workdir: str, shell: str, rlimits: dict[str, int]
    ) -> None:
        self.id = id
        self.wire = wire
        self.limits = limits
        self.workdir = workdir
        self.shell = shell
        self.rlimits = rlimits
        self._sessions = itertools.count(1)

    async def exec(self, command: Command) -> ExecResult:
        return self._result(await self._fed(command, self._order(command)))

    async def _fed(self, command: Command, order: dict[str, Any]) -> dict[str, Any]:
        """Run an order to its end, its standard input sent piece by piece as the command takes it."""
        data = command.stdin
        if data:
            order["stdin"] = data[:STDIN_CHUNK]
        if len(data) > STDIN_CHUNK:
            order["more"] = 1
        async with self.wire.request("exec", **order) as (number, answers):
            at = STDIN_CHUNK
            late_s = command.timeout_s + self.limits.grace_s + LATE_S
            while "hungry" in (answer := await self._patient(number, answers, late_s)):
                chunk, at = data[at : at + STDIN_CHUNK], at + STDIN_CHUNK
                more = {"more": 1} if at < len(data) else {}
                await self.wire.send(0, "stdin", of=number, data=chunk, **more)
            return answer

    def _order(self, command: Command) -> dict[str, Any]:
        order: dict[str, Any] = {
            "argv": command.argv, "cwd": command.cwd, "env": command.env, "cap": command.output_bytes,
            "timeout_ms": max(1, int(command.timeout_s * 1000)), "grace_ms": int(self.limits.grace_s * 1000),
            "rlimits": self.rlimits,
        }  # fmt: skip
        if command.merge:
            order["merge"] = 1
        if command.user is not None:
            order["user"] = command.user
        return order

    async def _patient(self, number: int, answers: Answers, within_s: float) -> dict[str, Any]:
        """The next answer; where the caller loses interest, the command is killed before it is told so."""
        try:
            return await self.wire.next(answers, within_s)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await self.wire.send(0, "kill", of=number)
                while "exit_code" not in await asyncio.shield(self.wire.next(answers, LATE_S)):
                    pass
            raise

    def _result(self, answer: dict[str, Any]) -> ExecResult:
        return ExecResult.of(
            _output(answer["out"]), _output(answer["err"]), notes=answer["notes"].decode("utf-8", "replace"),
            exit_code=answer["exit_code"], timed_out=bool(answer["timed_out"]), oom=bool(answer["oom"]),
            duration_s=answer["duration_us"] / 1e6, carrier=self.carrier, alive=bool(answer["alive"]),
        )  # fmt: skip

    async def open(self, command: Command, kind: str) -> Program:
        return _Program(self, next(self._sessions), command, kind)

    async def read(self, path: str, limit: int) -> bytes:
        data = bytearray()
        try:
            while True:
                answer = await self.wire.ask("read", path=path, offset=len(data), limit=limit + 1 - len(data))
                data += answer["data"]
                if len(data) > limit or answer["size"] > limit:
                    raise SandboxFileError(path, 27, f"{answer['size']} bytes, over the limit of {limit}")
                if not answer["data"]:
                    return bytes(data)
                if len(data) >= answer["size"] > 0:
                    return bytes(data)
        except SandboxFileError as error:
            raise _named(error, path) from None

    async def write(self, path: str, data: bytes, mode: int) -> None:
        try:
            for at in range(0, max(1, len(data)), 4 * STDIN_CHUNK):
                more = {"append": 1} if at else {}
                await self.wire.ask("write", path=path, data=data[at : at + 4 * STDIN_CHUNK], mode=mode, **more)
        except SandboxFileError as error:
            raise _named(error, path) from None

    async def pack(self, folder: str) -> AsyncIterator[bytes]:
        order = self._order(self._files(folder))
        async with self.wire.request("exec", action="pack", stream=1, **order) as (number, answers):
            over = False
            try:
                while "chunk" in (answer := await self.wire.next(answers, self.limits.start_s + LATE_S)):
                    yield answer["chunk"]
                over = True
            finally:
                if not over:
                    with contextlib.suppress(Exception):
                        await self.wire.send(0, "kill", of=number)
        self._require_done(answer, folder)

    async def unpack(self, folder: str, tar: bytes) -> None:
        await self.wire.ask("mkdir", path=folder)
        command = self._files(folder, tar)
        self._require_done(await self._fed(command, {**self._order(command), "action": "unpack"}), folder)

    def _files(self, folder: str, data: bytes = b"") -> Command:
        return Command((), self.limits.start_s, folder, {}, data, None, False, 4096)

    def _require_done(self, answer: dict[str, Any], folder: str) -> None:
        if answer["exit_code"] != 0 or answer["timed_out"]:
            text = _output(answer["err"]).text()[0] + answer["notes"].decode("utf-8", "replace")
            raise SandboxFileError(folder, 5, "took too long" if answer["timed_out"] else text or "failed")

    async def kill_all(self) -> None:
        if (await self.wire.ask("killall"))["left"]:
            raise await self.wire._break("processes that cannot be killed are left")

    async def ping(self) -> None:
        await self.wire.ask("ping", within_s=5.0)

    async def commit(self) -> str | None:
        return None

    async def close(self) -> None:
        self.wire.close()


class _Program:
    """A persistent program on the agent's side."""

    def __init__(self, box: AgentBox, session: int, command: Command, kind: str) -> None:
        self.box, self.session, self.command = box, session, command
        self.interruptible = PROGRAMS[kind][1]
        self.started = False

    async def tell(self, text: str, *, timeout_s: float, output_bytes: int) -> ExecResult:
        wire, limits = self.box.wire, self.box.limits
        told = {"session": self.session, "text": text, "cap": output_bytes, "timeout_ms": max(1, int(timeout_s * 1000)),
                "grace_ms": int(limits.grace_s * 1000)}  # fmt: skip
        op, order = "text", told
        if not self.started:
            op, order = "exec", {**self.box._order(self.command), **told}
            if self.interruptible:
                order["interrupt"] = 1
            self.started = True
        async with wire.request(op, **order) as (number, answers):
            answer = await self.box._patient(number, answers, timeout_s + 4 * limits.grace_s + LATE_S)
        return self.box._result(answer)

    async def close(self) -> None:
        with contextlib.suppress(SandboxLost):
            await self.box.wire.send(0, "end", session=self.session)


def _output(told: dict[str, Any]) -> Output:
    return Output(told["head"], told["tail"], told["total"])


def _named(error: SandboxFileError, path: str) -> SandboxFileError:
    return SandboxFileError(path, error.errno, str(error).removeprefix(f"{error.path}: "))
