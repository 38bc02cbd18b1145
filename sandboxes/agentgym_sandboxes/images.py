"""Images, each built once per content: `await Images(docker).build("task-7", Dockerfile(folder))` gives its tag.

Owns the tag (`agentgym/<name>:<hash of recipe, files, base image and builder>`), the lock under which one process
builds and the others wait, the network switch, and that a failed build leaves nothing. The image is a cache, not a
run's: its label is none that the reaper looks for."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests.exceptions
import urllib3.exceptions
from docker.errors import APIError

from agentgym.errors import ConfigError, InfrastructureError, TaskError
from agentgym_sandboxes import recipes
from agentgym_sandboxes.recipes import Debootstrap, Dockerfile, Root

if TYPE_CHECKING:
    from agentgym_sandboxes.docker import Docker  # which builds through this module

LABEL = "agentgym.image"  # its value is the recipe's name
BASE_LABEL = "agentgym.base"
STRIPES = 16  # lock files; two builds wait for one another by chance only
_NAME = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*")
_LAYER = re.compile(r"^ ---> ([0-9a-f]{12})\s*$")
_RUNNING = re.compile(r"^ ---> Running in ([0-9a-f]{12})")
_MIRROR = re.compile(r"^(?:deb\s+(?:\[[^\]]*\]\s+)?|URIs:\s*)(https?://\S+/debian/?)(?:\s|$)", re.MULTILINE)
Recipe = Dockerfile | Root | Debootstrap


class Images:
    """Builds on one engine. `base_map` says which local image a FROM means (names, or patterns as in `python:3.13*`);
    `network=True` lets the build's commands reach the network and the engine pull what is missing."""

    def __init__(
        self,
        docker: Docker,
        base_map: Mapping[str, str] | None = None,
        *,
        network: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.docker = docker
        self.base_map = dict(base_map or {})
        self.network = network
        self.tell = tell

    async def build(self, name: str, recipe: Recipe, *, timeout_s: float = 600.0) -> str:
        """The tag of the recipe's image, built where it is not there. Raises ConfigError for a base image that is not
        here, TaskError for a Dockerfile that fails, InfrastructureError past the time, EngineUnreachable."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of an image; use lower-case letters, digits and - between them")
        if isinstance(recipe, Dockerfile):
            return await self._from_dockerfile(name, recipe, timeout_s)
        parts = tuple(recipes.root_parts(recipe.path)) if isinstance(recipe, Root) else (repr(recipe),)
        tag = f"agentgym/{name}:{recipes.digest(*parts)}"
        await self.docker.call(self._imported, tag, recipe)
        return tag

    async def _from_dockerfile(self, name: str, recipe: Dockerfile, timeout_s: float) -> str:
        text = recipe.text()
        names = recipes.bases(text)
        wanted = {base: recipes.mapped(base, self.base_map) or base for base in names}
        found = {base: await self.docker.call(self._image_id, image) for base, image in wanted.items()}
        if not self.network:
            recipes.required(names, found, recipe.path, self.base_map)
        packed = recipes.context(recipe, recipes.rebased(text, wanted))
        digest = recipes.digest(packed, json.dumps(found, sort_keys=True), str(self.network))
        tag = f"agentgym/{name}:{digest}"
        await self.docker.call(self._built, tag, packed, recipe, timeout_s)
        return tag

    def _image_id(self, image: str) -> str | None:
        found = self.docker.client.api.images(image)
        return found[0]["Id"] if found else None

    # -- from a Dockerfile -----------------------------------------------------------------------------------------

    def _built(self, tag: str, packed: bytes, recipe: Dockerfile, timeout_s: float) -> None:
        if self._image_id(tag) is not None:
            return
        with _lock(tag):
            if self._image_id(tag) is None:
                self.tell(f"{tag}: building {recipe.path}")
                self._make(tag, packed, recipe, timeout_s)

    def _make(self, tag: str, packed: bytes, recipe: Dockerfile, timeout_s: float) -> None:
        ends, steps = time.monotonic() + timeout_s, _Steps()
        with tempfile.TemporaryFile() as file:
            file.write(packed)
            file.seek(0)
            said = self.docker.client.api.build(
                fileobj=file, custom_context=True, dockerfile=recipe.name, tag=tag, rm=True, forcerm=True, decode=True,
                pull=False, network_mode="default" if self.network else "none", timeout=max(1, int(timeout_s)),
                labels={LABEL: tag.partition(":")[0].removeprefix("agentgym/"), BASE_LABEL: ""},  # never the default
            )  # fmt: skip
            try:
                for line in said:
                    steps.add(line, self.tell, tag)
                    if time.monotonic() > ends:
                        break
            except (requests.exceptions.ConnectionError, urllib3.exceptions.ReadTimeoutError):
                if time.monotonic() < ends - 1:
                    raise
            finally:
                said.close()  # the engine stops a build that nobody listens to
        if not steps.error and self._image_id(tag) is not None:
            return
        self._forget(steps)
        if time.monotonic() > ends - 1:
            raise InfrastructureError(f"{recipe.path}: the build took longer than {timeout_s:g} s; allow more time")
        raise TaskError(f"{recipe.path}: {steps.now} failed: {steps.error or 'no image came of it'}\n{steps.tail()}")

    def _forget(self, steps: _Steps) -> None:
        """Remove the container of the last step, and the images between, last first; what others share stays."""
        api = self.docker.client.api
        if steps.container:
            with contextlib.suppress(APIError):
                api.remove_container(steps.container, force=True, v=True)
        for layer in reversed(steps.layers):
            with contextlib.suppress(APIError):
                if not api.inspect_image(layer)["RepoTags"]:
                    api.remove_image(layer)

    # -- from a root -----------------------------------------------------------------------------------------------

    def _imported(self, tag: str, recipe: Root | Debootstrap) -> None:
        if self._image_id(tag) is not None:
            return
        with _lock(tag), contextlib.ExitStack() as kept:
            if self._image_id(tag) is not None:
                return
            if isinstance(recipe, Debootstrap):
                folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="agentgym-debootstrap-")))
                self.tell(f"{tag}: debootstrap {recipe.suite}")
                debootstrap(recipe, folder)
            else:
                folder = recipe.path
            self.tell(f"{tag}: importing {folder}")
            repository, _, version = tag.partition(":")
            stream = kept.enter_context(_tar_stream(folder))
            changes = [f"LABEL {LABEL}={repository.removeprefix('agentgym/')} {BASE_LABEL}=1"]
            pieces = iter(lambda: stream.read(1 << 20), b"")  # without a length, so that it goes in chunks
            said = self.docker.client.api.import_image_from_stream(pieces, repository, version, changes=changes)
            if "error" in str(said):
                raise ConfigError(f"{folder}: the engine takes no image from it: {str(said)[-500:]}")


class _Steps:
    """What a build says: the step it is at, the images between, an error, its last lines."""

    def __init__(self) -> None:
        self.now = "the build"
        self.error = ""
        self.layers: list[str] = []
        self.container = ""
        self._lines: list[str] = []

    def add(self, line: Mapping[str, Any], tell: Callable[[str], None], tag: str) -> None:
        self.error = self.error or str(line.get("error", ""))
        text = line.get("stream", "")
        if (layer := _LAYER.match(text)) is not None:
            self.layers.append(layer[1])
        elif (running := _RUNNING.match(text)) is not None:
            self.container = running[1]
        elif text.startswith("Step "):
            self.now = text.strip()
            tell(f"{tag}: {self.now}")
        elif text.strip():
            self._lines = [*self._lines[-40:], text.rstrip()]

    def tail(self) -> str:
        return "\n".join(self._lines)[-2000:]


@contextlib.contextmanager
def _lock(tag: str) -> Iterator[None]:
    """One builder of a tag at a time, over all processes of this user."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "agentgym", "locks")
    home.mkdir(parents=True, exist_ok=True)
    number = int(recipes.digest(tag), 16) % STRIPES
    with (home / f"images-{number}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _tar_stream(path: Path) -> Iterator[Any]:
    if path.is_file():
        with path.open("rb") as file:
            yield file
        return
    made = subprocess.Popen(
        ["tar", "-C", str(path), "--numeric-owner", "--sort=name", "-c", "."], stdout=subprocess.PIPE
    )
    try:
        yield made.stdout
    finally:
        made.kill()
        made.wait()
        if made.stdout is not None:
            made.stdout.close()


def debootstrap(recipe: Debootstrap, folder: Path) -> None:
    """Lay a Debian suite out in a folder, with the user that sandboxes have. Needs root. Raises ConfigError."""
    program = shutil.which("debootstrap")
    if program is None:
        raise ConfigError("there is no program debootstrap; install it: apt-get install debootstrap")
    command = [program, "--variant=minbase", f"--include={','.join(recipe.include)}", recipe.suite, str(folder)]
    mirror = recipe.mirror or apt_mirror()
    done = subprocess.run([*command, *([mirror] if mirror else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"debootstrap {recipe.suite} failed: {(done.stdout + done.stderr)[-1000:]}")
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*"):
        for path in folder.glob(pattern):
            path.unlink()
    subprocess.run(["useradd", "-R", str(folder), "-u", "1000", "-m", "agent"], capture_output=True, check=False)


def apt_mirror() -> str | None:
    """The address that this machine's own apt takes Debian from; None where it does not say."""
    home = Path("/etc/apt")
    for pattern in ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"):
        for path in sorted(home.glob(pattern)):
            if (found := _MIRROR.search(path.read_text())) is not None:
                return found[1]
    return None
