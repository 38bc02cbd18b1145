"""The offline image of the terminal tasks: Debian 12, Python 3.13, test tools, and stand-ins for what would download.

    python benchmarks/terminal_image/build.py --python313 /path/to/python3.13 [--tasks DIR ...] [--base IMAGE]

Prints the tag. Packages come from where this machine takes its own (the base image's apt sources, this machine's pip
settings), and only now: the image itself needs no network, and holds no setting of this machine. The same inputs give
the same tag, and a tag that is there is not built again. Raises ConfigError naming what is missing."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agentgym_sandboxes.docker import Docker

from agentgym.errors import ConfigError

HERE = Path(__file__).parent
BUILDER = "2"  # a change of the steps below makes another tag
LABEL = "agentgym.terminal"
BASE = "agentgym/base:test"
NAME = "agentgym/terminal"
PREFIX = "usr/local"
STAND_INS = ("pip", "pip3", "pip3.13", "uv", "uvx", "pytest")
LEFT_OUT = re.compile(
    r"/(site-packages|__pycache__|idlelib|turtledemo|config-3\.13[^/]*)(/|$)|/lib/python3\.13/test(/|$)|\.a$"
)
PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+")
APT_WORDS = re.compile(r"apt(?:-get)?\s+(?:-\S+\s+)*install\s+([^&|;\n]*)")
PIP_WORDS = re.compile(r"pip3?\s+install\s+([^&|;\n]*)|-w\s+(\S+)|--with\s+(\S+)")
OTHERS = {"python3-venv", "install", "update"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python313", type=Path, help="a Python 3.13 interpreter; one of this machine's if not given")
    parser.add_argument("--base", default=BASE, help="a Debian 12 image with apt and python3")
    parser.add_argument("--tasks", type=Path, nargs="*", default=[], help="task folders whose files name more packages")
    parser.add_argument("--network", default="host", help="the engine's network for apt, during the build only")
    parser.add_argument("--name", default=NAME)
    given = parser.parse_args(arguments)
    print(build(given.tasks, python=given.python313, base=given.base, network=given.network, name=given.name))
    return 0


def build(
    tasks: Iterable[Path], *, python: Path | None = None, base: str = BASE, network: str = "host", name: str = NAME
) -> str:
    """The tag of the image, built where it is not there yet."""
    python = python or find_python313()
    prefix = _prefix(python)
    debian, wheels = _lines("packages.txt"), _lines("requirements.txt")
    more_debian, more_wheels = asked_for(tasks)
    more_debian = sorted(set(more_debian) - set(debian))
    more_wheels = sorted(set(more_wheels) - {re.split("[=<>]", line)[0] for line in wheels})
    client = Docker().client
    tag = f"{name}:{_digest(client, base, prefix, [debian, wheels, more_debian, more_wheels])}"
    if client.api.images(tag):
        return tag
    container = client.containers.create(base, ["sleep", "7200"], network_mode=network)
    try:
        container.start()
        _install_debian(container, debian, more_debian)
        _put(container, _python_tar(prefix))
        with tempfile.TemporaryDirectory() as folder:
            _download(python, wheels, more_wheels, Path(folder))
            _put(container, _folder_tar(Path(folder), "tmp/wheels"))
        _install_wheels(container)
        _put(container, _stand_ins())
        _run(
            container,
            "rm -rf /tmp/* /root/.cache; mkdir -p /logs /app; ldconfig; git config --system init.defaultBranch master",
        )
        repository, _, version = tag.rpartition(":")
        container.commit(repository, version, changes=[f"LABEL {LABEL}=1 agentgym.base=", 'CMD ["bash"]'])
    finally:
        container.remove(force=True, v=True)
    return tag


def _lines(name: str) -> list[str]:
    return [line for line in (HERE / name).read_text().splitlines() if line and not line.startswith("#")]


def asked_for(folders: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Debian packages and Python distributions that the files of task folders name; some may be nonsense."""
    debian: set[str] = set()
    wheels: set[str] = set()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.name == "Dockerfile" or path.suffix == ".sh":
                text = path.read_text(errors="replace").replace("\\\n", " ")
                debian.update(word for found in APT_WORDS.findall(text) for word in _names(found))
                wheels.update(word for found in PIP_WORDS.findall(text) for word in _names(" ".join(found)))
    return sorted(debian - OTHERS), sorted(wheels - OTHERS)


def _names(text: str) -> Iterator[str]:
    for word in text.split():
        name = re.split(r"[=<>\[:]", word)[0].strip("'\"").lower()
        if not word.startswith("-") and PACKAGE.fullmatch(name):
            yield name


def find_python313() -> Path:
    """A Python 3.13 that is installed here. Raises ConfigError where there is none."""
    roots = (Path.home() / ".pyenv/versions", Path("/opt"), Path("/usr/local"), Path("/usr"))
    for root in roots:
        for path in sorted([*root.glob("bin/python3.13"), *root.glob("*/bin/python3.13")]):
            if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
                return path
    raise ConfigError("no Python 3.13 was found on this machine; name one with --python313 PATH")


def _prefix(python: Path) -> Path:
    said = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix, *sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    prefix, _, version = said.stdout.strip().partition(" ")
    if said.returncode or version != "3 13":
        raise ConfigError(f"--python313 {python} is no Python 3.13 (it says {said.stdout.strip()!r}); name one")
    return Path(prefix)


def _digest(client: Any, base: str, prefix: Path, lists: list[list[str]]) -> str:
    found = client.api.images(base)
    if not found:
        raise ConfigError(f"--base {base}: the engine has no such image; make one from a debootstrap folder")
    parts = [found[0]["Id"], str(prefix.name), json.dumps(lists), BUILDER]
    parts += [path.read_text() for path in sorted((HERE / "files").iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(container: Any, script: str, *, may_fail: bool = False) -> int:
    code, output = container.exec_run(["sh", "-c", script], environment={"DEBIAN_FRONTEND": "noninteractive"})
    if code and not may_fail:
        raise ConfigError(f"a step of the image failed ({code}): {script[:200]}\n{output.decode()[-2000:]}")
    return code


def _install_debian(container: Any, names: list[str], more: list[str]) -> None:
    _tell(f"{len(names)} Debian packages")
    put = "apt-get install -y --no-install-recommends"
    _run(container, f"apt-get update && {put} {' '.join(names)}")
    for name in more:
        if _run(container, f"{put} {name}", may_fail=True):
            _tell(f"no Debian package {name}: tasks that need it cannot run")
    _run(container, "apt-get clean; rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*; ssh-keygen -A")


def _download(python: Path, names: list[str], more: list[str], folder: Path) -> None:
    """By this machine's pip, with its settings."""
    _tell(f"{len(names)} Python distributions")
    fetch = [python, "-m", "pip", "download", "-qq", "--only-binary", ":all:", "--dest", folder]
    subprocess.run([*fetch, *names], check=True)
    for name in more:
        constraints = HERE / "requirements.txt"
        if subprocess.run([*fetch, "--constraint", constraints, name], capture_output=True, check=False).returncode:
            _tell(f"no distribution {name}: tasks that need it cannot run")


def _install_wheels(container: Any) -> None:
    python = "/usr/local/bin/python3.13"
    _run(container, "for name in python3 python; do ln -sf python3.13 /usr/local/bin/$name; done; ldconfig")
    _run(container, f"{python} -m ensurepip")
    _run(container, f"{python} -m pip install --root-user-action ignore --no-index --no-deps /tmp/wheels/*.whl")
    plugins = (
        "import importlib.metadata as m, json; "
        "print(json.dumps(sorted({e.value for e in m.entry_points(group='pytest11')})))"
    )
    _run(container, f'mkdir -p /opt/agentgym && {python} -I -c "{plugins}" > /opt/agentgym/plugins.json')
    _run(
        container,
        f"rm -f /usr/local/bin/pip* /usr/local/bin/pytest; {python} -m compileall -q /usr/local/lib/python3.13",
        may_fail=True,
    )


def _put(container: Any, tar: bytes) -> None:
    if not container.put_archive("/", tar):
        raise ConfigError("the engine took no files")


def _python_tar(prefix: Path) -> bytes:
    """The interpreter, its library and headers, without the packages that somebody installed into it."""
    _tell(f"Python of {prefix.name}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin/python3.13", "lib/python3.13", "include/python3.13", *_libraries(prefix)):
            tar.add(prefix / name, f"{PREFIX}/{name}", filter=_owned_by_root)
    return buffer.getvalue()


def _libraries(prefix: Path) -> list[str]:
    return [str(path.relative_to(prefix)) for path in sorted((prefix / "lib").glob("libpython3*.so*"))]


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if LEFT_OUT.search(f"/{member.name}"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _folder_tar(folder: Path, at: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, at, filter=_owned_by_root)
    return buffer.getvalue()


def _stand_ins() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("apt-get", "curl", "stand_in.py"):
            data = (HERE / "files" / name).read_bytes()
            place = "opt/agentgym" if name.endswith(".py") else f"{PREFIX}/sbin"
            member = tarfile.TarInfo(f"{place}/{name}")
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
        links = {"apt": "apt-get", **dict.fromkeys(STAND_INS, "/opt/agentgym/stand_in.py")}
        for name, target in links.items():
            member = tarfile.TarInfo(f"{PREFIX}/sbin/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return buffer.getvalue()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
