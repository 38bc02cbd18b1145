"""When the engine is not there, dies in the middle, or refuses: typed errors, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentgym_sandboxes import hosts, owners
from agentgym_sandboxes.docker import Docker, _Container

from agentgym import ConfigError
from agentgym.errors import InfrastructureError
from agentgym.loop import run_sync
from agentgym.sandbox import MIB, EngineUnreachable, Limits, Sandbox, SandboxLost, Spec

SMALL = Spec(limits=Limits(memory_bytes=64 * MIB))


@contextlib.contextmanager
def created(monkeypatch, then) -> Iterator[None]:
    """While it lasts, `then` is done to every container that has just been started."""
    create = _Container.create

    def creating(container, *how):
        attached = create(container, *how)
        then(container)
        return attached

    with monkeypatch.context() as patch:
        patch.setattr(_Container, "create", creating)
        yield


def test_a_container_killed_before_it_speaks_is_lost_and_says_nothing_of_its_image(docker_backend, monkeypatch):
    backend = Docker(docker_backend.default_image())
    with created(monkeypatch, lambda container: container.api.kill(container.id)), pytest.raises(SandboxLost):
        Sandbox(backend, SMALL).sync.start()
    sandbox = Sandbox(backend, SMALL)
    assert sandbox.sync.exec("echo on").carrier == "agent"
    sandbox.sync.close()


def test_a_python_too_old_to_speak_is_as_none(busybox_image, docker_backend):
    api = docker_backend.client.api
    script = "mkdir -p /usr/bin; printf '#!/bin/sh\\nexit 1\\n' > /usr/bin/python3; chmod +x /usr/bin/python3"
    made = api.create_container(busybox_image, ["sh", "-c", script])["Id"]
    api.start(made)
    api.wait(made)
    api.commit(made, "agentgym-test/old-python")
    api.remove_container(made)
    sandbox = Sandbox(Docker("agentgym-test/old-python"), SMALL)
    assert (sandbox.sync.exec("echo on").carrier, sandbox.sync.exec("python3").exit_code) == ("exec", 1)
    sandbox.sync.close()
    api.remove_image("agentgym-test/old-python")


@pytest.mark.parametrize("command", [["no-such-program"], ["sleep", "5"]])
def test_a_container_without_python_killed_under_a_command_is_lost_whatever_the_engine_says(
    busybox_image, docker_backend, command
):
    for _ in range(5):  # the engine's last words depend on the moment
        sandbox = Sandbox(Docker(busybox_image), SMALL)
        sandbox.sync.start()
        docker_backend.client.api.kill(sandbox._box.id)
        with pytest.raises(SandboxLost):
            sandbox.sync.exec(command)
        sandbox.sync.close()


@pytest.fixture
def private_engine(docker_backend, tmp_path, monkeypatch) -> Iterator[subprocess.Popen[bytes]]:
    """An engine of the test's own, which it may kill."""
    if os.geteuid() or shutil.which("dockerd") is None:
        pytest.fail("a private engine needs root and dockerd") if os.environ.get("CI") else pytest.skip("needs root")
    folder = Path("/var/tmp") / f"agentgym-engine-{os.getpid()}"  # overlay2 needs a real disk
    folder.mkdir()
    socket = folder / "engine.sock"
    image = docker_backend.default_image()
    gvisor = {"path": shutil.which("runsc"), "runtimeArgs": ["--platform=ptrace", "--network=none", "--ignore-cgroups"]}
    (folder / "config").write_text(json.dumps({"runtimes": {"runsc": gvisor}} if gvisor["path"] else {}))
    process = subprocess.Popen(  # in a network of its own: one without a bridge deletes the bridge that it finds
        ["unshare", "--net", "dockerd", "--data-root", folder / "data", "--exec-root", folder / "exec", "-H", f"unix://{socket}",
         "--pidfile", folder / "pid", "--config-file", folder / "config", "--bridge", "none", "--iptables=false"],
        stdout=subprocess.DEVNULL, stderr=(folder / "log").open("wb"), start_new_session=True,
    )  # fmt: skip
    client = docker_backend.client.api
    monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
    for _ in range(300):
        if subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
            break
        time.sleep(0.1)
    else:
        pytest.fail((folder / "log").read_text()[-3000:])
    with subprocess.Popen(["docker", "load", "-q"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as load:
        for chunk in client.get_image(image):
            load.stdin.write(chunk)
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        process.wait(30)
    for line in subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGKILL)
    time.sleep(0.5)
    for mount in Path("/proc/mounts").read_text().splitlines():
        if str(folder) in mount:
            subprocess.run(["umount", "-l", mount.split()[1]], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def test_a62_an_engine_that_dies_mid_command_is_an_infrastructure_failure(private_engine, docker_backend):
    image = docker_backend.default_image()
    private = Docker(image)
    sandbox = Sandbox(private, SMALL)
    assert sandbox.sync.exec("echo on").stdout == "on\n"
    assert sandbox.sync.exec("getent hosts localhost").ok  # of an engine that has never had a sandbox
    threading.Timer(0.5, private_engine.kill).start()
    with pytest.raises(InfrastructureError):
        sandbox.sync.exec("sleep 20", timeout_s=30)
    with pytest.raises(InfrastructureError):
        sandbox.sync.exec("echo on")
    with pytest.raises(InfrastructureError):
        Sandbox(private, SMALL).sync.start()
    sandbox.sync.close()


def test_under_gvisor_a_time_out_leaves_nothing_though_its_kernel_adopts_no_orphans(private_engine, docker_backend):
    if shutil.which("runsc") is None:
        pytest.fail("no runsc") if os.environ.get("CI") else pytest.skip("no runsc")
    sandbox = Sandbox(Docker(docker_backend.default_image(), runtime="runsc"), Spec(limits=Limits(start_s=60)))
    assert "gVisor" in sandbox.sync.exec("dmesg").stdout
    assert sandbox.sync.exec("sleep 61 & setsid sleep 62 & sleep 63", timeout_s=1).timed_out
    assert "sleep 6" not in sandbox.sync.exec("ps -eo args").stdout
    assert sandbox.sync.exec("echo on").stdout == "on\n"
    sandbox.sync.close()


@pytest.mark.parametrize("who", ["we", "the engine"])
def test_localhost_is_found_whoever_wrote_the_file_and_there_is_nothing_else(docker_backend, monkeypatch, who):
    made = Docker(docker_backend.default_image())
    if who == "the engine":
        monkeypatch.setattr(hosts, "VOLUME", "no name of a volume")
    sandbox = Sandbox(made, SMALL)
    assert sandbox.sync.exec("getent hosts localhost").ok
    assert sandbox.sync.exec("ls /sys/class/net").stdout == "lo\n"
    assert not sandbox.sync.exec("echo 1.2.3.4 localhost >> /etc/hosts").ok
    assert not sandbox.sync.exec("getent ahosts example.com").ok
    network = docker_backend.client.api.inspect_container(sandbox.id)["NetworkSettings"]["Networks"]
    assert bool(network) == (who == "the engine")
    sandbox.sync.close()


def test_a_volume_that_somebody_removed_is_made_again(docker_backend, monkeypatch):
    monkeypatch.setattr(hosts, "VOLUME", "agentgym-hosts-of-a-test")
    made, api = Docker(docker_backend.default_image()), docker_backend.client.api
    for _ in range(2):
        sandbox = Sandbox(made, SMALL)
        assert sandbox.sync.exec("getent hosts localhost").ok
        sandbox.sync.close()
        api.remove_volume("agentgym-hosts-of-a-test")


def test_a_hosts_file_that_was_cut_is_written_again(docker_backend, monkeypatch):
    monkeypatch.setattr(hosts, "VOLUME", "agentgym-hosts-of-a-test")
    image, api = docker_backend.default_image(), docker_backend.client.api
    monkeypatch.setattr(hosts, "HOSTS", "")
    assert hosts.mount(api, image)
    monkeypatch.undo()
    monkeypatch.setattr(hosts, "VOLUME", "agentgym-hosts-of-a-test")
    sandbox = Sandbox(Docker(image), SMALL)
    assert sandbox.sync.exec("getent hosts localhost").ok
    sandbox.sync.close()
    api.remove_volume("agentgym-hosts-of-a-test")


def test_a_start_that_is_given_up_leaves_no_container(docker_backend):
    def mine() -> int:
        return sum(owners.owner() == one.owner for one in docker_backend.listed())

    async def given_up(seconds: float) -> None:
        sandbox = Sandbox(docker_backend, SMALL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sandbox.start(), seconds)
        await sandbox.close()

    async def many() -> None:
        await asyncio.gather(*(given_up(0.01 * n) for n in range(1, 13)))

    before = mine()
    run_sync(many())
    time.sleep(1)
    assert mine() == before


def test_no_engine_is_one_sentence_with_the_command_that_starts_it(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    with pytest.raises(EngineUnreachable, match=r"sudo dockerd|systemctl start docker"):
        Sandbox(Docker("any"), SMALL).sync.start()


def test_an_image_that_is_not_there_names_the_ways_to_get_it(docker_backend):
    with pytest.raises(ConfigError, match=r"no-such-image.*agentgym sandbox build"):
        Sandbox(Docker("no-such-image:ever"), SMALL).sync.start()


def test_a_start_that_fails_leaves_no_container(docker_backend):
    before = len(docker_backend.client.api.containers(all=True))
    with pytest.raises((ConfigError, InfrastructureError)):
        Sandbox(docker_backend, Spec(capabilities=("NO_SUCH",))).sync.start()
    assert len(docker_backend.client.api.containers(all=True)) == before


def test_what_dead_runs_left_is_reaped_and_others_containers_are_not(docker_backend):
    client, image = docker_backend.client, docker_backend.default_image()
    dead = f"{owners.boot_id()}:999999:1"
    labels = {owners.LABEL: "1", "agentgym.expires": str(int(time.time()) + 900)}

    def run(more: dict[str, str] | None) -> str:
        made = client.containers.create(image, ["true"], labels=more or {})
        return made.id

    theirs = run({"agentgym-like": "1"})
    plain = run(None)
    living = run({**labels, "agentgym.owner": owners.owner()})
    elsewhere = run({**labels, "agentgym.owner": "another-boot:1:1"})
    left = run({**labels, "agentgym.owner": dead})
    expired = run({**labels, "agentgym.owner": "another-boot:1:1", "agentgym.expires": "1"})
    try:
        removed = docker_backend.reap()
        here = {found["Id"] for found in client.api.containers(all=True)}
        assert {theirs, plain, living, elsewhere} <= here
        assert not {left, expired} & here
        assert len(removed) >= 2
    finally:
        for id in (theirs, plain, living, elsewhere):
            client.api.remove_container(id, force=True)


def test_an_owner_is_a_process_of_this_boot_with_its_start_time():
    assert owners.is_alive(owners.owner())
    assert not owners.is_alive(owners.owner() + "1")
    boot, pid, _ = owners.owner().split(":")
    assert not owners.is_alive(f"{boot}:{pid}:1")
    assert not owners.is_alive("nonsense")


def test_bubblewrap_reaps_the_groups_of_a_killed_run(bubblewrap):
    code = (
        "from agentgym.sandbox import *; import os, time\n"
        "s = Sandbox(backend('bubblewrap'), Spec(limits=Limits(memory_bytes=64 << 20))); s.sync.start()\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = process.stdout.readline().strip()
    made = bubblewrap
    assert any(f":{pid}:" in found.owner for found in made.listed())
    process.kill()
    process.wait()
    made.reap()
    assert not any(f":{pid}:" in found.owner for found in made.listed())


def test_doctor_and_probe_agree(docker_backend):
    assert "Docker engine" in run_sync(docker_backend.probe())
