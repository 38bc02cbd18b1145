"""The trusted process of a repository's verdict: lays the tests over the repair, has them run, and decides.

Python >= 3.8, standard library only: it is sent into the sandbox. The repair's code runs in the test process
(`tests.py`), never here; but it shares that process with the tests. So a result counts only where every wanted test was
reported under this run's own token, and where the failing tests that were hidden among them were reported as failed."""

import ctypes
import json
import marshal
import os
import secrets
import select
import signal
import subprocess
import sys
import time

PR_SET_DUMPABLE = 4
SETTINGS = ("conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "sitecustomize.py")
CANARY = "\n\ndef test_{name}():\n    left, right = {left}, {right}\n    assert left == right\n"


def main(payload):
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        return 3
    told = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    kept = [flag for path in payload["kept"] for flag in ("--exclude", path)]
    kept += [flag for name in SETTINGS for flag in ("--exclude", name, "--exclude", "*/" + name)]
    if payload["repair"].strip() and apply(payload["repair"], kept):
        return say(told, [[test, "failed"] for test in payload["wanted"]], "the repair does not apply")
    if apply(payload["test_patch"], []):
        return say(told, [], "the test patch does not apply")
    canaries = [canary for name in payload["run_files"] for canary in hide(name)]
    found = run(payload)
    fooled = [name for name in canaries if found.get(name) != "failed"]
    results = [[test, "failed" if fooled else outcome(test, found)] for test in payload["wanted"]]
    return say(told, results, "tests that must fail were not reported as failed" if fooled else "")


def apply(diff, more):
    command = ["git", "apply", "--whitespace=nowarn", *more, "-"]
    done = subprocess.run(command, input=diff.encode("utf-8", "surrogateescape"), stderr=subprocess.DEVNULL)
    return done.returncode


def hide(name):
    """A test that fails, at the end of a test file, under a name like any other; and its id."""
    if not (name.endswith(".py") and os.path.isfile(name)):
        return
    word = "".join(secrets.choice("abcdefghijklmnoprstuvw") for _ in range(9))
    left = secrets.randbelow(900)
    with open(name, "a") as file:
        file.write(CANARY.format(name=word, left=left, right=left + 1 + secrets.randbelow(9)))
    yield name + "::test_" + word


def run(payload):
    """Test id -> outcome, of the tests that were reported with the token."""
    token = secrets.token_hex(16)
    reading, writing = os.pipe()
    order = marshal.dumps({"token": token, "files": payload["run_files"], "fd": writing, "shim": payload["shim"]})
    argv = [sys.executable, "-I", "-B", "-c", payload["tests"]]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=(writing,), start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    os.close(writing)
    process.stdin.write(order)
    process.stdin.close()
    until, data = time.monotonic() + payload["total_s"], b""
    while time.monotonic() < until and len(data) < 1 << 24:
        if select.select([reading], [], [], 0.05)[0]:
            more = os.read(reading, 1 << 16)
            if not more:
                break
            data += more
        elif process.poll() is not None:
            break
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass
    process.wait()
    return reported(data, token)


def reported(data, token):
    found = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        given, _, rest = line.partition(" ")
        result, _, test = rest.partition(" ")
        if given == token and (test not in found or result != "passed"):
            found[test] = result
    return found


def outcome(wanted, found):
    """Of a wanted test. Records may cut an id with parameters at its first blank: then it stands for all such tests."""
    cut = "[" in wanted and not wanted.endswith("]")
    results = [result for test, result in found.items() if test == wanted or (cut and test.split(" ")[0] == wanted)]
    return "passed" if results and all(result == "passed" for result in results) else "failed"


def say(told, results, note):
    os.write(told, json.dumps({"tests": results, "note": note}).encode())
    return 0 if results and all(result == "passed" for _, result in results) else 1


if __name__ == "__main__":
    sys.exit(main(marshal.loads(sys.stdin.buffer.read())))
