"""Sandboxes by namespaces, without a daemon: bubblewrap (`bwrap`), the embedded default.

Does not protect from: a bug of the kernel that the agent's code can reach (the kernel is shared; a system-call filter
narrows the way); side channels (time, load, /proc/meminfo show the machine); many small files (the kernel's tmpfs takes
as many as memory holds); and, where control groups cannot be written (`agentgym doctor` says so), memory of several
processes together, which is then limited for each one alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentgym.errors import AgentGymError, ConfigError
from agentgym.sandbox import EngineUnreachable, Limits, Listed, SandboxExhausted, SandboxLost, Spec
from agentgym_sandboxes import cgroups, owners, seccomp
from agentgym_sandboxes.wire import PYTHON, AgentBox, SocketLink, Wire

FIRST_UID = 1_600_000_000  # started by root, each sandbox is a user of the machine that nobody else is
INSIDE = "1000"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHON_CPU_COUNT")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSTALL = "apt-get install bubblewrap"
PASSWD = (
    "root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000:agent:{home}:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
)
GROUP = "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"
HOSTS = "127.0.0.1 localhost sandbox\n::1 localhost\n"

_numbers = itertools.count()  # of this process's sandboxes, whoever makes them


class Bubblewrap:
    """Makes sandboxes with bwrap. The root is this machine's /usr, /bin and /lib*, read-only, with an /etc of our own;
    or a folder that holds a root (`Spec.image`). What it does not protect from: see the module."""

    name = "bubblewrap"

    def __init__(self) -> None:
        self._reaped = False

    async def probe(self) -> str:
        """One line about what is there. Raises EngineUnreachable, naming the cause."""
        program = shutil.which("bwrap")
        if program is None:
            raise EngineUnreachable(f"bubblewrap: there is no program bwrap. Install it: {INSTALL}")
        seccomp.filter_program()
        done = await asyncio.to_thread(
            subprocess.run,
            [*_dropped(0), program, "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "true"],
            capture_output=True, text=True, env={"PATH": os.defpath},
        )  # fmt: skip
        if done.returncode:
            raise EngineUnreachable(f"bubblewrap cannot make namespaces here: {done.stderr.strip()[:300]}")
        limits = "memory, processes and CPU by control groups" if cgroups.available() else "memory: per process only"
        return f"{program}; {limits}"

    async def start(self, spec: Spec) -> AgentBox:
        if not self._reaped:
            self._reaped = True
            await asyncio.to_thread(self.reap)
        number = next(_numbers)
        _require_possible(spec)
        try:
            group = cgroups.Group(str(number), spec.limits) if cgroups.available() else None
        except OSError as error:
            raise EngineUnreachable(f"bubblewrap: no control group ({error})") from error
        cell = None
        try:
            cell = _Cell(spec, number, group)
            async with asyncio.timeout(spec.limits.start_s):
                return await cell.box(spec, number)
        except TimeoutError:
            raise EngineUnreachable(f"bubblewrap: nothing came up within {spec.limits.start_s} s") from None
        except OSError as error:
            raise EngineUnreachable(f"bubblewrap: {error}") from error
        finally:
            if cell is None or not cell.is_up:
                if cell is not None:
                    await cell.end()
                if group is not None:
                    group.remove()

    def listed(self) -> Sequence[Listed]:
        """By control group; without them a sandbox is only its processes, which die with their owner."""
        return [
            Listed(name, "control group", owner, not owners.is_alive(owner))
            for name in sorted({folder.name for folder in cgroups.groups()})
            for owner in [name.rpartition(":")[0]]
        ]

    def reap(self) -> Sequence[str]:
        return cgroups.reap()


def _require_possible(spec: Spec) -> None:
    if spec.writable or spec.capabilities:
        raise ConfigError("bubblewrap has no writable root and no capabilities to give; use the docker backend")
    if spec.image is not None and not Path(spec.image, "usr").is_dir():
        raise ConfigError(f"bubblewrap: the image {spec.image!r} is no folder with a /usr in it")


def _dropped(number: int) -> list[str]:
    """Root becomes nobody in particular before anything runs: uid 0 outside would still be root inside. By a program,
    since `subprocess` copies all of this process's page tables where it has to change the user itself."""
    if os.geteuid():
        return []
    uid = FIRST_UID + (os.getpid() * 1024 + number) % 500_000_000
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]


class _Cell:
    """One bwrap process, from its birth to its end."""

    def __init__(self, spec: Spec, number: int, group: cgroups.Group | None) -> None:
        self.group = group
        self.is_up = False
        self.child: int | None = None
        ours, theirs = socket.socketpair()
        self.info, info = os.pipe()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        with contextlib.ExitStack() as kept:
            kept.callback(theirs.close)
            kept.callback(os.close, info)
            given = {"seccomp": seccomp.filter_program(), "passwd": PASSWD.format(home=spec.workdir).encode(),
                     "group": GROUP.encode(), "hosts": HOSTS.encode()}  # fmt: skip
            fds = {name: _memory(data, kept) for name, data in given.items()}
            arguments = list(_arguments(spec, fds, info, group))
            fds["arguments"] = _memory(b"".join(os.fsencode(a) + b"\0" for a in arguments), kept)
            self.process = subprocess.Popen(
                [*_dropped(number), "bwrap", "--args", str(fds["arguments"]), *PYTHON],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self.errors,
                env={"PATH": os.defpath}, start_new_session=True, pass_fds=(info, *fds.values()),
            )  # fmt: skip
        self.link = SocketLink(ours)

    async def box(self, spec: Spec, number: int) -> BubblewrapBox:
        info = await asyncio.to_thread(_read_all, self.info)
        if not info:
            raise EngineUnreachable(f"bubblewrap did not start: {self._said()}")
        child = self.child = int(json.loads(info)["child-pid"])
        if self.group is not None:
            self.group.join(child)
        wire = Wire(self.link, self._diagnose)
        hello = await wire.boot(spec.limits, "/run/agentgym-oom" if self.group is not None else "")
        self.is_up = True
        return BubblewrapBox(self, f"bwrap-{self.process.pid}", wire, spec, hello["shell"].decode())

    def _said(self) -> str:
        if self.errors.closed:
            return "it has ended"
        return os.pread(self.errors.fileno(), 2000, 0).decode("utf-8", "replace").strip() or "it said nothing"

    async def _diagnose(self, what: str) -> AgentGymError:
        if self.group is not None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                kills = int(self.group.oom_file.read_text().rpartition("oom_kill ")[2].split()[0])
                if kills and self.process.poll() is not None:
                    return SandboxExhausted("the sandbox was killed for memory")
        return SandboxLost(f"the sandbox is lost: {what}; bwrap: {self._said()}")

    async def end(self) -> None:
        """Both processes, and whatever is below: the namespace dies with its first process."""
        if self.child is None and self.process.poll() is None:  # killed earlier, bwrap would leave its child behind
            with contextlib.suppress(Exception):
                self.child = json.loads(await asyncio.to_thread(_read_all, self.info))["child-pid"]
        for pid in (self.child, self.process.pid):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        while self.process.poll() is None:
            await asyncio.sleep(0.001)
        self.errors.close()
        if self.info >= 0:
            os.close(self.info)
            self.info = -1


class BubblewrapBox(AgentBox):
    def __init__(self, cell: _Cell, id: str, wire: Wire, spec: Spec, shell: str) -> None:
        super().__init__(
            id, wire, spec.limits, workdir=spec.workdir, shell=shell, rlimits=_rlimits(spec.limits, cell.group)
        )
        self.cell = cell

    async def close(self) -> None:
        self.wire.close()
        await self.cell.end()
        if self.cell.group is not None:
            self.cell.group.remove()


def _rlimits(limits: Limits, group: cgroups.Group | None) -> dict[str, int]:
    per_process = {"RLIMIT_FSIZE": limits.file_bytes, "RLIMIT_NOFILE": limits.open_files, "RLIMIT_CORE": 0}
    if group is None:
        per_process |= {"RLIMIT_AS": limits.memory_bytes, "RLIMIT_NPROC": limits.processes}
    return per_process


def _memory(data: bytes, kept: contextlib.ExitStack) -> int:
    fd = os.memfd_create("agentgym")
    kept.callback(os.close, fd)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _read_all(fd: int) -> bytes:
    data = b""
    while more := os.read(fd, 4096):
        data += more
    return data


def _arguments(spec: Spec, fds: dict[str, int], info: int, group: cgroups.Group | None) -> Iterator[str]:
    limits = spec.limits
    yield from ("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session")
    yield from ("--as-pid-1", "--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv")
    if spec.network:
        yield "--share-net"
    inside = "0" if spec.root else INSIDE
    yield from ("--uid", inside, "--gid", inside)
    for name, value in {"PATH": PATH, "HOME": spec.workdir, **surroundings(limits)}.items():
        yield from ("--setenv", name, value)
    yield from _root(spec, fds)
    yield from ("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev")
    yield from ("--size", str(limits.shm_bytes), "--tmpfs", "/dev/shm", "--remount-ro", "/dev")
    yield from ("--size", str(limits.tmp_bytes), "--tmpfs", "/tmp")
    yield from ("--size", str(limits.workspace_bytes), "--tmpfs", spec.workdir)
    if group is not None:
        yield from ("--ro-bind", str(group.oom_file), "/run/agentgym-oom")
    yield from ("--remount-ro", "/", "--chdir", "/", "--seccomp", str(fds["seccomp"]), "--info-fd", str(info))


def _root(spec: Spec, fds: dict[str, int]) -> Iterator[str]:
    """This machine's programs with an /etc of our own, or a folder that holds a whole root."""
    root = Path(spec.image or "/")
    names = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", *(("opt", "srv") if spec.image else ()))
    for name in names:
        path = root / name
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), f"/{name}")
        elif path.is_dir():
            yield from ("--ro-bind", str(path), f"/{name}")
    for name in ("passwd", "group", "hosts"):
        yield from ("--ro-bind-data", str(fds[name]), f"/etc/{name}")
    for name in ("ld.so.cache", "alternatives", "localtime", "python3", "python3.11", "mime.types", "services"):
        if (root / "etc" / name).exists():
            yield from ("--ro-bind", str((root / "etc" / name).resolve()), f"/etc/{name}")


def surroundings(limits: Limits) -> dict[str, str]:
    """What commands should know of their place: how many CPUs they may use, and that nobody sees colours."""
    threads = dict.fromkeys(THREADS, str(max(1, round(limits.cpus))))
    return {"LANG": "C.UTF-8", "TERM": "dumb", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", **threads}
