"""Control groups of our own, where this process may make them: memory, processes and CPU of a whole sandbox.

Version 1 (a folder in each controller) and version 2 (one folder). Where neither can be written, limits are per
process only, and `doctor` says so."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from agentgym.sandbox import Limits
from agentgym_sandboxes import owners

ROOT = Path("/sys/fs/cgroup")
PARENT = "agentgym"
PERIOD_US = 100_000


def _controllers() -> dict[str, Path]:
    """Controller -> the folder in which groups are made. All the same folder in version 2."""
    if (ROOT / "cgroup.controllers").exists():
        return {name: ROOT / PARENT for name in ("memory", "pids", "cpu")}
    return {name: ROOT / name / PARENT for name in ("memory", "pids", "cpu") if (ROOT / name).is_dir()}


@functools.cache
def available() -> bool:
    """Whether groups with all three controllers can be made here: tried, not guessed."""
    try:
        group = Group("probe", Limits())
    except OSError:
        return False
    group.remove()
    return True


class Group:
    """One sandbox's group. Raises OSError where it cannot be made."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.folders = {c: folder / f"{owners.owner()}:{name}" for c, folder in _controllers().items()}
        if set(self.folders) != {"memory", "pids", "cpu"}:
            raise OSError("no control groups here")
        self.is_v2 = len(set(self.folders.values())) == 1
        made: list[Path] = []
        try:
            for folder in dict.fromkeys(self.folders.values()):
                folder.parent.mkdir(exist_ok=True)
                if self.is_v2:
                    for parent in (ROOT, folder.parent):
                        (parent / "cgroup.subtree_control").write_text("+memory +pids +cpu")
                folder.mkdir()
                made.append(folder)
            self._limit(limits)
        except OSError:
            for folder in made:  # and none that was there before
                _remove(folder)
            raise

    def _limit(self, limits: Limits) -> None:
        memory, pids, cpu = (self.folders[name] for name in ("memory", "pids", "cpu"))
        quota = int(limits.cpus * PERIOD_US)
        (pids / "pids.max").write_text(str(limits.processes))
        if self.is_v2:
            (memory / "memory.max").write_text(str(limits.memory_bytes))
            with contextlib.suppress(OSError):
                (memory / "memory.swap.max").write_text("0")
            (cpu / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
            with contextlib.suppress(OSError):  # not counted on every kernel
                (memory / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
            (cpu / "cpu.cfs_quota_us").write_text(str(quota))

    @property
    def oom_file(self) -> Path:
        return self.folders["memory"] / ("memory.events" if self.is_v2 else "memory.oom_control")

    def join(self, pid: int) -> None:
        for folder in dict.fromkeys(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        for folder in dict.fromkeys(self.folders.values()):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Kill what is in it, and the folder."""
    for _ in range(200):
        if not folder.exists():
            return
        with contextlib.suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.005)


def groups() -> Iterator[Path]:
    """The folders of all sandboxes' groups on this machine."""
    for parent in dict.fromkeys(_controllers().values()):
        with contextlib.suppress(OSError):
            yield from (folder for folder in parent.iterdir() if folder.is_dir())


def left_over() -> list[Path]:
    """Groups whose owner is dead."""
    return [folder for folder in groups() if not owners.is_alive(folder.name.rpartition(":")[0])]


def reap() -> list[str]:
    found = left_over()
    for folder in found:
        _remove(folder)
    return sorted({folder.name for folder in found})
