"""The candidate's process as the trusted one sees it: started, asked, timed, and killed when its time is over.

Owns the border. Nothing that comes over it is code, and an object of the candidate is a number here: two are equal
where the numbers are, whatever the candidate's own `__eq__` says."""

from __future__ import annotations

import builtins
import os
import select
import sys
import time

from agentgym_envs.code.judge import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGKILL = 9  # of every Linux; the module `signal` costs 4 ms a verdict
PASSED, FAILED, SKIPPED, TIMED_OUT = "passed", "failed", "skipped", "timed_out"
WALL = 5.0  # a test may take so many times its CPU seconds on the clock: machines are shared, and a test may sleep
BOOT = (
    "import marshal,os,sys\n"
    "def r(n):\n b=b''\n while len(b)<n:\n  m=os.read(3,n-len(b))\n  if not m: os._exit(0)\n  b+=m\n return b\n"
    "v=sys.modules['_frozen_importlib_external'].MAGIC_NUMBER\n"
    "for n,s,c,w in marshal.loads(r(int.from_bytes(r(4),'big'))):\n"
    " m=sys.modules[n]=type(sys)(n); exec(marshal.loads(c) if v==w else compile(s,n,'exec'),m.__dict__)\n"
    "m.main()\n"
)


class Stop(BaseException):
    """The test ends here: its time is over, or the candidate's process is gone. No `except Exception` stops it."""

    def __init__(self, what: str, timed_out: bool = False) -> None:
        super().__init__(what)
        self.timed_out = timed_out


class Raised(Exception):
    """The candidate raised something that is no built-in Exception."""


class Candidate:
    """Asks the candidate's process, and starts another where the last one is gone."""

    def __init__(self, sources: list[Any], solution: dict[str, Any], test_s: float, until: float) -> None:
        """`sources` are its modules (see judging.py); `until` is when all must be over, by time.monotonic()."""
        self.sources, self.solution, self.test_s, self.until = sources, solution, test_s, until
        self.pid: int | None = None
        self.broken = ""  # why it does not load; it is not tried again
        self.number = 0  # of processes started; handles of earlier ones are void
        self.cpu_until = self.wall_until = 0.0

    def begin(self) -> None:
        """A test begins: it has its whole time."""
        if self.pid is not None:
            self._set_limits()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises Stop, or what the candidate raised as the built-in exception of that name."""
        if self.broken:
            raise Stop(self.broken)
        if self.pid is None:
            self._start()
        return self._asked(request)

    def end(self) -> None:
        """Kill it, and what it left in its group."""
        if self.pid is None:
            return
        for kill in (os.killpg, os.kill):
            try:
                kill(self.pid, SIGKILL)
            except OSError:
                pass
        os.waitpid(self.pid, 0)
        os.close(self.asking)
        os.close(self.hearing)
        self.pid = None

    def _start(self) -> None:
        (theirs_in, self.asking), (self.hearing, theirs_out) = os.pipe(), os.pipe()
        high = [os.dup(theirs_in), os.dup(theirs_out)]  # so that 3 and 4 are free to be given
        actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, 100 + i) for i, fd in enumerate(high)]
        actions += [(os.POSIX_SPAWN_DUP2, 100 + i, 3 + i) for i in range(2)]
        actions += [(os.POSIX_SPAWN_CLOSE, 100 + i) for i in range(2)]
        argv = [sys.executable, "-s", "-B", "-c", BOOT]
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        self.pid = os.posix_spawn(sys.executable, argv, environ, file_actions=actions, setpgroup=0)
        self.number += 1
        for fd in (*high, theirs_in, theirs_out):
            os.close(fd)
        self._set_limits()
        self._write(self.sources)
        try:
            self._asked(self.solution)
        except Exception as error:  # half a program is none: whatever it has defined is not called
            self.broken = "the program does not load: %s" % error
        except Stop as stop:
            self.broken = str(stop)
            raise
        if self.broken:
            self.end()
            raise Stop(self.broken)
        self._set_limits()

    def _set_limits(self) -> None:
        self.cpu_until = self._cpu() + self.test_s
        self.wall_until = min(self.until, time.monotonic() + WALL * self.test_s)

    def _cpu(self) -> float:
        """CPU seconds that the process has used; its children's are theirs."""
        try:
            return time.clock_gettime((~(self.pid or 0) << 3) | 2)
        except OSError:
            return 0.0

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        self._write(request)
        try:
            reply = codec.read_told(codec.read_frame(self._read))
        except (ValueError, RecursionError, MemoryError) as error:
            self.end()
            raise Stop("the candidate's process answers nonsense: %s" % error) from None
        if "raised" in reply:
            name, text = reply["raised"]
            kind = getattr(builtins, str(name), None)
            is_plain = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)
            raise (kind if is_plain else Raised)(str(text))  # type: ignore[misc]
        return reply

    def _write(self, message: Any) -> None:
        try:
            codec.write_frame(self.asking, codec.ask_text(message))
        except OSError:
            self.end()
            raise Stop("the candidate's process has ended") from None

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if select.select([self.hearing], [], [], 0.05)[0]:
                more = os.read(self.hearing, min(count - len(data), 1 << 20))
                if not more:
                    self.end()
                    raise Stop("the candidate's process has ended")
                data += more
            elif time.monotonic() > self.wall_until or self._cpu() > self.cpu_until:
                self.end()
                raise Stop("no answer in time", timed_out=True)
        return data


class Remote:
    """An object of the candidate. Here it can be called, read and walked through; it decides nothing."""

    __slots__ = ("_candidate", "_number", "_target")

    def __init__(self, candidate: Candidate, target: dict[str, Any], number: int = 0) -> None:
        for name, value in (("_candidate", candidate), ("_target", target), ("_number", number)):
            object.__setattr__(self, name, value)

    def _do(self, kind: str, **more: Any) -> Any:
        reply = self._candidate.ask({"do": kind, "target": target_of(self), **more})
        return decoded(reply["value"], self._candidate)

    def __call__(self, *given: Any, **named: Any) -> Any:
        candidate = self._candidate
        request = {
            "do": "call",
            "target": target_of(self),
            "given": [encoded(item) for item in given],
            "named": {name: encoded(item) for name, item in named.items()},
        }
        reply = candidate.ask(request)
        for index, after in reply["changed"].items():
            become(given[int(index)], decoded(after, candidate))
        return given[reply["same"]] if "same" in reply else decoded(reply["value"], candidate)

    def __getattr__(self, name: str) -> Any:
        if name == "__name__" and "name" in self._target:
            return self._target["name"][1]
        return self._do("get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("set", name=name, value=encoded(value))

    def __iter__(self) -> Any:
        return self._do("iter")

    def __next__(self) -> Any:
        return self._do("next")

    def __getitem__(self, key: Any) -> Any:
        return self._do("item", given=[encoded(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do("put", given=[encoded(key), encoded(value)])

    def __len__(self) -> int:
        return int(self._do("len"))

    def __bool__(self) -> bool:
        return self._do("bool") is True

    def __str__(self) -> str:
        return str(self._do("str"))

    def __repr__(self) -> str:
        return str(self._do("repr"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and (self._target, self._number) == (other._target, other._number)

    def __hash__(self) -> int:
        return hash(str(self._target))


def target_of(remote: Remote) -> dict[str, Any]:
    """What the candidate's process knows it by. Raises Stop where that process is gone."""
    if "object" in remote._target and remote._number != remote._candidate.number:
        raise Stop("an object of a process that is gone")
    return remote._target


def encoded(value: Any) -> Any:
    def handle(item: Any) -> Any:
        if type(item) is Remote:
            return target_of(item)
        raise TypeError("a %s cannot be handed to the candidate" % type(item).__name__)

    return codec.encode(value, handle)


def decoded(data: Any, candidate: Candidate) -> Any:
    def handle(item: Any) -> Any:
        if type(item.get("object")) is not int:
            raise Stop("the candidate's process answers nonsense")
        return Remote(candidate, {"object": item["object"]}, candidate.number)

    try:
        return codec.decode(data, handle)
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError, RecursionError) as error:
        raise Stop("the candidate's process answers nonsense: %s" % error) from None


def become(value: Any, after: Any) -> None:
    """Let a list, dictionary, set or bytearray hold what the candidate's copy of it holds."""
    if type(value) is not type(after):
        return
    if type(value) in (list, bytearray):
        value[:] = after
    elif type(value) in (dict, set):
        value.clear()
        value.update(after)
