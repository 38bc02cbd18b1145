"""Sandboxes in Docker containers: the engine makes and removes them, the agent inside runs the commands.

Does not protect from: a bug of the kernel that the agent's code can reach (the kernel is shared; `runtime="runsc"`
puts gVisor between); side channels (time, load, /proc/meminfo show the machine); disk bandwidth; with
`Spec(writable=True)`, a full disk of the engine; and from whoever else may talk to the engine, who is root there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests.exceptions
import urllib3.exceptions
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import LogConfig, Mount, Ulimit

from agentgym.errors import AgentGymError, ConfigError
from agentgym.sandbox import MIB, EngineUnreachable, Listed, SandboxExhausted, SandboxLost, Spec
from agentgym_sandboxes import hosts, owners, seccomp
from agentgym_sandboxes.bubblewrap import surroundings
from agentgym_sandboxes.docker_exec import ExecBox
from agentgym_sandboxes.images import Images
from agentgym_sandboxes.recipes import Debootstrap, Dockerfile, Root
from agentgym_sandboxes.wire import PYTHON, AgentBox, SocketLink, Wire

USER = "1000:1000"
STARTS = 6  # the engine starts six to ten a second, however many ask
BASE_LABEL, BASE = "agentgym.base=1", "agentgym/base:"
COMMON_IMAGE = "python:3.12-slim"
CALL_S = 120
BUILD_S = 3600.0
HEADER = struct.Struct(">BxxxI")  # of the engine's multiplexed stream
KILLED = ("137", "143")  # exit codes
T = TypeVar("T")


class Docker:
    """Makes sandboxes with a Docker engine: the one of DOCKER_HOST, or this machine's. `image` is the default image,
    `runtime` another container runtime ("runsc" for gVisor). What it does not protect from: see the module."""

    name = "docker"

    def __init__(self, image: str | None = None, runtime: str | None = None) -> None:
        self.image = image
        self.runtime = runtime
        self._client: docker.DockerClient | None = None
        self._lock = threading.Lock()
        self._starting = asyncio.Semaphore(STARTS)
        self._pool = ThreadPoolExecutor(STARTS * 2, thread_name_prefix="agentgym-docker")
        self._without_python: set[str] = set()
        self._default: str | None = None
        self._hosts: Mount | None = None
        self._hosts_known = False
        self._reaped = False

    @property
    def client(self) -> docker.DockerClient:
        """Raises EngineUnreachable with the way to start an engine."""
        with self._lock:
            if self._client is None:
                with _engine_errors():
                    client = docker.DockerClient.from_env(timeout=CALL_S, max_pool_size=64)
                    client.ping()
                    self._client = client
            return self._client

    def __deepcopy__(self, memo: dict[int, Any]) -> Docker:
        return self  # one engine: what is copied of an environment is its sandbox

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """One call of the SDK, in a thread, its errors in our words."""

        def ask() -> T:
            with _engine_errors():
                return function(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._pool, ask)

    async def probe(self) -> str:
        """One line about the engine. Raises EngineUnreachable, naming the cause."""

        def ask() -> str:
            version = self.client.version()
            return f"Docker engine {version['Version']} at {self.client.api.base_url}"

        return await self.call(ask)

    def hosts(self, image: str, anew: bool = False) -> Mount | None:
        """Of /etc/hosts, for containers without an engine's network; None where there can be none."""
        api = self.client.api
        with self._lock:
            if anew or not self._hosts_known:
                self._hosts, self._hosts_known = hosts.mount(api, image), True
            return self._hosts

    def default_image(self) -> str:
        """The image of a Spec that names none. Raises ConfigError with the ways to get one."""
        if self.image is not None:
            return self.image
        own = self.client.api.images(filters={"label": BASE_LABEL})
        for image in sorted(own, key=lambda i: -i["Created"]):
            for tag in image["RepoTags"] or ():
                if tag.startswith(BASE):  # images built on a base have its label too
                    return tag
        if self.client.api.images(COMMON_IMAGE):
            return COMMON_IMAGE
        raise ConfigError(
            "there is no image for sandboxes yet: make one with `agentgym sandbox build --debootstrap bookworm`, or "
            f"`docker pull {COMMON_IMAGE}`, or name one (--image)"
        )

    async def start(self, spec: Spec) -> AgentBox | ExecBox:
        if not self._reaped:
            self._reaped = True
            await self.call(self.reap)
        image = spec.image or self._default
        if image is None:  # one per run, whatever is built meanwhile
            image = self._default = await self.call(self.default_image)
        async with asyncio.timeout(spec.limits.start_s):
            if image not in self._without_python:
                try:
                    return await self._start_agent(image, spec)
                except _NoPython:
                    self._without_python.add(image)
            return await self._start_plain(image, spec)

    async def _start_agent(self, image: str, spec: Spec) -> AgentBox:
        container = _Container(self)
        try:
            sock = await self._create(container, image, spec, list(PYTHON))
            link = AttachedLink(sock)
            wire = Wire(link, container.diagnose)
            try:
                hello = await wire.boot(spec.limits)
            except SandboxLost:
                if link.never_spoke and not await container.was_killed():
                    raise _NoPython from None
                raise
            return DockerBox(container, wire, spec, hello["shell"].decode())
        except BaseException:
            await asyncio.shield(container.remove())
            raise

    async def _create(self, container: _Container, *how: Any) -> Any:
        """A thread does it, and goes on where its caller gives up: then it is waited for, so that it can be undone."""
        async with self._starting:
            making = asyncio.ensure_future(self.call(container.create, *how))
            try:
                return await asyncio.shield(making)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):
                    if (sock := await making) is not None:
                        sock.close()
                raise

    async def _start_plain(self, image: str, spec: Spec) -> ExecBox:
        container = _Container(self)
        try:
            await self._create(container, image, spec, ["sleep", str(int(spec.limits.life_s))], False)
            return await ExecBox.on(container, spec)
        except BaseException:
            await asyncio.shield(container.remove())
            raise

    async def build(
        self,
        name: str,
        source: Path | None = None,
        *,
        debootstrap: str | None = None,
        include: Sequence[str] = (),
        base_map: Mapping[str, str] | None = None,
        network: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> str:
        """The tag of an image made once per content: of a folder with a Dockerfile, of a root (a folder or a tar), or
        of a Debian suite by debootstrap, with the packages of `include`. Raises what `Images.build` raises."""
        if debootstrap is not None:
            recipe = Debootstrap(debootstrap, tuple(include))
        elif source is not None and (source / "Dockerfile").is_file():
            recipe = Dockerfile(source)
        elif source is not None and source.exists():
            recipe = Root(source)
        else:
            raise ConfigError(f"{source} is neither a folder nor a tar to build an image of")
        return await Images(self, base_map, network=network, tell=tell).build(name, recipe, timeout_s=BUILD_S)

    def listed(self) -> Sequence[Listed]:
        """Containers, and images that a run keeps for itself."""
        api = self.client.api
        with _engine_errors():
            containers = api.containers(all=True, filters={"label": f"{owners.LABEL}=1"})
            images = api.images(filters={"label": f"{owners.LABEL}.owner"})
        return [
            Listed(
                one["Id"].removeprefix("sha256:"),
                kind,
                owners.owner_in(one["Labels"]),
                owners.is_left_over(one["Labels"]),
            )
            for kind, found in (("container", containers), ("image", images))
            for one in found
            if one.get("State") != "removing"  # on its way, or only in the engine's memory
        ]

    def reap(self) -> Sequence[str]:
        """Remove what dead runs left on this engine, and nothing else: what was removed."""
        removed = []
        for left in filter(lambda listed: listed.is_left_over, self.listed()):
            with contextlib.suppress(APIError):
                if left.kind == "container":
                    self.client.api.remove_container(left.id, force=True, v=True)
                else:
                    self.client.api.remove_image(left.id, force=True)
                removed.append(f"{left.kind} {left.id[:12]}")
        return removed


class _NoPython(Exception):
    """The image has no python3 of 3.8 or newer."""


@contextlib.contextmanager
def _engine_errors() -> Any:
    """The SDK's and its HTTP library's errors as ours: engine gone, sandbox gone, or a setting refused."""
    try:
        yield
    except ImageNotFound as error:
        raise ConfigError(
            f"the engine has no image {_said(error)}: pull it, build it (`agentgym sandbox build`), or map it to one "
            "that is here (--base-map)"
        ) from error
    except NotFound as error:
        raise SandboxLost(f"the container is gone: {_said(error)}") from error
    except APIError as error:
        said = _said(error)
        if "executable file not found" in said or "no such file or directory" in said:
            raise _NoPython from error
        if error.status_code is not None and error.status_code < 500 and error.status_code != 409:
            raise ConfigError(f"the engine refuses: {said}") from error
        raise SandboxLost(f"the engine says: {said}") from error
    except (DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise EngineUnreachable(
            f"no Docker engine answers ({str(error)[:200]}). Start it (`sudo systemctl start docker`, or "
            "`sudo dockerd &`), point DOCKER_HOST at one, or use the bubblewrap backend"
        ) from error


def _said(error: APIError) -> str:
    return str(error.explanation or error)[:500]


class _Container:
    """One container, from its creation to its removal."""

    def __init__(self, backend: Docker) -> None:
        self.backend = backend
        self.id = ""
        self.made_s = time.time()

    @property
    def api(self) -> Any:
        return self.backend.client.api

    def create(self, image: str, spec: Spec, command: list[str], attach: bool = True) -> socket.socket | None:
        """Create, attach before the start so that nothing is missed, and start."""
        # Its own empty network, from the kernel or from the engine: the second is slow, and writes an /etc/hosts.
        hosts = None if spec.network or spec.writable else self.backend.hosts(image)
        try:
            made = self._made(image, spec, command, attach, hosts)
        except APIError as error:
            if hosts is None or "bind source path" not in str(error):
                raise
            made = self._made(image, spec, command, attach, self.backend.hosts(image, anew=True))  # somebody removed it
        self.id = made["Id"]
        sock = None
        if attach:
            sock = self.api.attach_socket(self.id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        self.api.start(self.id)
        return sock

    def _made(self, image: str, spec: Spec, command: list[str], attach: bool, hosts: Mount | None) -> dict[str, Any]:
        settings = _settings(self.api, spec, self.backend.runtime, hosts)
        return self.api.create_container(
            image, command, entrypoint=[], stdin_open=attach, tty=False, hostname="sandbox", working_dir="/",
            user="0:0" if spec.root else USER, labels=owners.labels(spec.limits.life_s), host_config=settings,
            environment={"HOME": "/root" if spec.root else spec.workdir, **surroundings(spec.limits)},
            network_disabled=hosts is not None,
        )  # fmt: skip

    async def inspect(self) -> dict[str, Any] | None:
        try:
            return await self.backend.call(self.api.inspect_container, self.id)
        except SandboxLost:
            return None

    async def was_killed(self) -> bool:
        """Whether its first process was ended from outside. The engine tells it even of a container that is gone."""

        def code() -> str | None:
            asked = {"container": self.id, "event": "die"}
            told = self.api.events(since=int(self.made_s), until=int(time.time()) + 2, filters=asked, decode=True)
            with contextlib.closing(told):
                return next((event["Actor"]["Attributes"]["exitCode"] for event in told), None)

        return await self.backend.call(code) in (None, *KILLED)

    async def diagnose(self, what: str) -> AgentGymError:
        try:
            found = await self.inspect()
        except EngineUnreachable as error:
            return error
        if found is None:
            return SandboxLost(f"the sandbox is lost: {what}; its container was removed")
        state = found["State"]
        if state.get("OOMKilled"):
            return SandboxExhausted("the sandbox was killed for memory; give it more (Limits.memory_bytes)")
        return SandboxLost(f"the sandbox is lost: {what}; its container is {state['Status']} ({state['ExitCode']})")

    async def remove(self) -> None:
        """Gone when this returns; quiet where it already is."""
        if not self.id:
            return
        for _ in range(100):
            try:
                await self.backend.call(self.api.remove_container, self.id, force=True, v=True)
            except SandboxLost as error:
                if "is already in progress" not in str(error):
                    return
                await asyncio.sleep(0.02)
            except AgentGymError:
                return
            else:
                return


def _settings(api: Any, spec: Spec, runtime: str | None, hosts: Mount | None) -> Any:
    limits = spec.limits
    owner = "" if spec.root else "uid=1000,gid=1000,"

    def memory_disk(size: int, mode: str) -> str:
        return f"exec,nosuid,nodev,size={size},nr_inodes={limits.num_files},{owner}mode={mode}"

    # The engine's own /dev/shm would be mounted twice: outside, for others to join, and inside.
    tmpfs = {
        "/dev/shm": f"nosuid,nodev,noexec,size={max(limits.shm_bytes, MIB)},nr_inodes={limits.num_files},mode=1777"
    }
    if not spec.writable:
        tmpfs |= {
            "/tmp": memory_disk(limits.tmp_bytes, "1777"),
            spec.workdir: memory_disk(limits.workspace_bytes, "755"),
        }
    closed = ["no-new-privileges"] if not spec.capabilities else []
    return api.create_host_config(
        network_mode="bridge" if spec.network else "none",
        dns=None if spec.network else ["127.0.0.1"],
        mounts=None if hosts is None else [hosts],
        cap_drop=["ALL"],
        cap_add=list(spec.capabilities) or None,
        security_opt=[*closed, f"seccomp={seccomp.docker_profile(spec.capabilities, spec.writable)}"],
        read_only=not spec.writable,
        tmpfs=tmpfs,
        ipc_mode="none",
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,
        nano_cpus=int(limits.cpus * 1e9),
        pids_limit=limits.processes,
        ulimits=[
            Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files),
            Ulimit(name="fsize", soft=limits.file_bytes, hard=limits.file_bytes),
            Ulimit(name="core", soft=0, hard=0),
        ],
        log_config=LogConfig(type="none"),
        auto_remove=True,
        runtime=runtime,
    )


class AttachedLink(SocketLink):
    """A container's attached streams: input as it is, output in the engine's frames (Docker API, "attach")."""

    def __init__(self, attached: Any) -> None:
        self._outer = attached  # the response; closing only its socket would leave it open
        super().__init__(getattr(attached, "_sock", attached))
        self._inbox = bytearray()
        self.never_spoke = True

    async def receive(self) -> bytes:
        while True:
            out = bytearray()
            while len(self._inbox) >= HEADER.size:
                stream, length = HEADER.unpack_from(self._inbox)
                end = HEADER.size + length
                if len(self._inbox) < end:
                    break
                if stream == 1:
                    out += self._inbox[HEADER.size : end]
                del self._inbox[:end]
            if out:
                self.never_spoke = False
                return bytes(out)
            data = await super().receive()
            if not data:
                return b""
            self._inbox += data

    def close(self) -> None:
        super().close()
        with contextlib.suppress(OSError):
            self._outer.close()


class DockerBox(AgentBox):
    def __init__(self, container: _Container, wire: Wire, spec: Spec, shell: str) -> None:
        super().__init__(container.id, wire, spec.limits, workdir=spec.workdir, shell=shell, rlimits={})
        self.container = container

    async def commit(self) -> str | None:
        """An image of the container as it is; it is this run's, and goes with it."""
        made = owners.labels(self.limits.life_s)
        changes = [f"LABEL {name}={value}" for name, value in made.items()]
        found = await self.container.backend.call(self.container.api.commit, self.id, changes=changes)
        return found["Id"]

    async def close(self) -> None:
        self.wire.close()
        await self.container.remove()
