"""The agent inside a sandbox: runs commands and moves files for whoever holds its standard input and output.

Python >= 3.8, standard library only: its source is sent into the sandbox, where nothing of agentgym is. It is PID 1 of
a container, or of a namespace. Every command runs below a supervisor of its own, a sub-reaper, so that whatever the
command started, daemonised or not, can be found and killed when its time is over.

It does not protect from a kernel bug, nor from a command that runs as root with CAP_SYS_PTRACE: such a command can
write the agent's answers. Everything else that a command can do ends in an answer or in the sandbox's end.

The wire: frames of two big-endian 32-bit numbers (request id, length) and a bencoded dictionary."""

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import stat
import struct
import time

HEAD = struct.Struct("!II")
MAX_FRAME = 16 << 20
CHUNK = 1 << 20
DRAIN_S = 0.2  # what is waited for output after a command's end, where a child still holds its pipe
STUBBORN_S = 2.0  # what a supervisor gets to kill its tree, over the grace it was given
SET_DUMPABLE, SET_CHILD_SUBREAPER = 4, 36
NOT_FOUND, NOT_EXECUTABLE = 127, 126
FIRST_HIGH = 20  # descriptors below are the command's
libc = None


def encode(value):
    """Bencode: integers, bytes (text as UTF-8, lone surrogates as the bytes they stand for), lists, dictionaries."""
    if isinstance(value, bool) or value is None:
        value = int(bool(value))
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, (bytes, bytearray)):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, dict):
        return b"d" + b"".join(encode(key) + encode(value[key]) for key in value) + b"e"
    return b"l" + b"".join(map(encode, value)) + b"e"


def decode(data, at=0):
    """The value that begins at `at`, and where it ends. Raises ValueError or IndexError for anything else."""
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        items, at = [], at + 1
        while data[at] != 101:
            item, at = decode(data, at)
            items.append(item)
        return (items if kind == b"l" else {k.decode(): v for k, v in zip(items[::2], items[1::2])}), at + 1
    colon = data.index(b":", at)
    end = colon + 1 + int(data[at:colon])
    if end > len(data):
        raise ValueError("cut")
    return bytes(data[colon + 1 : end]), end


# -- below the agent: one supervisor per command -----------------------------------------------------------------------


def descendants():
    """Process ids below this one, from /proc."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, queue = [], [os.getpid()]
    while queue:
        for pid in children.get(queue.pop(), ()):
            found.append(pid)
            queue.append(pid)
    return found


def signal_all(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


def kill_tree(spared=()):
    """Stop everything below this process, then kill it, until nothing is left; whether that was reached in time."""
    deadline = time.monotonic() + STUBBORN_S
    while time.monotonic() < deadline:
        stopped = set()
        while True:
            pids = set(descendants()) - set(spared)
            if not pids - stopped:
                break
            signal_all(pids - stopped, signal.SIGSTOP)
            stopped |= pids
        if not pids:
            return True
        signal_all(pids, signal.SIGKILL)
        time.sleep(0.002)
        reap()
    return False


reaped = {}  # process id -> status


def reap():
    """Collect whoever has ended, without waiting for the living."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        reaped[pid] = status


def exit_code(status):
    """0-255 as a shell would say it: 128 + n for a signal n."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def find_program(name, path):
    """Where a shell would find the program; raises OSError as exec would."""
    if b"/" in name:
        return name
    denied = False
    for folder in path.split(b":"):
        candidate = os.path.join(folder or b".", name)
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            denied = True
    raise OSError(errno.EACCES if denied else errno.ENOENT, "")


class Supervisor:
    """The process between the agent and one command. It never returns to the agent's code."""

    def __init__(self, request, status_fd, order_fd, fds):
        """`fds` are the command's: its number -> ours."""
        self.request, self.fds = request, fds
        self.status_fd, self.order_fd = status_fd, order_fd
        self.main = 0

    def run(self):
        try:
            self.rearrange()
            wake = wake_on_children()
            libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                self.start()
            except OSError as error:
                self.refuse(error)
                return
            self.watch(wake)
        finally:
            os._exit(0)

    def rearrange(self):
        """Our numbers go high, the command's get their places, and nothing else stays open."""

        def high(fd):
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_HIGH)

        placed = {number: high(fd) for number, fd in self.fds.items()}
        self.status_fd, self.order_fd = high(self.status_fd), high(self.order_fd)
        kept = {self.status_fd, self.order_fd, *placed.values()}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own
        for number, fd in placed.items():
            os.dup2(fd, number, inheritable=True)
            os.close(fd)

    def start(self):
        request = self.request
        if "user" in request:
            become(request["user"].decode())
        for name, limit in request.get("rlimits", {}).items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        try:
            os.chdir(request["cwd"])
        except OSError as error:
            raise OSError(errno.EPERM, f"cannot enter {os.fsdecode(request['cwd'])}: {error.strerror}") from None
        self.main = os.fork() if "action" in request else self.spawn(request)
        if not self.main:
            act(request)
        for number in self.fds:
            os.close(number)
        try:
            with open(f"/proc/{self.main}/oom_score_adj", "w") as file:
                file.write("1000")  # the kernel takes the command before it takes the agent
        except OSError:
            pass

    def spawn(self, request):
        environment = {**os.environb, **{k.encode("utf-8", "surrogateescape"): v for k, v in request["env"].items()}}
        program = find_program(request["argv"][0], environment.get(b"PATH", b"/usr/bin:/bin"))
        ignored = [signal.SIGPIPE, signal.SIGXFSZ]  # Python ignores them; a command must not inherit that
        try:
            return os.posix_spawn(program, request["argv"], environment, setsid=True, setsigdef=ignored)
        except NotImplementedError:  # a C library without it
            return os.posix_spawn(program, request["argv"], environment, setpgroup=0, setsigdef=ignored)

    def refuse(self, error):
        """As a shell would say it: 127 for what is not there, 126 for what cannot be run."""
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        text = error.strerror or "command not found"
        if error.errno != errno.EPERM:
            name = os.fsdecode(self.request.get("argv", [b"?"])[0][:200])
            text = f"{name}: {'command not found' if code == NOT_FOUND else os.strerror(error.errno)}"
        self.say(code, text.encode("utf-8", "surrogateescape")[:400])

    def say(self, code, text=b""):
        os.write(self.status_fd, b"%d %s" % (code, text))

    def watch(self, wake):
        poll = select.poll()
        poll.register(self.order_fd, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            reap()
            if self.main in reaped:
                self.say(exit_code(reaped[self.main]))
                return
            for fd, _ in poll.poll():
                if fd == wake:
                    os.read(wake, 4096)
                    continue
                order = os.read(self.order_fd, 64)
                if order[:1] != b"C":
                    self.finish(float(order[1:] or b"0"))
                    return
                kill_tree(spared=(self.main,))  # the children of a persistent program, not the program
                if "interrupt" in self.request:
                    os.kill(self.main, signal.SIGINT)

    def finish(self, grace_s):
        """SIGTERM to the command's group, the grace, then no more asking."""
        for number in (signal.SIGTERM, signal.SIGCONT):
            try:
                os.killpg(self.main, number)
            except OSError:
                pass
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and descendants():
            time.sleep(0.005)
            reap()
        if kill_tree():
            self.say(exit_code(reaped.get(self.main, signal.SIGKILL)))


def become(user):
    """Another user of the sandbox, for good: a name, or numbers as in `1000:1000`."""
    import pwd  # noqa: PLC0415 - for this only

    name, _, group = user.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        uid, gid = entry.pw_uid, int(group or entry.pw_gid)
    except KeyError:
        if not name.isdigit():
            raise OSError(errno.EPERM, "there is no user %s" % name) from None
        uid, gid = int(name), int(group or name)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)


def wake_on_children():
    """A descriptor that is readable once a child has ended."""
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    return wake


def act(request):
    """Pack or unpack a folder: on a hostile tree, so in a process that is limited and killed like a command."""
    status = 1
    try:
        import tarfile  # noqa: PLC0415 - 10 ms, for this only

        os.setsid()
        if request["action"] == b"pack":
            out = os.fdopen(1, "wb", CHUNK)
            with out, tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name in sorted(os.listdir(".")):
                    tar.add(name)
        else:
            with os.fdopen(0, "rb", CHUNK) as source, tarfile.open(fileobj=source, mode="r|") as tar:
                for member in tar:
                    tar.extract(member, ".", set_attrs=True)
        status = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode("utf-8", "surrogateescape")[:4000])
    finally:
        os._exit(status)


# -- the agent ---------------------------------------------------------------------------------------------------------


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


class Command:
    """One running command; or a persistent program, which is given one text after the other.

    `number` is the request that is to be answered; None once it is."""

    def __init__(self, agent, number, request):
        self.agent, self.request = agent, request
        self.session = request.get("session")
        self.streams = "stream" in request
        self.feed = bytearray(request.get("stdin", b""))
        self.feed_ends = "more" not in request
        self.out = self.err = self.input = self.ask = self.tell = self.status_fd = self.order_fd = None
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
        pipes = {"status_fd": os.pipe(), "order_fd": os.pipe()[::-1], "out": os.pipe()}
        if "merge" not in request:
            pipes["err"] = os.pipe()
        if self.session is not None:
            pipes["ask"], pipes["tell"] = os.pipe()[::-1], os.pipe()
        if self.feed or not self.feed_ends:
            pipes["input"] = os.pipe()[::-1]
        theirs = {name: pair[1] for name, pair in pipes.items()}
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            pid = os.fork()
            if not pid:
                places = {0: theirs.get("input", null), 1: theirs["out"], 2: theirs.get("err", theirs["out"])}
                if self.session is not None:
                    places.update({8: theirs["tell"], 9: theirs["ask"]})
                Supervisor(request, theirs["status_fd"], theirs["order_fd"], places).run()
        except OSError as error:  # no process to be had: what earlier commands left behind is in the way
            for pair in pipes.values():
                os.close(pair[0])
            self.status, self.notes = NOT_EXECUTABLE, b"cannot start a process: " + error.strerror.encode()
            self.ended_at, self.session = self.started, None
            return
        finally:
            for fd in (null, *theirs.values()):
                os.close(fd)
        for name, (ours, _) in pipes.items():
            os.set_blocking(ours, False)
            setattr(self, name, ours)
            if name not in ("order_fd", "ask", "input"):
                self.agent.watch(ours, select.POLLIN, self)
        if self.feed:
            self.agent.watch(self.input, select.POLLOUT, self)
        if self.session is not None:
            self.give(request)

    def give(self, request):
        """One more text for a persistent program."""
        self.feed, self.feed_ends = bytearray(request["text"] + b"\0"), False
        self.agent.watch(self.ask, select.POLLOUT, self)

    def pour(self, request):
        """More for the command's standard input."""
        self.feed += request["data"]
        self.feed_ends = "more" not in request
        if self.input is None:
            self.agent.answer(self.number, {"hungry": 1})
        elif self.feed or self.feed_ends:
            self.agent.watch(self.input, select.POLLOUT, self)

    def ready(self, fd):
        if fd == self.status_fd:
            self.read_status()
        elif fd in (self.out, self.err):
            self.read_output(fd)
        elif fd in (self.input, self.ask):
            self.write_input(fd)
        elif fd == self.tell:
            self.read_turn()

    def read_status(self):
        """The command is over, and its supervisor with it."""
        code, _, self.notes = os.read(self.status_fd, 4096).partition(b" ")
        self.status = int(code) if code else 128 + signal.SIGKILL  # no word: the supervisor itself was killed
        self.ended_at = time.monotonic()
        for name in ("status_fd", "order_fd", "ask", "tell", "input"):
            self.drop(name)
        if self.session is not None:
            self.agent.sessions.pop(self.session, None)
            self.session = None

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
        if self.session is not None and not self.timed_out:
            order, self.deadline = b"C", now + 2 * self.grace_s
        else:
            order, self.deadline = b"K%f" % self.grace_s, float("inf")
            self.hard_at = now + self.grace_s + STUBBORN_S + 0.5
        self.timed_out = True
        try:
            os.write(self.order_fd, order)
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


def kill_everything():
    """Everything in the sandbox but the agent; how many are left."""
    if os.getpid() != 1:
        kill_tree()
        return len(descendants())
    deadline = time.monotonic() + STUBBORN_S
    while time.monotonic() < deadline:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        reap()
        if not descendants():
            return 0
        time.sleep(0.002)
    return len(descendants())


class Agent:
    """Reads requests, answers them in any order, until its input ends or its life is over; then kills everything."""

    def __init__(self):
        self.poll = select.poll()
        self.owners = {}
        self.commands = {}  # request number -> Command
        self.sessions = {}
        self.waiting = []  # streams that pause until the answers before them are taken
        self.inbox, self.outbox = bytearray(), bytearray()
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
                    if fd in self.owners:
                        self.owners[fd].ready(fd)
                elif not self.receive():
                    return

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
        if command is not None and command.status_fd is not None:
            command.stop(time.monotonic())

    def do_end(self, number, request):
        command = self.sessions.get(request["session"])
        if command is not None:
            command.timed_out = True  # so that the whole goes, not only its children
            command.stop(time.monotonic())

    def do_killall(self, number, request):
        return {"left": kill_everything()}

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
    global libc
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)  # nobody of the same uid reads our memory or writes our descriptors
    libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir("/")
    try:
        Agent().run()
    finally:
        kill_everything()
        os._exit(0)


if __name__ == "__main__":
    main()
