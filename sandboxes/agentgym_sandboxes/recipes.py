"""What an image is made of: a Dockerfile with its folder, a root (a folder or a tar), or a debootstrap suite.

Owns reading a recipe, its content hash, and which local image each FROM means. Making the image is images.py's."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from docker.utils.build import exclude_paths

from agentgym.errors import ConfigError, TaskError

BUILDER = "2"  # a change of how images are made makes other tags
MTIME = 1_704_067_200  # of every file of a build: 2024-01-01, so that equal content gives equal layers
_FROM = re.compile(r"^(\s*FROM\s+(?:--platform=\S+\s+)?)(\S+)((?:\s+AS\s+(\S+))?\s*)$", re.IGNORECASE)
_ARG = re.compile(r"^\s*ARG\s+(\w+)=(\S+)\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Dockerfile:
    """A folder with a Dockerfile in it. Raises TaskError naming the file where it cannot be read."""

    folder: Path
    name: str = "Dockerfile"
    left_out: tuple[str, ...] = ()  # entries of the folder that no build may see

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def text(self) -> str:
        try:
            return self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"{self.path}: the Dockerfile cannot be read ({error})") from error

    def files(self) -> Iterator[Path]:
        """What COPY may take, sorted by path; `.dockerignore` is kept to."""
        ignore = self.folder / ".dockerignore"
        patterns = ignore.read_text().splitlines() if ignore.is_file() else []
        kept = exclude_paths(str(self.folder), [p for p in patterns if p.strip()], dockerfile=self.name)
        for name in sorted(kept):
            if Path(name).parts and Path(name).parts[0] in self.left_out:
                continue
            yield self.folder / name


@dataclass(frozen=True)
class Root:
    """A folder that holds a whole root file system, or a tar of one."""

    path: Path


@dataclass(frozen=True)
class Debootstrap:
    """A Debian suite with more packages; `mirror` is apt's own where None."""

    suite: str
    include: tuple[str, ...] = ("python3", "python3-pip", "git", "procps")
    mirror: str | None = None


def mapped(name: str, base_map: Mapping[str, str]) -> str | None:
    """What the map says of an image's name: an entry of its own, else the first pattern (`python:3.13*`) that fits."""
    if name in base_map:
        return base_map[name]
    return next((image for pattern, image in base_map.items() if fnmatch.fnmatchcase(name, pattern)), None)


def bases(text: str) -> list[str]:
    """The images that a Dockerfile's FROM lines name, stages and `scratch` left out, `ARG` defaults put in."""
    stages: set[str] = {"scratch"}
    found: list[str] = []
    for _, name, stage in _froms(text):
        if name not in stages and name not in found:
            found.append(name)
        if stage:
            stages.add(stage)
    return found


def rebased(text: str, images: Mapping[str, str]) -> str:
    """The Dockerfile with every FROM that is in `images` replaced."""
    lines = text.splitlines()
    for number, name, _ in _froms(text):
        if name in images:
            match = _FROM.match(lines[number])
            if match is not None:
                lines[number] = f"{match[1]}{images[name]}{match[3]}"
    return "\n".join(lines) + "\n"


def _froms(text: str) -> Iterator[tuple[int, str, str | None]]:
    arguments: dict[str, str] = {}
    for number, line in enumerate(text.splitlines()):
        if (argument := _ARG.match(line)) is not None:
            arguments[argument[1]] = argument[2].strip("'\"")
        if (match := _FROM.match(line)) is not None:
            name = re.sub(r"\$\{?(\w+)(?::-[^}]*)?\}?", lambda m: arguments.get(m[1], m[0]), match[2])
            yield number, name, match[4]


def context(recipe: Dockerfile, text: str) -> bytes:
    """The tar that the engine builds from, with `text` as its Dockerfile: equal for equal content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for path in recipe.files():
            name = str(path.relative_to(recipe.folder))
            if name != recipe.name:
                _add(tar, path, name)
        data = text.encode()
        member = tarfile.TarInfo(recipe.name)
        member.size, member.mtime = len(data), MTIME
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = path.lstat()
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = stat.S_IMODE(info.st_mode), MTIME
    if stat.S_ISLNK(info.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(member)
    elif stat.S_ISDIR(info.st_mode):
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif stat.S_ISREG(info.st_mode):
        member.size = info.st_size
        with path.open("rb") as file:
            tar.addfile(member, file)
    else:
        raise TaskError(f"{path}: neither a file, a folder nor a link; it cannot go into an image")


def digest(*parts: str | bytes) -> str:
    """First 16 hex digits of the hash of all parts, and of the builder's version."""
    total = hashlib.sha256()
    for part in (BUILDER, *parts):
        data = part.encode() if isinstance(part, str) else part
        total.update(b"%d:" % len(data) + data)
    return total.hexdigest()[:16]


def root_parts(path: Path) -> Iterator[str]:
    """One line per entry of a root: path, mode, owner, and the content's hash. Raises ConfigError where it is none."""
    if path.is_file():
        yield _file_hash(path)
        return
    if not (path / "usr").is_dir():
        raise ConfigError(f"{path} is neither a tar nor a folder with a /usr in it")
    for folder, names, files in os.walk(path):
        names.sort()
        for name in sorted((*files, *names)):
            entry = Path(folder, name)
            info = entry.lstat()
            content = _content(entry, info)
            yield f"{entry.relative_to(path)} {info.st_mode:o} {info.st_uid}:{info.st_gid} {content}"


def _content(path: Path, info: os.stat_result) -> str:
    if stat.S_ISLNK(info.st_mode):
        return os.readlink(path)
    return _file_hash(path) if stat.S_ISREG(info.st_mode) else str(info.st_rdev)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def required(images: Sequence[str], found: Mapping[str, str | None], where: Path, base_map: Mapping[str, str]) -> None:
    """Raises ConfigError for the first base image that is neither here nor mapped."""
    for name in images:
        if found.get(name) is None:
            known = ", ".join(f"{k} -> {v}" for k, v in base_map.items()) or "empty"
            raise ConfigError(
                f"{where}: FROM {name} is neither on this engine nor in the base-image map ({known}). Map it to an "
                f"image that is here: base_map={{{name!r}: 'agentgym/base:test'}} (--base-map {name}=IMAGE)"
            )
