"""SWE-ReX beside our sandboxes: its client in an environment of its own, its server in an image beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

CACHE = Path.home() / ".cache" / "agentgym" / "peers"
PACKAGES = ("swe-rex", "aiohttp")  # the client imports aiohttp and does not ask for it
CLIENT = """
import asyncio, json, sys, time
from swerex.deployment.docker import DockerDeployment
from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest

async def main(image, count):
    deployment = DockerDeployment(image=image, pull="never", startup_timeout=120)
    await deployment.start()
    try:
        runtime = deployment.runtime
        await runtime.create_session(CreateBashSessionRequest())
        taken = {"SWE-ReX execute": [], "SWE-ReX session": []}
        for _ in range(count + 3):
            start = time.perf_counter()
            await runtime.execute(Command(command=["/bin/true"]))
            taken["SWE-ReX execute"].append(time.perf_counter() - start)
            start = time.perf_counter()
            await runtime.run_in_session(BashAction(command="/bin/true"))
            taken["SWE-ReX session"].append(time.perf_counter() - start)
        print("RESULT", json.dumps({k: v[3:] for k, v in taken.items()}))
    finally:
        await deployment.stop()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


class SweRex:
    """Installs the peer once, under the user's cache; measures it through its own client."""

    def __init__(self, docker: Any) -> None:
        self.folder = CACHE / "swe-rex"
        self.python = self.folder / "bin" / "python"
        if not self.python.exists():
            venv.create(self.folder, with_pip=True)
            subprocess.run([self.python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        self.image = self._image(docker)

    def _image(self, docker: Any) -> str:
        """The default image with the server in it. Its packages are those of this interpreter's version."""
        context = CACHE / "swe-rex-image"
        if not (context / "Dockerfile").exists():
            context.mkdir(parents=True, exist_ok=True)
            version = "3.11"  # of Debian 12's python3
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--target", context / "packages", "--python-version",
                 version, "--only-binary=:all:", *PACKAGES], check=True,
            )  # fmt: skip
            (context / "Dockerfile").write_text(
                f"FROM {docker.default_image()}\nCOPY packages /opt/swerex\nENV PYTHONPATH=/opt/swerex\n"
                "RUN printf '#!/bin/sh\\nexec python3 -m swerex.server \"$@\"\\n' > /usr/local/bin/swerex-remote "
                "&& chmod 755 /usr/local/bin/swerex-remote\n"
            )
        tag = "agentgym-peer/swe-rex:latest"
        docker.client.images.build(path=str(context), tag=tag, rm=True, forcerm=True, network_mode="none")
        return tag

    def measure(self, count: int) -> dict[str, list[float]]:
        done = subprocess.run(
            [self.python, "-c", CLIENT, self.image, str(count)], capture_output=True, text=True, check=False
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise RuntimeError(f"SWE-ReX could not be measured: {done.stderr[-1500:]}")
        return json.loads(lines[0].removeprefix("RESULT "))

    def close(self) -> None:
        """Its deployment has removed its own container."""
