"""The process between the agent and one command: a sub-reaper, so that whatever the command started, daemonised or not,
can be found and killed when its time is over.

Python >= 3.8, standard library only. Owns processes: starting one as asked, finding what descends from it, ending it
all. Output, answers and deadlines are the agent's business."""

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import struct
import time

from agentgym_sandboxes.inside.codec import decode

CHUNK = 1 << 20
STUBBORN_S = 2.0  # what a supervisor gets to kill its tree, over the grace it was given
SET_DUMPABLE, SET_CHILD_SUBREAPER = 4, 36
NOT_FOUND, NOT_EXECUTABLE = 127, 126
LENGTH = struct.Struct("!I")  # before a supervisor's request
BEGUN = b"+"  # said by a supervisor that has its request: from here on a death is the command's doing
FIRST_HIGH = 20  # descriptors below are the command's
libc = ctypes.CDLL(None, use_errno=True)


def hide():
    """Nobody of the same user reads this process's memory or writes its descriptors."""
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)


def adopt():
    """Orphans below this process become its children."""
    libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


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
    """The process between the agent and one command. It is forked before there is a command, so that nobody waits for
    that, and never returns to the agent's code."""

    def __init__(self, status_fd, order_fd, fds):
        """`fds` are the command's: its number -> ours."""
        self.status_fd, self.order_fd, self.fds = status_fd, order_fd, fds
        self.request = {}
        self.main = 0

    def run(self):
        try:
            self.rearrange()
            wake = wake_on_children()
            adopt()
            self.request = self.receive()
            os.write(self.status_fd, BEGUN)
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
        kept = sorted({self.status_fd, self.order_fd, *placed.values()})
        for low, fd in zip([-1, *kept], [*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(low + 1, fd)
        for number, fd in placed.items():
            os.dup2(fd, number, inheritable=True)
            os.close(fd)

    def receive(self):
        """What is to be run; ends this process where the agent wants nothing any more."""
        (length,) = LENGTH.unpack(self.exactly(LENGTH.size))
        return decode(self.exactly(length))[0]

    def exactly(self, count):
        """So many bytes, and none of an order that may follow them."""
        data = b""
        while len(data) < count:
            more = os.read(self.order_fd, count - len(data))
            if not more:
                os._exit(0)
            data += more
        return data

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
        if "input" not in request:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0, inheritable=True)
        if "merge" in request:
            os.dup2(1, 2, inheritable=True)
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
    hide()


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
