"""One running command of a sandbox, or a persistent program: its pipes, its output, its deadlines, its answer.

Python >= 3.8, standard library only. Owns what happens between a request and its answer. The processes are the
supervisor's business, the wire is the agent's."""

import _signal as signal  # type: ignore[import-not-found]  # the public modules cost 8 ms a sandbox
import _socket as socket
import os
import select
import struct
import time

from agentgym_sandboxes.inside.codec import encode
from agentgym_sandboxes.inside.supervisor import (
    BEGUN,
    BEGUN_ALONE,
    LENGTH,
    NOT_EXECUTABLE,
    STUBBORN_S,
    Supervisor,
    kill_everything,
)

CHUNK = 1 << 20
NUMBERS = {"input": 0, "out": 1, "err": 2, "tell": 8, "ask": 9}  # of a command's descriptors, in the command
DRAIN_S = 0.2  # what is waited for output after a command's end, where a child still holds its pipe


class Capture:
    """The first three quarters and the last quarter of a stream, of `cap` bytes in all, and how much there was."""

    def __init__(self, cap):
        self.head_cap, self.tail_cap = cap - cap // 4, cap // 4
        self.head, self.tail, self.total = bytearray(), bytearray(), 0

    def add(self, data):
        self.total += len(data)
        room = self.head_cap - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data:
            self.tail += data
            if len(self.tail) > 2 * self.tail_cap + CHUNK:
                del self.tail[: len(self.tail) - self.tail_cap]

    def take(self):
        return {"head": self.head, "tail": self.tail[max(0, len(self.tail) - self.tail_cap) :], "total": self.total}


class Spare:
    """A supervisor that waits for a command, and our end of its channel. Raises OSError where none can be had."""

    def __init__(self, agent):
        self.agent = agent
        self.channel, theirs = socket.socketpair()
        try:
            self.pid = os.fork()
            if not self.pid:
                Supervisor(theirs).run()
        except OSError:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self.fd = self.channel.fileno()
        self.wait()

    def wait(self):
        """For a command, or for its own end."""
        self.agent.spare = self
        self.agent.watch(self.fd, select.POLLIN, self)

    def ready(self, fd):
        """It has ended, unasked: a command killed all it could."""
        try:
            self.channel.recv(1, socket.MSG_DONTWAIT)
        except ConnectionError:
            pass
        self.agent.spare = None
        self.close()

    def close(self):
        """It ends itself where nobody is left to ask it for anything."""
        self.agent.unwatch(self.fd)
        self.channel.close()

    def take(self, request):
        """Our ends of the pipes of a command that is now started."""
        self.agent.spare = None
        self.agent.unwatch(self.fd)
        pipes = {"input": os.pipe()[::-1]} if "input" in request else {}
        pipes.update(out=os.pipe(), err=os.pipe())
        if "session" in request:
            pipes.update(tell=os.pipe(), ask=os.pipe()[::-1])
        theirs = [pair[1] for pair in pipes.values()]
        body = encode({**request, "places": [NUMBERS[name] for name in pipes]})
        data = LENGTH.pack(len(body)) + body
        try:
            os.kill(self.pid, signal.SIGCONT)  # a command may have stopped it
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("%di" % len(theirs), *theirs))
            self.channel.sendall(data[self.channel.sendmsg([data], [rights]) :])
        except OSError:
            pass  # it has just been killed: its silence will say so
        for ours, its in pipes.values():
            os.set_blocking(ours, False)
            os.close(its)
        return {name: ours for name, (ours, _) in pipes.items()}


class Command:
    """One running command; or a persistent program, which is given one text after the other.

    `number` is the request that is to be answered; None once it is."""

    def __init__(self, agent, number, request):
        self.agent, self.request = agent, request
        self.session = request.get("session")
        self.streams = "stream" in request
        self.feed = bytearray(request.pop("stdin", b""))
        self.feed_ends = "more" not in request
        self.out = self.err = self.input = self.ask = self.tell = self.supervisor = None
        self.has_begun = False
        self.begin(number, request)
        self.open(request)

    def begin(self, number, request):
        """Time, output and memory kills count from here."""
        self.number = number
        self.started = time.monotonic()
        self.deadline = self.started + request["timeout_ms"] / 1000
        self.hard_at = self.ended_at = self.status = None
        self.grace_s = request.get("grace_ms", 500) / 1000
        self.captures = [Capture(request["cap"]), Capture(request["cap"])]
        self.kills_before = self.agent.oom_kills()
        self.timed_out = False
        self.notes = b""

    def open(self, request):
        if self.feed or not self.feed_ends:
            request["input"] = 1
        try:
            self.supervisor = self.agent.spare or Spare(self.agent)
            fds = self.supervisor.take(request)
        except OSError as error:  # no process to be had: what earlier commands left behind is in the way
            self.status, self.notes = NOT_EXECUTABLE, b"cannot start a process: " + error.strerror.encode()
            self.ended_at, self.session = self.started, None
            if self.supervisor is not None:
                self.release(False)
            return
        self.agent.watch(self.supervisor.fd, select.POLLIN, self)
        for name, fd in fds.items():
            setattr(self, name, fd)
            if name in ("out", "err", "tell"):
                self.agent.watch(fd, select.POLLIN, self)

    def begun(self):
        self.has_begun = True
        if self.feed:
            self.agent.watch(self.input, select.POLLOUT, self)
        if self.session is not None:
            self.give(self.request)

    def give(self, request):
        """One more text for a persistent program."""
        self.feed, self.feed_ends = bytearray(request["text"] + b"\0"), False
        self.agent.watch(self.ask, select.POLLOUT, self)

    def pour(self, request):
        """More for the command's standard input."""
        self.feed += request["data"]
        self.feed_ends = "more" not in request
        if self.input is None and self.has_begun:
            self.agent.answer(self.number, {"hungry": 1})
        elif self.has_begun and (self.feed or self.feed_ends):
            self.agent.watch(self.input, select.POLLOUT, self)

    def ready(self, fd):
        if self.supervisor is not None and fd == self.supervisor.fd:
            self.read_status()
        elif fd in (self.out, self.err):
            self.read_output(fd)
        elif fd in (self.input, self.ask):
            self.write_input(fd)
        elif fd == self.tell:
            self.read_turn()

    def read_status(self):
        """The command has begun; or is over."""
        try:
            said = self.supervisor.channel.recv(4096, socket.MSG_DONTWAIT)
        except ConnectionError:
            said = b""
        if said[:1] in (BEGUN, BEGUN_ALONE):
            self.agent.adopts = said[:1] == BEGUN
            self.begun()
            said = said[1:]
            if not said:
                return
        if (
            not said and not self.has_begun and not self.timed_out
        ):  # somebody killed it while it waited: the command is not to blame
            self.release(False)
            for name in NUMBERS:
                self.drop(name)
            self.open(self.request)
            return
        code, again, self.notes = said.split(b" ", 2) if said else (b"", b"0", b"")
        self.status = int(code) if code else 128 + signal.SIGKILL  # no word: the supervisor itself was killed
        self.ended_at = time.monotonic()
        if self.timed_out and not self.agent.adopts:
            kill_everything()
        self.release(again == b"1")
        for name in ("ask", "tell", "input"):
            self.drop(name)
        if self.session is not None:
            self.agent.sessions.pop(self.session, None)
            self.session = None

    def release(self, again):
        """The supervisor waits for another command, or ends."""
        supervisor, self.supervisor = self.supervisor, None
        supervisor.close() if not again or self.timed_out or self.agent.spare else supervisor.wait()

    def drop(self, name):
        fd = getattr(self, name)
        if fd is not None:
            setattr(self, name, None)
            self.agent.unwatch(fd)
            os.close(fd)

    def read_output(self, fd):
        if self.streams and self.agent.is_backed_up():
            self.agent.unwatch(fd)
            self.agent.waiting.append((fd, self))
            return
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        index = 0 if fd == self.out else 1
        if not data:
            self.drop("err" if index else "out")
        elif self.number is None:
            pass  # what a daemon says after its command's end
        elif self.streams and not index:
            self.agent.answer(self.number, {"chunk": data})
        else:
            self.captures[index].add(data)

    def write_input(self, fd):
        try:
            del self.feed[: os.write(fd, self.feed[:65536])]
        except BlockingIOError:
            return
        except OSError:  # nobody reads
            self.feed.clear()
            if fd == self.input:
                self.drop("input")
                if not self.feed_ends:
                    self.agent.answer(self.number, {"hungry": 1})
                return
        if not self.feed:
            self.agent.unwatch(fd)
            if fd == self.input and self.feed_ends:
                self.drop("input")
            elif fd == self.input:
                self.agent.answer(self.number, {"hungry": 1})

    def read_turn(self):
        """A persistent program has done what it was told, and all it printed is in the pipes."""
        said = os.read(self.tell, 64)
        if not said:
            self.drop("tell")
        elif self.number is not None:
            for fd in (self.out, self.err):
                while fd is not None and fd in (self.out, self.err) and is_readable(fd):
                    self.read_output(fd)
            self.status = int(said.split(b"\0")[0])
            self.finish()

    def tick(self, now):
        """Act on deadlines. The time of the next one."""
        if self.ended_at is not None:
            if (self.out is None and self.err is None) or now >= self.ended_at + DRAIN_S:
                self.finish()
            return self.ended_at + DRAIN_S
        if self.hard_at is not None and now >= self.hard_at:
            self.hard_at = now + STUBBORN_S
            kill_everything()
        elif now >= self.deadline:
            self.stop(now)
        return min(self.deadline, self.hard_at or self.deadline)

    def stop(self, now):
        """Time is over, or the caller lost interest. A persistent program may survive its children; at first."""
        if self.session is not None and not self.timed_out and self.agent.adopts:
            order, self.deadline = b"C", now + 2 * self.grace_s
        else:
            order, self.deadline = b"K%f" % self.grace_s, float("inf")
            self.hard_at = now + self.grace_s + STUBBORN_S + 0.5
        self.timed_out = True
        try:
            self.supervisor.channel.sendall(order)
        except OSError:
            pass  # it has just ended

    def finish(self):
        reply = {
            "exit_code": self.status,
            "timed_out": self.timed_out,
            "oom": self.agent.oom_kills() > self.kills_before,
            "notes": self.notes,
            "duration_us": int((time.monotonic() - self.started) * 1e6),
            "alive": self.session is not None,
            "out": self.captures[0].take(),
            "err": self.captures[1].take(),
        }
        self.agent.answer(self.number, reply)
        self.agent.commands.pop(self.number, None)
        self.number = None


def is_readable(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0)[0:1] and poll.poll(0)[0][1] & select.POLLIN)
