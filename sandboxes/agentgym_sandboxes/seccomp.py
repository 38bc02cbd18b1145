"""Which system calls a sandbox refuses: one table, as Docker's profile and as bubblewrap's filter.

Everything is allowed but what is named here: calls that need privileges nobody has inside, that make new namespaces or
mounts, that have been doors into the kernel (bpf, io_uring, keyrings, userfaultfd, perf), sockets of families that a
network namespace does not confine, changes to another process's limits and scheduling (the agent and a judge's next
process have the same user), and System V's and POSIX's kernel objects, which outlive their makers. clone3 is answered
"no such call", so that C libraries fall back to clone, whose flags can be looked at. The set follows what container
engines deny to an unprivileged process (Docker's documentation, "Seccomp security profiles"), and more."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import functools
import json
import os
import tempfile
from typing import Any

from agentgym.errors import ConfigError

DENIED = (
    "acct", "add_key", "bpf", "chroot", "clock_adjtime", "clock_settime", "create_module", "delete_module",
    "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms", "init_module",
    "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load",
    "keyctl", "lookup_dcookie", "mount", "mount_setattr", "move_mount", "move_pages", "nfsservctl",
    "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd", "pivot_root", "process_vm_readv",
    "process_vm_writev", "query_module", "quotactl", "quotactl_fd", "reboot", "request_key", "setns", "settimeofday",
    "swapoff", "swapon", "syslog", "umount2", "unshare", "uselib", "userfaultfd", "ustat", "vhangup",
)  # fmt: skip
# Which of its arguments name a process, 0 being the caller; others are not the caller's to change.
ACROSS = {"prlimit64": (0, 2), "setpriority": (1,), "sched_setaffinity": (0,), "sched_setattr": (0,),
          "sched_setparam": (0,), "sched_setscheduler": (0,), "ioprio_set": (1,), "migrate_pages": (0,)}  # fmt: skip
# A whole group or user at once: setpriority of PRIO_PROCESS and ioprio_set of IOPRIO_WHO_PROCESS only.
ONE_PROCESS = {"setpriority": 0, "ioprio_set": 1}
PR_SCHED_CORE = 62
LASTING = ("mq_open", "msgget", "semget", "shmget")  # objects of the kernel
# A capability that was granted opens the calls that it is for.
OPENED_BY = {"SYS_CHROOT": ("chroot",), "SYS_PTRACE": ("process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd")}
NO_SUCH_CALL = ("clone3",)
NAMESPACE_FLAGS = (0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x00000080)
FAMILIES = (1, 2, 10, 16)  # Unix, IPv4, IPv6, netlink (which libc asks for addresses)
LAST_FAMILY = 46
_NOT_EQUAL, _MASKED_EQUAL, _EQUAL, _GREATER = 1, 7, 4, 6  # SCMP_CMP_*
_ALLOW = 0x7FFF0000


def _rules() -> list[tuple[str, int, tuple[tuple[int, int, int, int], ...]]]:
    """(call, errno, conditions on its arguments: index, comparison, a, b)."""
    rules: list[tuple[str, int, tuple[tuple[int, int, int, int], ...]]] = [(n, errno.EPERM, ()) for n in DENIED]
    rules += [(name, errno.ENOSYS, ()) for name in (*NO_SUCH_CALL, *LASTING)]
    rules += [(n, errno.EPERM, tuple((i, _NOT_EQUAL, 0, 0) for i in indices)) for n, indices in ACROSS.items()]
    rules += [(name, errno.EPERM, ((0, _NOT_EQUAL, which, 0),)) for name, which in ONE_PROCESS.items()]
    rules.append(("prctl", errno.EPERM, ((0, _EQUAL, PR_SCHED_CORE, 0),)))
    rules += [("clone", errno.EPERM, ((0, _MASKED_EQUAL, flag, flag),)) for flag in NAMESPACE_FLAGS]
    for call in ("socket", "socketpair"):
        rules += [
            (call, errno.EAFNOSUPPORT, ((0, _EQUAL, family, 0),))
            for family in range(LAST_FAMILY)
            if family not in FAMILIES
        ]
        rules.append((call, errno.EAFNOSUPPORT, ((0, _GREATER, LAST_FAMILY - 1, 0),)))
    return rules


@functools.cache
def docker_profile(capabilities: tuple[str, ...] = (), writable: bool = False) -> str:
    """The table as the JSON of Docker's `--security-opt seccomp=`, less what the capabilities are for. Where a whole
    system is the task's, with a writable root, lasting objects are too: databases use them."""
    opened = {call for capability in capabilities for call in OPENED_BY.get(capability, ())}
    opened |= set(LASTING) if writable else set()
    names = {
        _NOT_EQUAL: "SCMP_CMP_NE",
        _MASKED_EQUAL: "SCMP_CMP_MASKED_EQ",
        _EQUAL: "SCMP_CMP_EQ",
        _GREATER: "SCMP_CMP_GT",
    }
    calls: list[dict[str, Any]] = []
    for name, number, conditions in _rules():
        if name in opened:
            continue
        arguments = [{"index": index, "op": names[how], "value": a, "valueTwo": b} for index, how, a, b in conditions]
        calls.append({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": number, "args": arguments})
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls})


class _Condition(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@functools.cache
def filter_program() -> bytes:
    """The table as a BPF program, compiled by libseccomp. Raises ConfigError where the machine has no libseccomp."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2")
    except OSError:
        raise ConfigError("bubblewrap needs libseccomp to filter system calls: apt-get install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    try:
        for name, number, conditions in _rules():
            call = library.seccomp_syscall_resolve_name(name.encode())
            if call < 0:  # this machine has no such call
                continue
            array = (_Condition * max(1, len(conditions)))(*(_Condition(*c) for c in conditions))
            action = ctypes.c_uint32(0x00050000 | number)
            code = library.seccomp_rule_add_array(context, action, call, ctypes.c_uint(len(conditions)), array)
            if code:
                raise ConfigError(
                    f"libseccomp refuses the rule for {name} (error {-code}); is it version 2.4 or newer?"
                )
        with tempfile.TemporaryFile() as file:
            library.seccomp_export_bpf(context, file.fileno())
            return os.pread(file.fileno(), 1 << 20, 0)
    finally:
        library.seccomp_release(context)
