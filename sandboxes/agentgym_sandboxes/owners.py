"""Whose is it: labels on what a sandbox leaves on the machine, and whether their owner still lives.

An owner is a process of one boot: boot id, process id and start time, so that a number used again is nobody's."""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

LABEL = "agentgym"


@functools.cache
def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def started_at(pid: int) -> str | None:
    """The kernel's start time of a process, in ticks since boot; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


@functools.cache
def _run_of(pid: int) -> str:
    return uuid.uuid4().hex


def owner() -> str:
    pid = os.getpid()
    return f"{boot_id()}:{pid}:{started_at(pid)}"


def is_alive(owner: str) -> bool:
    """Whether the process of that name runs. One of another boot of this machine, or of another machine, does not,
    as far as can be seen from here: only its expiry frees what it left."""
    boot, _, rest = owner.partition(":")
    pid, _, start = rest.partition(":")
    return boot == boot_id() and pid.isdigit() and started_at(int(pid)) == start


def labels(life_s: float) -> dict[str, str]:
    return {
        LABEL: "1",
        f"{LABEL}.run": _run_of(os.getpid()),
        f"{LABEL}.owner": owner(),
        f"{LABEL}.expires": str(int(time.time() + life_s)),
    }


def owner_in(labels: Mapping[str, str]) -> str:
    return labels.get(f"{LABEL}.owner", "")


def is_left_over(labels: Mapping[str, str]) -> bool:
    """Ours, and of nobody who lives: its owner died on this boot, or its time is over."""
    if labels.get(LABEL) != "1":
        return False
    name = owner_in(labels)
    if name.partition(":")[0] == boot_id() and not is_alive(name):
        return True
    expires = labels.get(f"{LABEL}.expires", "")
    return expires.isdigit() and int(expires) < time.time()
