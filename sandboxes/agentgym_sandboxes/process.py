"""No sandbox at all: commands run as this user, on this machine, in a temporary folder. For debugging only.

Protects from nothing: an agent's code reads and deletes whatever you can, uses your network, kills your processes, and
outlives its time-out where it wants to. It exists to step through an environment where neither Docker nor bubblewrap
is; it is never chosen by itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from agentgym.errors import AgentGymError, ConfigError
from agentgym.sandbox import Listed, SandboxLost, Spec
from agentgym_sandboxes.bubblewrap import surroundings
from agentgym_sandboxes.wire import PYTHON, AgentBox, SocketLink, Wire


class Process:
    """Runs commands without isolation. Refuses to be made unless `unsafe=True`. See the module for what that means."""

    name = "process"

    def __init__(self, unsafe: bool = False) -> None:
        if unsafe is not True:
            raise ConfigError(
                "the process backend isolates nothing: an agent's code could do all that you can. Use docker or "
                "bubblewrap; for debugging trusted code only, pass unsafe=True"
            )
        self._numbers = itertools.count()

    async def probe(self) -> str:
        return "no isolation at all"

    async def start(self, spec: Spec) -> ProcessBox:
        if spec.image is not None or spec.root or spec.writable or spec.capabilities:
            raise ConfigError(
                f"the process backend has neither images nor privileges to give: {spec.grants or spec.image}"
            )
        folder = tempfile.mkdtemp(prefix="agentgym-")
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *PYTHON[1:]], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, **surroundings(spec.limits)},
                start_new_session=True,
            )  # fmt: skip

        async def diagnose(what: str) -> AgentGymError:
            return SandboxLost(f"the process is lost: {what}")

        wire = Wire(SocketLink(ours), diagnose)
        box = ProcessBox(process, folder, wire, spec)
        try:
            box.shell = (await wire.boot(spec.limits))["shell"].decode()
        except BaseException:
            await box.close()
            raise
        return box

    def listed(self) -> Sequence[Listed]:
        return ()

    def reap(self) -> Sequence[str]:
        return ()


class ProcessBox(AgentBox):
    def __init__(self, process: subprocess.Popen[bytes], folder: str, wire: Wire, spec: Spec) -> None:
        limits = spec.limits
        rlimits = {"RLIMIT_FSIZE": limits.file_bytes, "RLIMIT_NOFILE": limits.open_files, "RLIMIT_CORE": 0,
                   "RLIMIT_AS": limits.memory_bytes}  # fmt: skip
        super().__init__(f"process-{process.pid}", wire, limits, workdir=folder, shell="/bin/sh", rlimits=rlimits)
        self.process = process

    async def close(self) -> None:
        self.wire.close()  # the agent kills what it started when its input ends
        for _ in range(1000):
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        await asyncio.to_thread(shutil.rmtree, self.workdir, True)
