"""What every backend must do, as a suite that any backend's author can run: `check(lambda spec: Sandbox(mine, spec))`.

Owns the rules of the contract. Those under CLOSED hold for backends that isolate (all but `process`). Attacks that try
to break out or to take the machine down are in the project's tests; here is what an environment relies on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentgym.errors import PolicyError
from agentgym.sandbox.contract import MIB, ExecResult, Limits, SandboxExhausted, SandboxFileError, Spec
from agentgym.sandbox.sandbox import Sandbox

Make = Callable[[Spec], Sandbox]
RULES: dict[str, Callable[[Any], None]] = {}
CLOSED: dict[str, Callable[[Any], None]] = {}


class Broken(Exception):
    """A rule does not hold; the text says what was seen instead."""


@dataclass(frozen=True, slots=True)
class Result:
    rule: str
    ok: bool
    detail: str


def check(make: Make, *, closed: bool = True) -> list[Result]:
    """Run every rule, each on a sandbox of its own. `closed=False` leaves out those about isolation."""
    return [check_rule(name, make) for name in (*RULES, *(CLOSED if closed else ()))]


def check_rule(name: str, make: Make) -> Result:
    rule = RULES.get(name) or CLOSED[name]
    try:
        rule(make)
    except Broken as error:
        return Result(name, False, str(error))
    return Result(name, True, "")


def _rule(name: str, *, closed: bool = False, **spec: Any) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def keep(function: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(make: Make) -> None:
            sandbox = make(Spec(**spec))
            try:
                function(sandbox)
            finally:
                sandbox.sync.close()

        (CLOSED if closed else RULES)[name] = run
        return function

    return keep


def _is(seen: Any, wanted: Any, what: str) -> None:
    if seen != wanted:
        raise Broken(f"{what}: {seen!r:.300} instead of {wanted!r:.300}")


def _run(sandbox: Sandbox, command: Any, **kwargs: Any) -> ExecResult:
    return sandbox.sync.exec(command, **kwargs)


def _goes_on(sandbox: Sandbox) -> None:
    """The next command answers; or, where a carrier cannot kill, the sandbox says that it is over."""
    try:
        _is(_run(sandbox, "echo on").stdout, "on\n", "the next command")
    except SandboxExhausted:
        if _carrier(sandbox) != "exec":
            raise


def _carrier(sandbox: Sandbox) -> str:
    return sandbox._box.carrier if sandbox._box is not None else ""


# -- commands ----------------------------------------------------------------------------------------------------------


@_rule("a command's output, errors and status come back")
def _result(sandbox: Sandbox) -> None:
    done = _run(sandbox, "echo out; echo err >&2; exit 3")
    _is((done.stdout, done.stderr, done.exit_code), ("out\n", "err\n", 3), "result")
    _is((done.timed_out, done.truncated, done.oom, done.ok), (False, False, False, False), "flags")


@_rule("a list is a program and its arguments, never a shell's words")
def _argv(sandbox: Sandbox) -> None:
    _is(_run(sandbox, ["echo", "$HOME", "a  b", "*"]).stdout, "$HOME a  b *\n", "arguments")


@_rule("a signal is 128 + n; 124, 137 and 255 are codes like others")
def _codes(sandbox: Sandbox) -> None:
    for code in (1, 124, 137, 255):
        done = _run(sandbox, f"exit {code}")
        _is((done.exit_code, done.timed_out), (code, False), f"exit {code}")
    _is(_run(sandbox, "kill -SEGV $$").exit_code, 139, "SIGSEGV")


@_rule("a missing program is 127, one that cannot run 126")
def _missing(sandbox: Sandbox) -> None:
    _is(_run(sandbox, ["no-such-program"]).exit_code, 127, "missing")
    sandbox.sync.write("data", b"x", mode=0o644)
    _is(_run(sandbox, ["./data"]).exit_code, 126, "not executable")


@_rule("an empty program and a NUL byte are the policy's errors")
def _impossible(sandbox: Sandbox) -> None:
    for command in ([], [""], ["echo", "a\0b"], "echo \0", ["echo", "x" * 200_000]):
        try:
            _run(sandbox, command)
        except PolicyError:
            continue
        raise Broken(f"{command!r:.60} was run")
    _goes_on(sandbox)


@_rule("a script of a megabyte runs")
def _long_script(sandbox: Sandbox) -> None:
    _is(_run(sandbox, "# " + "x" * MIB + "\necho end").stdout, "end\n", "output")


@_rule("standard input is given, and empty where it is not")
def _stdin(sandbox: Sandbox) -> None:
    _is(_run(sandbox, ["cat"], stdin=b"abc").stdout, "abc", "stdin")
    _is(_run(sandbox, ["cat"]).stdout, "", "no stdin")
    _is(_run(sandbox, "wc -c", stdin=b"x" * (3 * MIB)).stdout.strip(), str(3 * MIB), "3 MiB")
    _is(_run(sandbox, "true", stdin=b"x" * (3 * MIB)).exit_code, 0, "a reader that does not read")


@_rule("variables and the working folder are as asked")
def _surroundings(sandbox: Sandbox) -> None:
    _is(_run(sandbox, 'printf %s "$A"', env={"A": "ä b"}).stdout, "ä b", "variable")
    _is(_run(sandbox, "pwd", cwd="/tmp").stdout, "/tmp\n", "folder")


@_rule("bytes that are no UTF-8 are replaced and marked")
def _undecodable(sandbox: Sandbox) -> None:
    done = _run(sandbox, "printf 'a\\377b'")
    _is((done.stdout, done.undecodable), ("a�b", True), "output")
    _is(_run(sandbox, "printf 'é'").undecodable, False, "é")


@_rule("output is cut in the middle at the limit, exactly, and counted")
def _cut(sandbox: Sandbox) -> None:
    for size, is_cut in ((3999, False), (4000, False), (4001, True), (300_000, True)):
        done = _run(sandbox, f"head -c {size} /dev/zero | tr '\\0' x", output_bytes=4000)
        _is((done.truncated, done.stdout_bytes), (is_cut, size), f"{size} bytes")
    _is(done.stdout.startswith("x" * 3000 + "\n[…"), True, "head of three quarters")
    _is(_run(sandbox, "i=0; while [ $i -lt 2000 ]; do printf é; i=$((i+1)); done", output_bytes=1001).undecodable,
        False, "a cut within é")  # fmt: skip


@_rule("a time-out ends everything that the command started, and keeps what it said")
def _timeout(sandbox: Sandbox) -> None:
    started = time.monotonic()
    done = _run(sandbox, "echo first; sleep 61 & setsid sleep 62 & sleep 63", timeout_s=0.5)
    _is((done.timed_out, done.stdout), (True, "first\n"), "result")
    if time.monotonic() - started > 40:
        raise Broken(f"it took {time.monotonic() - started:.1f} s")
    if _carrier(sandbox) != "exec":
        _is(_run(sandbox, PROCESSES).stdout.split(), [], "processes left")
    _goes_on(sandbox)


PROCESSES = """
for f in /proc/[0-9]*/cmdline; do
  if tr '\\0' ' ' < $f 2>/dev/null | grep -q '^sleep 6[0-9] '; then echo $f; fi
done
"""


@_rule("a background process does not hold its command's result back")
def _background(sandbox: Sandbox) -> None:
    started = time.monotonic()
    _is(_run(sandbox, "sleep 60 >/dev/null 2>&1 & echo hi").stdout, "hi\n", "output")
    if time.monotonic() - started > 40:
        raise Broken(f"it took {time.monotonic() - started:.1f} s")


@_rule("all processes can be ended, files stay")
def _kill_all(sandbox: Sandbox) -> None:
    _run(sandbox, "echo kept > file; sleep 64 >/dev/null 2>&1 &")
    sandbox.sync.kill_all()
    _is(_run(sandbox, PROCESSES).stdout.split(), [], "processes left")
    _is(sandbox.sync.read("file"), b"kept\n", "file")


# -- sessions ----------------------------------------------------------------------------------------------------------


@_rule("a shell session keeps folder, variables and functions")
def _session(sandbox: Sandbox) -> None:
    shell = sandbox.session("bash").sync
    first = shell.run("cd /tmp; A='it''s'; f() { echo \"f $1\"; }; false")
    _is((first.exit_code, first.alive), (1, True), "first text")
    _is(shell.run("pwd; echo $A; f x").stdout, "/tmp\nits\nf x\n", "second text")
    _is(shell.run("cat <<X\na\nb\nX").stdout, "a\nb\n", "a here-document")
    _is(shell.run('read x; echo "<$x>"').stdout, "<>\n", "standard input")


@_rule("a session that ended starts anew, and says so")
def _session_ends(sandbox: Sandbox) -> None:
    shell = sandbox.session("bash").sync
    ended = shell.run("A=1; exit 4")
    _is((ended.alive, ended.timed_out), (False, False), "exit")
    _is(shell.run('echo "<$A>"').stdout, "<>\n", "a new shell")


@_rule("a time-out in a session is told, and the next text runs")
def _session_timeout(sandbox: Sandbox) -> None:
    shell = sandbox.session("bash").sync
    _is(shell.run("sleep 65", timeout_s=0.5).timed_out, True, "flag")
    try:
        _is(shell.run("echo on").stdout, "on\n", "next text")
    except SandboxExhausted:
        if _carrier(sandbox) != "exec":
            raise


# -- files -------------------------------------------------------------------------------------------------------------


@_rule("files are written, read, uploaded and downloaded byte for byte")
def _files(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 20_000
    sandbox.sync.write("deep/er/file", data)
    _is(sandbox.sync.read("deep/er/file") == data, True, "5 MB")
    _is(sandbox.sync.read("deep/../deep/er/file", limit_bytes=len(data)) == data, True, "at the limit")
    files = {"a": b"", "b/c d": b"1", "b/é\n": b"2", "run": b"#!/bin/sh\necho ran"}
    sandbox.sync.upload(files, "up")
    _is(sandbox.sync.download("up"), files, "download")
    _is(_run(sandbox, ["up/run"]).stdout, "ran\n", "an uploaded script")


@_rule("what is no regular file, or too long, is an error with its name")
def _file_errors(sandbox: Sandbox) -> None:
    _run(sandbox, "mkfifo fifo; ln -s /etc/passwd link; mkdir folder; head -c 5000 /dev/zero > long")
    for path, limit in (("none", 10), ("fifo", 10), ("folder", 10), ("long", 4999)):
        _refused(lambda p=path, n=limit: sandbox.sync.read(p, limit_bytes=n), f"read {path}")
    for path in ("fifo", "link", "folder"):
        _refused(lambda p=path: sandbox.sync.write(p, b"x"), f"write {path}")
    _refused(lambda: sandbox.sync.download("."), "download with a FIFO and a link")


def _refused(act: Callable[[], Any], what: str) -> None:
    try:
        act()
    except SandboxFileError:
        return
    raise Broken(f"{what}: it was done")


@_rule("names that leave their folder are refused")
def _names(sandbox: Sandbox) -> None:
    for name in ("/abs", "../up", "a/../../b"):
        try:
            sandbox.sync.upload({name: b"x"})
        except Exception as error:
            if name not in str(error):
                raise Broken(f"the error does not name {name}: {error}") from None
            continue
        raise Broken(f"{name} was uploaded")


# -- life --------------------------------------------------------------------------------------------------------------


@_rule("a copy has the files, and goes its own way")
def _fork(sandbox: Sandbox) -> None:
    sandbox.sync.upload({"a/b": b"1", "c": b"2"})
    _run(sandbox, "ln -s c link; chmod 750 c")
    other = sandbox.fresh(snapshot=sandbox.sync.snapshot())
    try:
        _is(_run(other, "cat a/b link; stat -c %a c").stdout, "12750\n", "the copy's files")
        _run(other, "echo other > c")
        _is(_run(sandbox, "cat c").stdout, "2", "the first one's file")
    finally:
        other.sync.close()


@_rule("close may be called twice, and before a start")
def _close(sandbox: Sandbox) -> None:
    untouched = sandbox.fresh()
    untouched.sync.close()
    untouched.sync.close()
    _run(sandbox, "true")
    sandbox.sync.close()
    sandbox.sync.close()


# -- what isolating backends keep closed -------------------------------------------------------------------------------


@_rule("commands are no root, have no capability and cannot get one", closed=True)
def _not_root(sandbox: Sandbox) -> None:
    _is(_run(sandbox, "id -u; id -g").stdout, "1000\n1000\n", "user and group")
    status = dict(
        line.split(":\t", 1) for line in _run(sandbox, "cat /proc/self/status").stdout.splitlines() if ":\t" in line
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        _is(int(status[name], 16), 0, name)
    _is((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"), "no new privileges, and a filter")


@_rule("there is no network but the loopback", closed=True)
def _no_network(sandbox: Sandbox) -> None:
    _is(
        [line.split(":")[0].strip() for line in _run(sandbox, "cat /proc/net/dev").stdout.splitlines()[2:]],
        ["lo"],
        "devices",
    )


@_rule("the root cannot be written, the workspace can, up to its limit", closed=True, limits=Limits(disk_bytes=8 * MIB))
def _disk(sandbox: Sandbox) -> None:
    for folder in ("/", "/usr", "/etc", "/bin", "/dev", "/proc/sys/kernel"):
        if _run(sandbox, f"echo x > {folder}/agentgym-probe").exit_code == 0:
            raise Broken(f"{folder} can be written")
    _is(_run(sandbox, "head -c 9000000 /dev/zero > big; ls big").stdout, "big\n", "writing")
    full = _run(sandbox, "dd if=/dev/zero of=more bs=1000000 count=9")
    _is("No space left" in full.stderr, True, "a full workspace")
    _goes_on(sandbox)


@_rule("one file has a limit", closed=True, limits=Limits(file_bytes=MIB))
def _file_limit(sandbox: Sandbox) -> None:
    _is(_run(sandbox, "exec head -c 2000000 /dev/zero > big").exit_code, 153, "status")
    _is(_run(sandbox, "wc -c < big").stdout.strip(), str(MIB), "size")


@_rule("the caller's environment is not in it", closed=True)
def _environment(sandbox: Sandbox) -> None:
    seen = _run(sandbox, "cat /proc/*/environ | tr '\\0' '\\n'").stdout
    for name in ("AGENTGYM_", "PYTHONPATH", "SSH_", "VIRTUAL_ENV", "USER="):
        if name in seen:
            raise Broken(f"{name} is to be seen")
