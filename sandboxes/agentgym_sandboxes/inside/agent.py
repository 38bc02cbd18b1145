"""The agent inside a sandbox: runs commands and moves files for whoever holds its standard input and output.

Python >= 3.8, standard library only: its sources are sent into the sandbox, where nothing of agentgym is. It is PID 1
of a container, or of a namespace. It does not protect from a kernel bug, nor from a command that runs as root with
CAP_SYS_PTRACE: such a command can write the agent's answers. Everything else that a command can do ends in an answer or
in the sandbox's end."""

import _signal as signal  # type: ignore[import-not-found]  # the public modules cost 8 ms a sandbox
import errno
import os
import select
import stat
import time

from agentgym_sandboxes.inside.codec import HEAD, MAX_FRAME, decode, encode
from agentgym_sandboxes.inside.commands import CHUNK, Command, Spare
from agentgym_sandboxes.inside.supervisor import adopt, hide, kill_everything, reap, reaped, wake_on_children


class Agent:
    """Reads requests, answers them in any order, until its input ends or its life is over; then kills everything."""

    def __init__(self):
        self.adopts = True  # else what a command daemonised is found by killing everything
        self.poll = select.poll()
        self.owners = {}
        self.commands = {}  # request number -> Command
        self.sessions = {}
        self.waiting = []  # streams that pause until the answers before them are taken
        self.inbox, self.outbox = bytearray(), bytearray()
        self.spare = None  # the next command's supervisor
        self.oom_file = None
        self.dies_at = float("inf")

    def watch(self, fd, events, owner):
        self.owners[fd] = owner
        self.poll.register(fd, events)

    def unwatch(self, fd):
        if self.owners.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def is_backed_up(self):
        return len(self.outbox) > 4 * CHUNK

    def oom_kills(self):
        """How often the kernel has killed for memory here (cgroup v1: memory.oom_control, v2: memory.events)."""
        if self.oom_file is None:
            return 0
        try:
            with open(self.oom_file, "rb") as file:
                return int(file.read().rpartition(b"oom_kill ")[2].split()[0])
        except (OSError, ValueError, IndexError):
            return 0

    def run(self):
        wake = wake_on_children()
        for fd in (0, 1):
            os.set_blocking(fd, False)
        for fd in (0, wake):
            self.watch(fd, select.POLLIN, self)
        while True:
            if self.spare is None and not self.commands:
                self.prepare()
            now = time.monotonic()
            if now >= self.dies_at:
                return
            soonest = min([command.tick(now) for command in list(self.commands.values())], default=float("inf"))
            pause = min(soonest, self.dies_at) - time.monotonic()
            for fd, _ in self.poll.poll(None if pause == float("inf") else max(0, int(pause * 1000) + 1)):
                if fd == wake:
                    os.read(wake, 4096)
                    reap()
                    reaped.clear()
                elif fd == 1:
                    self.flush()
                elif fd != 0:
                    self.serve(fd)
                elif not self.receive():
                    return

    def prepare(self):
        """A supervisor for the next command, where one can be had."""
        try:
            Spare(self)
        except OSError:
            pass

    def serve(self, fd):
        """Whoever waits for it; or nobody any more, or one to whom its number has passed and who has nothing yet."""
        try:
            if fd in self.owners:
                self.owners[fd].ready(fd)
        except BlockingIOError:
            pass

    def receive(self):
        """What the caller sent; False where it is gone."""
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:
            return True
        self.inbox += data
        while len(self.inbox) >= HEAD.size:
            number, length = HEAD.unpack_from(self.inbox)
            if length > MAX_FRAME:
                return False
            if len(self.inbox) < HEAD.size + length:
                break
            request = decode(bytes(self.inbox[HEAD.size : HEAD.size + length]))[0]
            del self.inbox[: HEAD.size + length]
            self.handle(number, request)
        return bool(data)

    def handle(self, number, request):
        operation = request["op"].decode()
        try:
            reply = getattr(self, "do_" + operation)(number, request)
        except OSError as error:
            reply = {"errno": error.errno or errno.EIO, "text": error.strerror or str(error)}
        if reply is not None:
            self.answer(number, reply)

    def answer(self, number, reply):
        body = encode(reply)
        self.outbox += HEAD.pack(number, len(body)) + body
        self.flush()

    def flush(self):
        try:
            while self.outbox:
                del self.outbox[: os.write(1, self.outbox[:CHUNK])]
        except BlockingIOError:
            self.watch(1, select.POLLOUT, self)
            return
        self.unwatch(1)
        waiting, self.waiting = self.waiting, []
        for fd, command in waiting:
            if fd == command.out:
                self.watch(fd, select.POLLIN, command)

    # -- requests

    def do_hello(self, number, request):
        self.dies_at = time.monotonic() + request["life_ms"] / 1000
        places = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")
        self.oom_file = next(filter(os.path.exists, [request["oom_file"].decode(), *places]), None)
        return {"shell": next(filter(os.path.exists, ("/bin/bash", "/usr/bin/bash")), "/bin/sh")}

    def do_ping(self, number, request):
        return {}

    def do_exec(self, number, request):
        command = self.commands[number] = Command(self, number, request)
        if command.session is not None:
            self.sessions[command.session] = command

    def do_text(self, number, request):
        command = self.sessions.get(request["session"])
        if command is None or command.number is not None:
            return {"errno": errno.ESRCH if command is None else errno.EBUSY, "text": "no such session, or it is busy"}
        self.commands[number] = command
        command.begin(number, request)
        command.give(request)
        return None

    def do_stdin(self, number, request):
        command = self.commands.get(request["of"])
        if command is not None and command.ended_at is None:
            command.pour(request)

    def do_kill(self, number, request):
        command = self.commands.get(request["of"])
        if command is not None and command.supervisor is not None:
            command.stop(time.monotonic())

    def do_end(self, number, request):
        command = self.sessions.get(request["session"])
        if command is not None:
            command.timed_out = True  # so that the whole goes, not only its children
            command.stop(time.monotonic())

    def do_killall(self, number, request):
        left = kill_everything()
        for waiting in (self.spare, *(command.supervisor for command in self.sessions.values())):
            if waiting is not None:
                self.serve(waiting.fd)  # it is gone, and nobody is told otherwise
        return {"left": left}

    def do_mkdir(self, number, request):
        os.makedirs(request["path"], exist_ok=True)
        return {}

    def do_read(self, number, request):
        fd = os.open(request["path"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL, "not a regular file")
            return {"data": os.pread(fd, min(request["limit"], 4 * CHUNK), request["offset"]), "size": info.st_size}
        finally:
            os.close(fd)

    def do_write(self, number, request):
        os.makedirs(os.path.dirname(request["path"]) or b".", exist_ok=True)
        how = os.O_APPEND if "append" in request else os.O_TRUNC
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | how
        fd = os.open(request["path"], flags, request["mode"])
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            os.fchmod(fd, request["mode"])
            data = memoryview(request["data"])
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        return {}


def main():
    hide()
    adopt()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # PID 1 is deaf to what it has no handler for
    os.chdir("/")
    try:
        Agent().run()
    finally:
        kill_everything()
        os._exit(0)
