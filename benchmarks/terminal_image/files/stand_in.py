#!/usr/local/bin/python3.13 -ISB
"""Stands in for pip, uv, uvx and pytest where there is no network: what is asked for must be there, and is then used.

Tests run in a child that trusts nothing which an agent may have left about (no PYTHON* variables, no site hooks, no
plug-ins but those of the image), and that must come to its end: a process that leaves early with status 0 has passed
nothing. Everything else that runs is dead before the verdict is given, so that nobody writes after the verifier."""

import contextlib
import ctypes
import importlib.metadata
import json
import os
import re
import secrets
import signal
import sys
import time

PYTHON = "/usr/local/bin/python3.13"
PACKAGES = "/usr/local/lib/python3.13/site-packages"
PLUGINS = "/opt/agentgym/plugins.json"
WITH_VALUE = ("-i", "--index-url", "--extra-index-url", "-c", "--constraint", "-f", "--find-links", "-t", "--target",
              "-p", "--python", "--from", "--directory", "--project", "--index", "--cache-dir")  # fmt: skip
CHILD = """
import os, sys
nonce = os.read(0, 64).decode()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
report = os.dup(int(sys.argv[1]))
os.close(int(sys.argv[1]))
os.set_inheritable(report, False)
sys.path.append(%r)
sys.path += [entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]
import pytest
class End:
    def __init__(self):
        self.passed = 0
    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        self.status = int(exitstatus)
end = End()
status = int(pytest.main(sys.argv[2:], plugins=[end]))
os.write(report, f"{nonce} {status} {end.passed}".encode())
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""


def main():
    sys.path.append(PACKAGES)
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    if name.startswith("pip"):
        return pip(arguments)
    if name == "uvx":
        wanted, command = options(arguments)
        return need(wanted) or run(command)
    if name == "uv":
        return uv(arguments)
    return run_tests(arguments)


def uv(arguments):
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb == "pip":
        return pip(rest)
    if verb == "add":
        return need([word for word in rest if not word.startswith("-")])
    if verb == "run" or (verb == "tool" and rest[:1] == ["run"]):
        wanted, command = options(rest[verb == "tool" :])
        return need(wanted) or run(command)
    if verb in ("init", "sync", "venv", "lock", "python", "self", "--version", "cache"):
        return 0
    return fail(f"uv {verb}: not without a network")


def options(arguments):
    """The packages of `-w`, `--with`, and the command behind the options."""
    wanted, at = [], 0
    while at < len(arguments) and arguments[at].startswith("-"):
        word = arguments[at]
        if word in ("-w", "--with"):
            at += 1
            wanted += arguments[at : at + 1]
        elif word.startswith("--with="):
            wanted.append(word.partition("=")[2])
        elif word in WITH_VALUE:
            at += 1
        at += 1
    return wanted, arguments[at:]


def run(command):
    if command and command[0] == "pytest":
        return run_tests(command[1:])
    if command[:3] in (["python", "-m", "pytest"], ["python3", "-m", "pytest"]):
        return run_tests(command[3:])
    if not command:
        return fail("no command")
    sys.stdout.flush()
    os.execvp(command[0], command)


def need(specifications):
    """0 where every package is there, in whatever version."""
    for specification in specifications:
        name = re.split(r"[\s\[<>=!~;@]", specification.strip(), maxsplit=1)[0]
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return fail(f"no package {specification!r} here, and there is no network")
        print(f"Requirement already satisfied: {specification} (here: {found})")
    return 0


def pip(arguments):
    if arguments[:1] != ["install"]:
        os.execv(PYTHON, [PYTHON, "-m", "pip", *arguments])
    wanted, at, rest = [], 0, arguments[1:]
    while at < len(rest):
        word = rest[at]
        if word in ("-r", "--requirement"):
            at += 1
            with open(rest[at]) as file:
                wanted += [line for line in file.read().splitlines() if line.strip() and line.lstrip()[0] not in "#-"]
        elif word in ("-e", "--editable", ".") or word.startswith(("./", "/", "file:")):
            os.execv(PYTHON, [PYTHON, "-m", "pip", *arguments, "--no-index", "--no-build-isolation"])
        elif word in WITH_VALUE:
            at += 1
        elif not word.startswith("-"):
            wanted.append(word)
        at += 1
    return need(wanted)


def run_tests(arguments):
    ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE: nobody may look into, or write into, this process
    nonce = secrets.token_hex(32)
    said, says = os.pipe()
    asked, asks = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(asked, 0)
        os.set_inheritable(says, True)
        for name in [name for name in os.environ if name.startswith(("PYTEST_", "LD_"))]:
            del os.environ[name]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        with open(PLUGINS) as file:
            plugins = [word for plugin in json.load(file) for word in ("-p", plugin)]
        os.execv(PYTHON, [PYTHON, "-I", "-S", "-B", "-c", CHILD % PACKAGES, str(says), *plugins, *arguments])
    os.close(says)
    os.write(asks, nonce.encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.set_blocking(said, False)
    try:
        word = os.read(said, 4096).decode()
    except BlockingIOError:
        word = ""
    end_all()
    if not re.fullmatch(rf"{nonce} {status} \d+", word):
        return fail("the test run did not come to its end")
    if status == 0 and word.endswith(" 0"):
        return fail("no test passed")
    return status


def end_all():
    """Kill every process but this one and those above it: what the tests left behind, and services that served."""
    kept, pid = set(), os.getpid()
    while pid > 0:
        kept.add(pid)
        pid = int(stat(pid)[1])
    for _ in range(200):
        others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - kept
        left = [pid for pid in others if stat(pid)[0] not in ("Z", "X")]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def stat(pid):
    """State and parent of a process; ("X", 0) where it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", "0"


def fail(text):
    print(text, file=sys.stderr)
    return 3


sys.exit(main())
