"""Tars in and out of sandboxes: regular files and folders with relative names, nothing else.

Owns what may be in one. A snapshot's tar is another matter: it goes back where it came from, unread."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from agentgym.errors import ConfigError
from agentgym.sandbox.contract import SandboxFileError


def extracted(tar_bytes: bytes, folder: str) -> dict[str, bytes]:
    """The files of a sandbox's folder by relative name. Raises SandboxFileError naming a link, a device, or a name that
    leaves the folder: what packs it is trusted, what it packs is not."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(tar_bytes), mode="r:") as tar:
        for member in tar:
            name = str(PurePosixPath(member.name))
            if name == "." and member.isdir():
                continue
            _require_inside(name, lambda text: SandboxFileError(folder, 1, text))
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                what = f"it is {_kind(member)}; only files and folders come out"
                raise SandboxFileError(f"{folder}/{name}", 1, what)
            found[name] = cast(Any, tar.extractfile(member)).read()
    return found


def _require_inside(name: str, error: Callable[[str], Exception]) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise error(f"the entry {name!r} is absolute or leaves its folder")


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {"issym": "a symbolic link", "islnk": "a hard link", "ischr": "a device", "isblk": "a device",
             "isfifo": "a FIFO", "issparse": "a sparse file"}  # fmt: skip
    return next((text for test, text in kinds.items() if getattr(member, test)()), "something else")


def of_files(files: Mapping[str, bytes]) -> bytes:
    """A tar of regular files, mode 644, or 755 where they begin with `#!`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            _require_inside(name, ConfigError)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if data[:2] == b"#!" else 0o644
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def of_folder(folder: Path) -> bytes:
    """A tar of a folder of this machine; its links and devices are refused by name."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder to upload")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for path in _walk(folder):
            info = path.lstat()
            if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
                raise ConfigError(f"{path} is neither a file nor a folder: it is not uploaded; leave it out")
            member = tarfile.TarInfo(str(path.relative_to(folder)))
            member.mode = stat.S_IMODE(info.st_mode)
            if path.is_dir():
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = info.st_size
                with path.open("rb") as file:
                    tar.addfile(member, file)
    return buffer.getvalue()


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
