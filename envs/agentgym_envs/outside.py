"""A running container as its engine sees it, out of reach of whatever runs inside: what differs from its image, the
image's own programs put back, the whole kept as an image.

What is put back is what a verifier stands on: programs, libraries, the interpreter and its packages. What is taken
away is what would bend them: a preloaded library, hooks of Python's start, a program that hides another."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from agentgym_sandboxes import owners
from agentgym_sandboxes.docker import Docker
from agentgym_sandboxes.images import BASE_LABEL

from agentgym.sandbox import Sandbox

KEPT = "agentgym.kept"
CHANGED, ADDED, REMOVED = 0, 1, 2  # the engine's numbers
COMMANDS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/root/.local/bin")
TRUSTED = (*COMMANDS[:-1], "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib",
           "/usr/libexec", "/opt/agentgym", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
           "/etc/environment", "/etc/profile", "/etc/profile.d", "/etc/bash.bashrc")  # fmt: skip
PROGRAMS = frozenset({  # a verifier's script is made of these; what else a task has the agent build is its work
    "[", "apt", "apt-get", "awk", "basename", "bash", "cat", "chmod", "chown", "cmp", "cp", "curl", "cut", "dash",
    "date", "diff", "dirname", "dpkg", "dpkg-query", "echo", "egrep", "env", "expr", "false", "fgrep", "find", "gawk",
    "git", "grep", "gzip", "head", "id", "kill", "ldconfig", "ln", "ls", "mawk", "mkdir", "mktemp", "mv", "pgrep",
    "pip", "pip3", "pkill", "printf", "ps", "pytest", "python", "python3", "readlink", "realpath", "rm", "rmdir",
    "sed", "sh", "sleep", "sort", "stat", "tail", "tar", "tee", "test", "timeout", "touch", "tr", "true", "uniq",
    "uv", "uvx", "wc", "xargs",
})  # fmt: skip
PACKAGES = frozenset({"_pytest", "pytest", "pluggy", "iniconfig", "packaging", "pygments", "ctrf", "pytest_json_ctrf"})
NEVER_ADDED = {"/etc/ld.so.preload", "/conftest.py", "/pytest.ini", "/.pytest.ini", "/tox.ini", "/setup.cfg",
               "/pyproject.toml", "/setup.py"}  # fmt: skip
HOOKS = {"sitecustomize.py", "usercustomize.py"}
_DIRECTORY, _LINK = 1 << 31, 1 << 27  # of the engine's file modes


@dataclass(frozen=True)
class Change:
    """One path of a container that is not as in its image."""

    path: str
    kind: int  # CHANGED (a folder: something in it), ADDED, REMOVED


async def changes(docker: Docker, sandbox: Sandbox) -> list[Change]:
    """Everything in a started sandbox that differs from its image, sorted by path. Raises SandboxLost."""
    found = await docker.call(docker.client.api.diff, sandbox.id)
    return sorted((Change(entry["Path"], entry["Kind"]) for entry in found or ()), key=lambda change: change.path)


def to_put_back(found: Iterable[Change]) -> list[str]:
    """Paths of the image's own that were changed or removed, among those that a verifier stands on."""
    found = list(found)
    parents = {str(parent) for change in found for parent in PurePosixPath(change.path).parents}
    own = [change for change in found if change.kind != ADDED and _stands_on(change.path)]
    return [change.path for change in own if change.kind == REMOVED or change.path not in parents]


def to_take_away(found: Iterable[Change]) -> list[str]:
    """Paths that were added and would bend what a verifier stands on, but for programs that hide others."""
    taken = []
    for change in found:
        path = PurePosixPath(change.path)
        bends = change.path in NEVER_ADDED or path.name in HOOKS or _below(change.path, ("/etc/ld.so.conf.d",))
        bends = bends or (path.suffix in (".pth", ".pyc") and _below(change.path, (*TRUSTED, "/root/.local/lib")))
        if change.kind == ADDED and bends:
            taken.append(change.path)
    return taken


def hiding(found: Iterable[Change], programs: Iterable[str]) -> list[str]:
    """Added programs that stand before, or in the place of, one of the image of the same name. `programs` are the full
    paths of all there are now."""
    added = {change.path for change in found if change.kind == ADDED}
    own = {PurePosixPath(path).name for path in programs if path not in added and _stands_on(path)}
    inside = (PurePosixPath(path) for path in added)
    hidden = {str(path) for path in inside if str(path.parent) in COMMANDS and path.name in own}
    return sorted(hidden | {path for path in added if path == "/root/.local/bin/env"})


def _stands_on(path: str) -> bool:
    """Whether a verifier stands on this file or folder of an image."""
    parts = PurePosixPath(path).parts
    if str(PurePosixPath(path).parent) in COMMANDS:
        return parts[-1] in PROGRAMS or parts[-1].startswith("python3")
    for name in ("site-packages", "dist-packages"):
        if name in parts[:-1]:
            return parts[parts.index(name) + 1].split("-")[0].lower() in PACKAGES
    return _below(path, TRUSTED)


def _below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


async def restore(docker: Docker, sandbox: Sandbox) -> list[str]:
    """Make the container's programs its image's again; nothing of the agent may run meanwhile. What was done, by path.

    Raises SandboxLost where the container dies of it."""
    found = await changes(docker, sandbox)
    back = to_put_back(found)
    if back:
        async with _pristine(docker, sandbox) as pristine:
            for path in back:
                await docker.call(_put_back, docker.client.api, pristine, sandbox.id, path)
    away = to_take_away(found)
    plain = {"PATH": "/usr/bin:/bin"}  # the image's own again, whatever stands before them
    find = ["find", "-H", *COMMANDS, "-mindepth", "1", "-maxdepth", "1"]
    listed = await sandbox.exec(find, env=plain, output_bytes=1 << 20)
    away += hiding(found, listed.stdout.split("\n"))
    if away:
        await sandbox.exec(["rm", "-rf", "--", *away[:1000]], env=plain)
    return [f"put back {path}" for path in back] + [f"took away {path}" for path in away]


@contextlib.asynccontextmanager
async def _pristine(docker: Docker, sandbox: Sandbox) -> AsyncIterator[str]:
    """A container of the same image that never runs."""
    api = docker.client.api
    image = (await docker.call(api.inspect_container, sandbox.id))["Image"]
    made = await docker.call(api.create_container, image, ["true"], labels=owners.labels(600.0))
    try:
        yield made["Id"]
    finally:
        await docker.call(api.remove_container, made["Id"], force=True, v=True)


def _put_back(api: Any, pristine: str, container: str, path: str) -> None:
    stream, own = api.get_archive(pristine, path)
    if own["mode"] & _DIRECTORY and _is_folder(api, container, path):
        stream.close()
        return  # only something in it changed
    data = b"".join(stream)
    api.put_archive(container, str(PurePosixPath(path).parent), data)


def _is_folder(api: Any, container: str, path: str) -> bool:
    try:
        stream, now = api.get_archive(container, path)
    except Exception:
        return False
    stream.close()
    return bool(now["mode"] & _DIRECTORY) and not now["mode"] & _LINK


async def keep(docker: Docker, sandbox: Sandbox, name: str) -> str:
    """The container as it is, as an image that outlives this run (`agentgym.kept`): its id. Processes are not in it."""
    changes = [f"LABEL {KEPT}={name} {owners.LABEL}= {owners.LABEL}.owner= {owners.LABEL}.expires= {BASE_LABEL}="]
    return (await docker.call(docker.client.api.commit, sandbox.id, changes=changes))["Id"]


async def contents(docker: Docker, sandbox: Sandbox, path: str) -> tuple[int, bytes] | None:
    """Mode and content of a file (of a link: its target; of a folder: nothing), None where it is gone."""
    return await docker.call(_contents, docker.client.api, sandbox.id, path)


def _contents(api: Any, container: str | None, path: str) -> tuple[int, bytes] | None:
    try:
        stream, info = api.get_archive(container, path)
    except Exception:
        return None
    if info["mode"] & _DIRECTORY:
        stream.close()
        return info["mode"], b""
    if info["mode"] & _LINK:
        stream.close()
        return info["mode"], info["linkTarget"].encode()
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        member = tar.next()
        file = tar.extractfile(member) if member is not None and member.isreg() else None
        return info["mode"], file.read() if file is not None else b""
