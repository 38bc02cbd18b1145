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

async def main(image):
    deployment = DockerDeployment(image=image, pull="never", startup_timeout=120)
    await deployment.start()
    try:
        runtime = deployment.runtime
        await runtime.create_session(CreateBashSessionRequest())
        ways = {
            "execute": lambda: runtime.execute(Command(command=["/bin/true"])),
            "session": lambda: runtime.run_in_session(BashAction(command="/bin/true")),
        }
        print("RESULT null", flush=True)
        while line := sys.stdin.readline().split():
            taken = []
            for _ in range(int(line[1])):
                start = time.perf_counter()
                await ways[line[0]]()
                taken.append(time.perf_counter() - start)
            print("RESULT", json.dumps(taken), flush=True)
    finally:
        await deployment.stop()

asyncio.run(main(sys.argv[1]))
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

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.python, "-c", CLIENT, self.image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._result()

    def take(self, way: str, count: int) -> list[float]:
        """Seconds of so many commands, one after the other. `way` is execute or session."""
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.write(f"{way} {count}\n")
        self.process.stdin.flush()
        return self._result()

    def _result(self) -> Any:
        assert self.process.stdout is not None  # noqa: S101
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise RuntimeError("SWE-ReX could not be measured: its client ended, see above")

    def close(self) -> None:
        """Its deployment removes its own container."""
        self.process.communicate("")
