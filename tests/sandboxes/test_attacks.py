"""What hostile code tries, on every backend that isolates; after each attack the next command answers.

The numbers are those of the list of attacks that the suite must contain: test_a09 is attack 9."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from agentgym.errors import ConfigError, PolicyError
from agentgym.loop import run_sync
from agentgym.sandbox import MIB, Limits, Sandbox, SandboxExhausted, SandboxFileError, SandboxLost, Spec

LOST = "ps -eo args | grep -c '[s]leep 9[0-9][0-9]' || true"


def run(sandbox, command, **kwargs):
    return sandbox.sync.exec(command, **{"timeout_s": 20, **kwargs})


def python(sandbox, code, **kwargs):
    return run(sandbox, ["python3", "-c", code], **kwargs)


def goes_on(sandbox) -> None:
    assert run(sandbox, "echo on").stdout == "on\n"


def num_processes(sandbox) -> int:
    """Besides the agent, the supervisor, the shell and what counts."""
    return int(run(sandbox, "ls -d /proc/[0-9]* | wc -l").stdout) - 5


# -- time-outs: everything that was started is gone --------------------------------------------------------------------

TREES = {
    "a01_an_endless_loop": ["python3", "-c", "while True: pass"],
    "a02_a_disowned_sleep": "sleep 902 & disown; sleep 903",
    "a03_a_new_session": "setsid sleep 904 & sleep 905",
    "a04_a_double_fork": "(setsid sh -c 'sleep 906 &' &) ; sleep 907",
    "a05_signals_ignored": "trap '' TERM INT HUP; while :; do sleep 0.1; done",
    "a06_a_fork_bomb_of_bash": "b() { b | b & }; b; sleep 908",
    "a07_a_storm_of_new_sessions": [
        "python3",
        "-c",
        "import os\nwhile True:\n try:\n  if os.fork() == 0: os.setsid()\n except OSError: pass",
    ],
}


@pytest.mark.parametrize("name", TREES)
def test_a_time_out_leaves_nothing_of(sandbox, name):
    started = time.monotonic()
    done = run(sandbox, TREES[name], timeout_s=1)
    assert done.timed_out
    assert time.monotonic() - started < 60
    goes_on(sandbox)
    assert num_processes(sandbox) <= 1
    assert run(sandbox, LOST).stdout.strip() == "0"


def test_a08_ten_thousand_threads_are_refused(sandbox):
    code = """
import threading, time
try:
    for _ in range(10000): threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
except RuntimeError as error: print(error)
"""
    assert "can't start new thread" in python(sandbox, code).stdout
    goes_on(sandbox)


@pytest.mark.parametrize("kill", ["-9 -1", "-STOP -1", "-9 1", "-STOP 1", "-TERM 1", "-INT 1", "-HUP 1"])
def test_a09_a10_the_agent_survives_a_kill(sandbox, kill):
    run(sandbox, f"kill {kill}; sleep 0.1")
    goes_on(sandbox)
    goes_on(sandbox)


def test_a_command_that_kills_all_it_can_does_not_hurt_the_next(sandbox):
    for _ in range(20):
        run(sandbox, "kill -9 -1")
        assert run(sandbox, ["true"]).exit_code == 0
        sandbox.sync.kill_all()
        assert run(sandbox, ["cat"], stdin="fed").stdout == "fed"


def test_a11_a_stopped_supervisor_does_not_hold_the_time_out(sandbox):
    done = run(sandbox, "kill -STOP $PPID; sleep 909", timeout_s=0.5)
    assert done.timed_out
    goes_on(sandbox)
    assert run(sandbox, LOST).stdout.strip() == "0"


def test_a12_a13_the_agents_descriptors_and_memory_are_closed(sandbox):
    for path in ("/proc/1/fd/1", "/proc/1/fd/0", "/proc/1/mem"):
        assert run(sandbox, f"echo forged > {path}").exit_code != 0
        assert run(sandbox, ["cat", path]).exit_code != 0
    ptrace = "import ctypes; print(ctypes.CDLL(None).ptrace(16, 1, 0, 0))"
    assert python(sandbox, ptrace).stdout.strip() == "-1"
    supervisor = "cat /proc/$PPID/mem; echo x > /proc/$PPID/fd/20; ls /proc/$PPID/fd"
    assert "Permission denied" in run(sandbox, supervisor).stderr
    goes_on(sandbox)


def test_a14_no_secret_of_the_caller_is_to_be_seen(opened, monkeypatch):
    monkeypatch.setenv("SECRET_X", "planted-7731")
    sandbox = opened()
    assert "planted-7731" not in run(sandbox, "cat /proc/*/environ /proc/*/cmdline | tr '\\0' ' '; env").stdout


def test_a15_frames_on_standard_output_are_data(sandbox):
    code = "import sys, struct\nfor i in range(10000): sys.stdout.buffer.write(struct.pack('!II', i, 5) + b'd1:xe')"
    done = python(sandbox, code, output_bytes=MIB)
    assert done.stdout_bytes == 130_000
    goes_on(sandbox)


# -- output ------------------------------------------------------------------------------------------------------------


def resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("where", ["", " >&2"])
def test_a16_a17_a_gigabyte_of_output_costs_the_caller_no_memory(sandbox, where):
    run(sandbox, "true")
    before = resident()
    done = run(sandbox, f"head -c 1000000000 /dev/zero{where}", timeout_s=60)
    assert (done.stdout_bytes + done.stderr_bytes, done.truncated) == (1_000_000_000, True)
    assert resident() - before < 50 * MIB


def test_a18_one_line_of_a_hundred_megabytes_is_cut(sandbox):
    done = run(sandbox, "head -c 100000000 /dev/zero | tr '\\0' x")
    assert (done.truncated, done.stdout_bytes) == (True, 100_000_000)
    assert len(done.stdout) < 70_000


def test_a19_odd_bytes_arrive_as_they_are(sandbox):
    sandbox.sync.write("odd", b"\0\xff\xed\xa0\x80end")
    assert sandbox.sync.read("odd") == b"\0\xff\xed\xa0\x80end"
    done = run(sandbox, ["cat", "odd"])
    assert done.undecodable
    assert done.stdout.startswith("\0�")
    assert done.stdout.endswith("end")


def test_a21_a_daemon_that_holds_the_output_does_not_hold_the_result(sandbox):
    assert run(sandbox, "sleep 910 & echo hi").stdout == "hi\n"
    assert run(sandbox, LOST).stdout.strip() == "1"  # it still sleeps


def test_a22_a_command_without_output_still_has_a_status(sandbox):
    assert run(sandbox, "exec >&- 2>&-; sleep 0.1; exit 5").exit_code == 5


def test_a23_a24_standard_input_ends_and_is_never_waited_for(sandbox):
    assert run(sandbox, "read x; echo $?").stdout == "1\n"
    assert run(sandbox, "head -c 10", stdin=b"y" * (100 * MIB)).stdout == "y" * 10


def test_a25_long_and_many_arguments_never_hang(sandbox):
    with pytest.raises(PolicyError, match="120000 bytes"):
        run(sandbox, ["echo", "x" * 131_072])
    assert run(sandbox, ["echo", *["x"] * 5000]).exit_code == 0
    assert run(sandbox, ["echo", *["x" * 1000] * 5000]).exit_code in (0, 126)
    goes_on(sandbox)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a30_memory_runs_out_for_the_command_alone(opened):
    sandbox = opened(limits=Limits(memory_bytes=256 * MIB, disk_bytes=16 * MIB))
    for _ in range(3):
        done = python(sandbox, "x = [bytearray(1 << 20) for _ in range(1024)]")
        assert (done.exit_code, done.oom) == (137, True)
        goes_on(sandbox)


def test_a31_many_small_processes_run_out_together(opened):
    sandbox = opened(limits=Limits(memory_bytes=128 * MIB, disk_bytes=8 * MIB))
    code = """
import os, time
for _ in range(50):
    if os.fork() == 0:
        x = bytearray(20 << 20); time.sleep(5); os._exit(0)
time.sleep(2)
"""
    try:
        assert python(sandbox, code, timeout_s=5).oom
        goes_on(sandbox)
    except SandboxExhausted:
        pass


@pytest.mark.parametrize("place", ["/workspace", "/tmp", "/dev/shm"])
def test_a32_a_full_disk_is_the_commands_error(sandbox, place):
    done = run(sandbox, f"head -c 600000000 /dev/zero > {place}/x")
    assert "No space left" in done.stderr or done.exit_code == 153
    assert not done.oom
    goes_on(sandbox)


@pytest.mark.parametrize("place", ["/dev", "/", "/usr", "/etc", "/run", "/var/tmp", "/opt"])
def test_a32_nothing_else_can_be_written(sandbox, place):
    assert run(sandbox, f"echo x > {place}/x").exit_code != 0


def test_a33_too_many_files_are_the_commands_error(opened, isolating):
    sandbox = opened(limits=Limits(num_files=5000, memory_bytes=512 * MIB))
    done = python(sandbox, "for i in range(200000): open(f'f{i}', 'w').close()", timeout_s=30)
    goes_on(sandbox)
    if isolating.name == "docker":  # bubblewrap has no such limit: memory is, as its docstring says
        assert "No space left" in done.stderr


def test_a34_a_file_over_the_limit_is_signalled(opened):
    sandbox = opened(limits=Limits(file_bytes=MIB))
    assert run(sandbox, ["head", "-c", "2000000", "/dev/zero"]).exit_code == 0
    assert run(sandbox, "exec head -c 2000000 /dev/zero > big").exit_code == 153
    assert sandbox.sync.read("big", limit_bytes=MIB) == bytes(MIB)


def test_a35_a_sparse_giant_stops_at_the_limit(sandbox):
    python(sandbox, "import resource; f = open('giant', 'wb'); f.truncate(200 << 20)")
    with pytest.raises(SandboxFileError):
        sandbox.sync.download(".", limit_bytes=10 * MIB)
    with pytest.raises(SandboxFileError):
        sandbox.sync.read("giant", limit_bytes=10 * MIB)
    goes_on(sandbox)


def test_a36_open_files_run_out(sandbox):
    assert "Too many open files" in python(sandbox, "x = [open('/dev/null') for _ in range(10000)]").stderr


# -- files -------------------------------------------------------------------------------------------------------------


def test_a37_a_deep_folder_does_no_harm(sandbox):
    python(sandbox, "import os\nfor _ in range(4000): os.mkdir('d'); os.chdir('d')", timeout_s=30)
    with contextlib.suppress(SandboxFileError):
        sandbox.sync.download(".")
    goes_on(sandbox)


def test_a38_odd_names_go_out_and_in(sandbox):
    names = [b"new\nline", b"n\xff\xfe", b"x" * 255]
    python(sandbox, f"for n in {names!r}: open(n, 'w').write('1')")
    found = sandbox.sync.download(".")
    assert {os.fsencode(name) for name in found} == set(names)
    other = sandbox.fresh()
    other.sync.upload(found)
    assert other.sync.download(".") == found
    other.sync.close()


def test_a39_a41_links_and_devices_do_not_come_out(sandbox):
    for make in ("ln -s /etc/passwd x", "mkfifo x", "touch y; ln y x", "ln -s . x"):
        run(sandbox, f"rm -rf x y; {make}")
        with pytest.raises(SandboxFileError, match=r"[xy]"):
            sandbox.sync.download(".")
    run(sandbox, "rm -rf x; mkfifo x")
    with pytest.raises(SandboxFileError, match="not a regular file"):
        sandbox.sync.read("x")


def test_a40_a_link_swapped_meanwhile_shows_only_the_inside(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    loop = f"while :; do ln -sfn {secret} x; rm -f x; echo mine > x; done"
    shell = threading.Thread(target=lambda: run(sandbox, loop, timeout_s=3))
    shell.start()
    for _ in range(50):
        with contextlib.suppress(SandboxFileError):
            assert sandbox.sync.read("x") in (b"mine\n", b"")
    shell.join()


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../up", "a/\0b"])
def test_a42_names_that_leave_are_refused(sandbox, name):
    with pytest.raises(ConfigError, match="absolute or leaves"):
        sandbox.sync.upload({name: b"x"})


def test_a42_links_and_devices_of_a_folder_are_refused_by_name(sandbox, tmp_path):
    (tmp_path / "ok").write_text("1")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="link"):
        sandbox.sync.upload(tmp_path)
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe"):
        sandbox.sync.upload(tmp_path)


def test_a43_a_write_follows_no_link_and_waits_for_no_fifo(sandbox):
    run(sandbox, "ln -s /workspace/other link; mkfifo fifo")
    for name in ("link", "fifo"):
        with pytest.raises(SandboxFileError):
            sandbox.sync.write(name, b"x")
    assert run(sandbox, ["ls"]).stdout == "fifo\nlink\n"


def test_a44_a_locked_workspace_still_goes(opened):
    sandbox = opened()
    run(sandbox, "mkdir a; touch a/b; chmod 000 a .")
    sandbox.sync.close()


def test_a45_programs_and_accounts_cannot_be_changed(sandbox):
    for path in ("/etc/passwd", "/usr/bin/python3", "/bin/sh", "/etc/ld.so.preload"):
        assert run(sandbox, f"echo x >> {path}").exit_code != 0


# -- the way out -------------------------------------------------------------------------------------------------------


def test_a46_a47_the_kernels_settings_are_read_only(sandbox):
    for path in ("kernel/core_pattern", "vm/drop_caches", "kernel/hostname"):
        before = Path("/proc/sys", path).read_text() if path != "vm/drop_caches" else "3"
        assert run(sandbox, f"cat > /proc/sys/{path}", stdin=before).exit_code != 0


def test_a48_there_is_no_way_to_the_network(sandbox):
    code = """
import socket
for what in ((socket.AF_INET, ("1.1.1.1", 53)), (socket.AF_INET6, ("2606:4700::1111", 53))):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(what[0], kind); s.settimeout(2)
        try: s.connect(what[1]); print("connected", what)
        except OSError: pass
try: socket.getaddrinfo("example.com", 80); print("resolved")
except OSError: pass
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()); print("loopback")
"""
    assert python(sandbox, code).stdout == "loopback\n"


def test_a49_other_families_of_sockets_are_refused(sandbox):
    code = """
import socket
for family, kind, proto in ((40, 1, 0), (17, 3, 0), (2, 3, 1), (38, 5, 0), (31, 3, 0), (44, 3, 0)):
    try: socket.socket(family, kind, proto); print("opened", family)
    except OSError: pass
"""
    assert python(sandbox, code).stdout == ""


def test_a50_an_abstract_socket_of_the_machine_is_out_of_reach(sandbox):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0agentgym-test-50")
        server.listen()
        done = python(sandbox, "import socket; socket.socket(socket.AF_UNIX).connect('\\0agentgym-test-50')")
    assert "refused" in done.stderr


SYSTEM_CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
numbers = {"unshare": (272, 0x10000000), "mount": (165, 0, 0, 0, 0, 0), "chroot": (161, b"/tmp"),
  "pivot_root": (155, b"/tmp", b"/tmp"), "bpf": (321, 0, 0, 0), "perf_event_open": (298, 0, 0, 0, 0, 0),
  "io_uring_setup": (425, 1, 0), "keyctl": (250, 0, 0), "add_key": (248, b"user", b"x", b"x", 1, -3),
  "userfaultfd": (323, 0), "kexec_load": (246, 0, 0, 0, 0), "setns": (308, 0, 0), "clone3": (435, 0, 0),
  "open_by_handle_at": (304, 0, 0, 0), "init_module": (175, 0, 0, 0), "reboot": (169, 0, 0, 0, 0),
  "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "fsopen": (430, b"tmpfs", 0), "move_mount": (429, 0, b"", 0, b"", 0)}
for name, (number, *arguments) in numbers.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    print(name, result, errno.errorcode.get(ctypes.get_errno()))
if libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) == 0: os._exit(0)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's")
def test_a51_a52_doors_into_the_kernel_are_shut(sandbox):
    for line in python(sandbox, SYSTEM_CALLS).stdout.splitlines():
        name, result, error = line.split()
        assert (int(result), error) == (-1, "ENOSYS" if name == "clone3" else "EPERM"), name


def test_a53_a_set_uid_program_gives_no_user(sandbox):
    assert run(sandbox, "cp /usr/bin/id .; chmod 4755 id; ./id -u").stdout == "1000\n"
    assert "root" not in run(sandbox, "su -c id root </dev/null; sudo -n id").stdout


def test_a54_the_machine_cannot_be_set(sandbox):
    for command in ("mknod x b 8 0", "date -s 2001-01-01", "hostname x", "dmesg", "reboot -f"):
        assert run(sandbox, command).exit_code != 0, command


def test_a55_no_engine_and_no_key_is_to_be_found(sandbox):
    found = run(
        sandbox, "ls /var/run/docker.sock /run/docker.sock /root/.ssh /run/agentgym* $SSH_AUTH_SOCK 2>/dev/null"
    )
    assert "docker" not in found.stdout
    assert "ssh" not in found.stdout
    assert run(sandbox, "cat /run/agentgym-oom >/dev/null; echo x > /run/agentgym-oom").exit_code != 0


def test_a56_a57_a58_what_lies_in_the_workspace_does_not_reach_the_agent(sandbox):
    planted = b"#!/bin/sh\necho planted\n"
    sandbox.sync.upload(
        {"bin/python3": planted, "bin/ls": planted, "json.py": b"print('planted')", "tarfile.py": b"print('planted')",
         "sitecustomize.py": b"print('planted')", ".bashrc": b"echo planted", ".profile": b"echo planted"}
    )  # fmt: skip
    shell = sandbox.session("bash").sync
    shell.run("export PATH=$PWD/bin:$PATH BASH_ENV=$PWD/.bashrc PYTHONSTARTUP=$PWD/json.py LD_PRELOAD=$PWD/x.so")
    assert "planted" not in run(sandbox, "echo fine").stdout
    assert sandbox.sync.download("bin")["ls"] == planted
    assert sandbox.session("bash").sync.run("echo fine").stdout == "fine\n"


def test_a59_a_daemon_that_edits_files_is_dead_before_grading(sandbox):
    run(sandbox, "(setsid sh -c 'while :; do date +%N > answer; sleep 0.01; done' >/dev/null 2>&1 &)")
    time.sleep(0.3)
    sandbox.sync.kill_all()
    first = sandbox.sync.read("answer")
    time.sleep(0.3)
    assert sandbox.sync.read("answer") == first


# -- the caller, the engine, the end -----------------------------------------------------------------------------------

HOLDER = """
import sys, time
from agentgym.sandbox import Sandbox, Spec, backend
sandboxes = [Sandbox(backend(sys.argv[1])) for _ in range(int(sys.argv[3]))]
for s in sandboxes: s.sync.start()
print(*[s._box.id for s in sandboxes], flush=True)
if sys.argv[2] == "busy": sandboxes[0].sync.exec("sleep 961", timeout_s=100)
time.sleep(100)
"""


def holder(name: str, how: str, count: int = 1) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, name, how, str(count)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def is_there(made, id: str) -> bool:
    if made.name == "docker":
        return any(found["Id"] == id for found in made.client.api.containers(all=True))
    return psutil.pid_exists(int(id.removeprefix("bwrap-")))


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_a60_a_killed_caller_leaves_nothing(isolating, how):
    process, ids = holder(isolating.name, how)
    time.sleep(0.5)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5

    def left() -> bool:
        sleeps = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
        return any(is_there(isolating, id) for id in ids) or any("sleep 961" in command for command in sleeps)

    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()
    isolating.reap()


def test_a61_a_sandbox_killed_from_outside_is_lost_and_ours(opened, isolating):
    sandbox = opened()
    sandbox.sync.start()
    id = sandbox._box.id

    def kill() -> None:
        time.sleep(0.5)
        if isolating.name == "docker":
            isolating.client.api.kill(id)
        else:
            psutil.Process(int(id.removeprefix("bwrap-"))).kill()

    threading.Thread(target=kill).start()
    with pytest.raises(SandboxLost):
        run(sandbox, "sleep 30", timeout_s=40)
    with pytest.raises(SandboxLost):
        run(sandbox, "echo on")


def test_a63_another_runs_sandboxes_are_left_alone(isolating):
    process, ids = holder(isolating.name, "idle", 2)
    try:
        assert not [gone for gone in isolating.reap() if any(id[:12] in gone for id in ids)]
        assert all(is_there(isolating, id) for id in ids)
    finally:
        process.kill()
        process.wait()


def test_a64_close_during_a_command_is_quiet(opened):
    sandbox = opened()
    sandbox.sync.start()
    seen: list[BaseException] = []

    def command() -> None:
        try:
            run(sandbox, "sleep 30", timeout_s=40)
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=command)
    thread.start()
    time.sleep(0.3)
    sandbox.sync.close()
    sandbox.sync.close()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(seen[0], SandboxLost)


def test_a65_many_starts_at_once_all_work(isolating):
    count = 64 if isolating.name == "bubblewrap" else 16
    sandboxes = [Sandbox(isolating, Spec(limits=Limits(memory_bytes=64 * MIB))) for _ in range(count)]
    seen: list[str] = []

    def start(sandbox) -> None:
        seen.append(run(sandbox, "echo on").stdout)

    threads = [threading.Thread(target=start, args=(s,)) for s in sandboxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for sandbox in sandboxes:
        sandbox.sync.close()
    assert seen == ["on\n"] * count


def test_a66_two_hundred_orphans_are_buried(sandbox):
    run(sandbox, "for i in $(seq 200); do (setsid true &); done; sleep 0.2")
    assert "Z" not in run(sandbox, "ps -eo stat= || cat /proc/[0-9]*/stat | cut -d' ' -f3").stdout.replace("S", "")


def test_a_cancelled_command_is_killed(opened):
    sandbox = opened()

    async def cancelled() -> None:
        task = asyncio.ensure_future(sandbox.exec("sleep 962", timeout_s=60))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_sync(cancelled())
    time.sleep(0.1)
    assert run(sandbox, LOST).stdout.strip() == "0"


def test_a_snapshot_with_hostile_members_stays_inside(sandbox):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("link/agentgym-planted"))
    with pytest.raises(SandboxFileError):
        _unpack(sandbox, buffer.getvalue())
    assert not Path("/etc/agentgym-planted").exists()
    goes_on(sandbox)


def _unpack(sandbox, data: bytes) -> None:
    sandbox.sync.start()
    run_sync(sandbox._box.unpack("/workspace", data))


def test_descriptors_stay_level_over_a_hundred_sandboxes(isolating):
    before = None
    count, settled = (100, 5) if isolating.name == "bubblewrap" else (16, 10)  # connections are kept for the next call
    for index in range(count):
        sandbox = Sandbox(isolating, Spec(limits=Limits(memory_bytes=64 * MIB)))
        sandbox.sync.exec(["true"])
        sandbox.sync.close()
        if index == settled:
            before = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_nothing_of_a_closed_container_is_left(docker_backend):
    api = docker_backend.client.api
    before = len(api.volumes()["Volumes"] or ())
    for _ in range(3):
        sandbox = Sandbox(docker_backend, Spec(limits=Limits(memory_bytes=64 * MIB)))
        sandbox.sync.exec(["true"])
        id = sandbox._box.id
        sandbox.sync.close()
        assert all(found["Id"] != id for found in api.containers(all=True))
    assert len(api.volumes()["Volumes"] or ()) == before


def test_as_root_bubblewrap_drops_to_a_user_of_its_own(bubblewrap):
    if os.geteuid():
        pytest.skip("only root can drop")
    sandbox = Sandbox(bubblewrap)
    sandbox.sync.start()
    uid = psutil.Process(int(sandbox._box.id.removeprefix("bwrap-"))).uids().real
    sandbox.sync.close()
    assert uid > 100_000


# -- what a command could leave to the next one ------------------------------------------------------------------------

ACROSS = {
    "limits of the agent": "import resource; resource.prlimit(1, resource.RLIMIT_AS, (1, 1))",
    "files of the agent": "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
    "limits of the supervisor": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "priority of the agent": "import os; os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "priority of all of the user": "import os; os.setpriority(os.PRIO_USER, 0, 19)",
    "scheduling of the supervisor": "import os; os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))",
    "processors of the agent": "import os; os.sched_setaffinity(1, {0})",
    "a kernel's shared memory": "import ctypes; exit(ctypes.CDLL(None).shmget(7, 1 << 20, 0o1666) < 0)",
    "a kernel's message queue": "import ctypes; exit(ctypes.CDLL(None).msgget(7, 0o1666) < 0)",
    "a kernel's semaphores": "import ctypes; exit(ctypes.CDLL(None).semget(7, 9, 0o1666) < 0)",
}
SELF = "import os, resource as r; print(os.nice(0), [r.getrlimit(n) for n in range(16)], os.sched_getaffinity(0))"


def test_nothing_of_another_process_can_be_changed(sandbox):
    before = python(sandbox, SELF).stdout
    for name, attack in ACROSS.items():
        assert python(sandbox, attack).exit_code == 1, name
        assert python(sandbox, SELF).stdout == before, name


def test_a_process_changes_its_own_limits_and_priority(sandbox):
    own = "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); os.nice(3); print(os.nice(0))"
    assert python(sandbox, own).stdout == "3\n"
    assert run(sandbox, "ulimit -n 32; ulimit -n").stdout == "32\n"


@pytest.mark.parametrize("kind", ["bash", "python"])
def test_a_program_that_died_between_two_texts_is_started_anew(sandbox, kind):
    session = sandbox.session(kind)
    set_x, get_x, die = {
        "bash": ("x=1", "echo ${x:-gone}", "(sleep 0.2; kill -9 $$) &"),
        "python": ("x = 1", "print(globals().get('x', 'gone'))",
                   "import threading, os; threading.Timer(0.2, os._exit, [3]).start()"),
    }[kind]  # fmt: skip
    session.sync.run(set_x)
    assert session.sync.run(get_x).stdout == "1\n"
    session.sync.run(die)
    time.sleep(1)
    assert session.sync.run(get_x).stdout == "[the program had ended and was started anew; its state is lost]\ngone\n"
    sandbox.sync.kill_all()
    assert session.sync.run(get_x).stdout.endswith("its state is lost]\ngone\n")
    assert session.sync.run(get_x).stdout == "gone\n"


def test_an_environment_or_text_that_no_kernel_takes_is_the_callers_fault(sandbox):
    for env in ({"A=B": "x"}, {"A": "x\0y"}, {"": "x"}, {"A": 1}, {"A": "\ud800"}):
        with pytest.raises(PolicyError, match="env"):
            run(sandbox, "true", env=env)
    for words in (["echo", "\ud800"], "echo \ud800"):
        with pytest.raises(PolicyError, match="lone surrogate"):
            run(sandbox, words)
    goes_on(sandbox)


def test_a_command_that_ran_out_of_time_before_it_began_does_not_begin(sandbox):
    stopper = "import os, signal, time\nos.setsid()\nfor _ in range(400):\n"
    stopper += " for p in os.listdir('/proc'):\n  if p.isdigit() and int(p) not in (1, os.getpid()):\n"
    stopper += "   try: os.kill(int(p), signal.SIGSTOP)\n   except OSError: pass\n time.sleep(0.01)\n"
    run(sandbox, ["python3", "-c", f"import os\nif os.fork() == 0:\n exec({stopper!r})"], timeout_s=3)
    for _ in range(3):
        done = run(sandbox, "sleep 0.3; echo ran >> trace", timeout_s=1)
        assert done.timed_out == (done.exit_code != 0)
    time.sleep(4)
    goes_on(sandbox)
