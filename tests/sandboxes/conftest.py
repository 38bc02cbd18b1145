"""Real sandboxes. Where CI is set, a missing engine fails the tests; elsewhere it skips them."""

from __future__ import annotations

import contextlib
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentgym.sandbox import Backend, Limits, Sandbox, Spec

BUSYBOX = "agentgym-test/busybox"
OUTER_PROCESSES = 4000  # what all sandboxes of a test together may start, whatever they are limited to


@pytest.fixture(scope="session", autouse=True)
def outer_limit() -> None:
    """Fork bombs run under a limit that does not come from the sandbox."""
    for name in ("docker", "agentgym"):
        for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
            with contextlib.suppress(OSError):
                Path(root, name).mkdir(exist_ok=True)
                Path(root, name, "pids.max").write_text(str(OUTER_PROCESSES))


@pytest.fixture(scope="session", params=["bubblewrap", "docker"])
def isolating(request: pytest.FixtureRequest, working: Callable[[str], Backend]) -> Backend:
    return working(request.param)


@pytest.fixture
def opened(isolating) -> Iterator[Callable[..., Sandbox]]:
    """Opens sandboxes; afterwards they are closed."""
    made: list[Sandbox] = []

    def open(**spec) -> Sandbox:
        made.append(Sandbox(isolating, Spec(**spec)))
        return made[-1]

    yield open
    for sandbox in made:
        sandbox.sync.close()


@pytest.fixture
def sandbox(opened) -> Sandbox:
    """A small one: 512 MiB, 64 processes."""
    return opened(limits=Limits(memory_bytes=512 << 20, processes=64))


@pytest.fixture(scope="session")
def busybox_image(docker_backend) -> str:
    """An image without Python, made of the one static program."""
    client = docker_backend.client
    if not client.api.images(BUSYBOX):
        program = subprocess.run(["which", "busybox"], capture_output=True, text=True).stdout.strip()
        if not program:
            pytest.fail("busybox is missing: apt-get install busybox-static")
        names = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "root")
            for name in ("bin", "tmp", "etc", "proc", "sys", "dev", "workspace"):
                (root / name).mkdir(parents=True)
            (root / "bin/busybox").write_bytes(Path(program).read_bytes())
            (root / "bin/busybox").chmod(0o755)
            for name in names:
                if name != "busybox":
                    (root / "bin" / name).symlink_to("busybox")
            with tarfile.open(Path(folder, "root.tar"), "w") as tar:
                tar.add(root, ".")
            client.api.import_image_from_file(str(Path(folder, "root.tar")), repository=BUSYBOX)
    return BUSYBOX
