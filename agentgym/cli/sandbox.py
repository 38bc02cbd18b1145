"""`agentgym sandbox`: run a command in a sandbox, see and remove what is left, measure a backend, build an image.

Owns the sub-commands and how results are printed. What a sandbox is, is agentgym.sandbox's business."""

from __future__ import annotations

import json as json_
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentgym.cli import say
from agentgym.cli.options import parse
from agentgym.errors import AgentGymError, ConfigError, nearest
from agentgym.loop import run_sync
from agentgym.sandbox import MIB, Backend, ExecResult, Limits, Sandbox, Spec, backend, parse_bytes

EXAMPLE = "agentgym sandbox exec --backend bubblewrap --timeout 5 --memory 256m -- python3 -c 'print(6 * 7)'"
ISOLATING = ("docker", "bubblewrap")


@dataclass(frozen=True)
class ExecConfig:
    """Run one command (after `--`) in a fresh, closed sandbox. The exit code is the command's, 124 where it ran out of
    time; with --json it is 0 once the command has run, and the object says the rest."""

    backend: str = "auto"
    """auto, docker, bubblewrap, or a plug-in's name"""
    timeout: float = 30.0
    """seconds; then everything that the command started is killed"""
    memory: str = "1g"
    """of the whole sandbox, its files included: 256m, 2g"""
    image: str | None = None
    """docker: an image; bubblewrap: a folder that holds a root"""
    user: str | None = None
    """another user than the sandbox's own: opens the sandbox as root, and with what a change of user needs"""
    network: bool = False
    """open the network"""
    json: bool = False
    """print one object: stdout, stderr, exit_code, timed_out, truncated, oom, duration_s, carrier"""


@dataclass(frozen=True)
class ListConfig:
    """Show what sandboxes there are, of this and of other runs, and which of them nobody owns any more."""

    backend: str | None = None
    """docker or bubblewrap; both without it"""


@dataclass(frozen=True)
class ReapConfig:
    """Remove what dead runs left: containers, images and control groups whose owner is gone. Nobody else's."""

    backend: str | None = None
    """docker or bubblewrap; both without it"""


@dataclass(frozen=True)
class BenchConfig:
    """Measure a backend on this machine: start, commands, files, snapshot, end."""

    backend: str = "auto"
    """auto, docker, bubblewrap, or a plug-in's name"""
    count: int = 50
    """commands; starts are a tenth of them"""
    image: str | None = None
    """docker: an image; bubblewrap: a folder that holds a root"""


@dataclass(frozen=True)
class BuildConfig:
    """Build an image for docker sandboxes, once for the same content; prints its name."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = ""
    """a folder with a Dockerfile, a folder that holds a root, or a .tar of one"""
    debootstrap: str | None = None
    """instead of a source: a Debian suite, such as bookworm (as root; needs `debootstrap`)"""
    include: tuple[str, ...] = ("python3", "python3-pip", "git", "procps")
    """packages of the suite"""
    name: str = "base"
    """the image is agentgym/NAME:<hash of its content>"""
    base_map: tuple[str, ...] = ()
    """FROM=LOCAL: build on LOCAL where a Dockerfile names FROM"""
    network: bool = False
    """let the build use the network"""


def main(argv: Sequence[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", ())
    if name in ("-h", "--help"):
        say("usage: agentgym sandbox COMMAND ...\n")
        for known, (config, _) in SUBCOMMANDS.items():
            say(f"  {known:7}{(config.__doc__ or '').split('.')[0].split('(')[0].strip()}")
        say(f"\nexample: {EXAMPLE}")
        raise SystemExit(0)  # as the other commands' --help
    if name not in SUBCOMMANDS:
        raise ConfigError(f"there is no `agentgym sandbox {name}`{nearest(name, SUBCOMMANDS)} There are "
                          f"{', '.join(SUBCOMMANDS)}")  # fmt: skip
    config_class, run = SUBCOMMANDS[name]
    rest, command = _split(rest)
    config = parse(config_class, rest, f"agentgym sandbox {name}", EXAMPLE)
    return run(config, command) if name == "exec" else run(config)


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if "--" not in argv:
        return argv, ()
    at = list(argv).index("--")
    return argv[:at], argv[at + 1 :]


def run_exec(config: ExecConfig, command: Sequence[str]) -> int:
    if not command:
        raise ConfigError(f"no command: write it after `--`. Example: {EXAMPLE}")
    own = config.user in (None, "1000", "1000:1000", "agent")
    other = None if own or config.user in ("root", "0", "0:0") else config.user
    limits = Limits(memory_bytes=parse_bytes(config.memory))
    opened = ("SETUID", "SETGID") if other else ()
    spec = Spec(image=config.image, network=config.network, root=not own, limits=limits, capabilities=opened)
    sandbox = Sandbox(backend(config.backend), spec)
    try:
        done = sandbox.sync.exec(list(command), timeout_s=config.timeout, user=other)
    finally:
        sandbox.sync.close()
    if config.json:
        say(json_.dumps(done.as_json()))
        return 0
    _print(done, config.timeout)
    return 124 if done.timed_out else done.exit_code


def _print(done: ExecResult, timeout_s: float) -> None:
    sys.stdout.write(done.stdout)
    sys.stdout.flush()
    notes = [f"timed out after {timeout_s:g} s"] * done.timed_out + ["killed for memory"] * done.oom
    notes += ["output was cut"] * done.truncated + ["bytes that are no UTF-8 were replaced"] * done.undecodable
    sys.stderr.write(done.stderr + "".join(f"agentgym: {note}\n" for note in notes))


def run_ls(config: ListConfig) -> int:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("backend", "what", "id", "owner", ""):
        table.add_column(heading)
    count = 0
    for made in _reachable(config.backend):
        for found in made.listed():
            left = Text("left over", "yellow") if found.is_left_over else Text("in use")
            table.add_row(made.name, found.kind, found.id.rpartition(":")[2][:12], found.owner.partition(":")[2], left)
            count += 1
    Console().print(table) if count else say("There are no sandboxes.")
    return 0


def run_reap(config: ReapConfig) -> int:
    removed = [f"{made.name}: {gone}" for made in _reachable(config.backend) for gone in made.reap()]
    for line in removed:
        say(f"removed {line}")
    say(f"{len(removed)} removed." if removed else "Nothing was left over.")
    return 0


def _reachable(name: str | None) -> list[Backend]:
    """The backend of that name; without one, all that work here."""
    if name is not None:
        return [backend(name)]
    found = []
    for known in ISOLATING:
        try:
            made = backend(known)
            made.listed()
        except (AgentGymError, ModuleNotFoundError) as error:
            say(f"{known}: {error}")
        else:
            found.append(made)
    return found


def run_bench(config: BenchConfig) -> int:
    made, spec = backend(config.backend), Spec(image=config.image)
    sandbox = Sandbox(made, spec)
    sandbox.sync.start()
    sandbox.sync.exec(["true"])
    shell, python = sandbox.session("bash").sync, sandbox.session("python").sync
    data = bytes(MIB)
    rows: dict[str, list[float]] = {}

    def measure(what: str, act: Callable[[], Any], count: int = config.count) -> None:
        rows[what] = sorted(_seconds(act) for _ in range(max(1, count)))

    measure("start, first command and end", lambda: _whole(made, spec), config.count // 10)
    measure("/bin/true", lambda: sandbox.sync.exec(["/bin/true"]))
    measure("shell: true", lambda: sandbox.sync.exec("true"))
    measure("python3 -c pass", lambda: sandbox.sync.exec(["python3", "-c", "pass"]))
    measure("in a shell session", lambda: shell.run("true"))
    measure("in a Python session", lambda: python.run("1"))
    measure("write 1 MiB", lambda: sandbox.sync.write("x", data))
    measure("read 1 MiB", lambda: sandbox.sync.read("x"))
    measure("snapshot of 1 MiB", lambda: sandbox.sync.snapshot(), config.count // 5)
    sandbox.sync.close()
    table = Table(title=f"{made.name}, milliseconds", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "median", "p95", "n"):
        table.add_column(heading, justify="left" if not heading else "right")
    for what, seconds in rows.items():
        p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
        table.add_row(what, f"{1e3 * statistics.median(seconds):.2f}", f"{1e3 * p95:.2f}", str(len(seconds)))
    Console().print(table)
    return 0


def _seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _whole(made: Backend, spec: Spec) -> None:
    sandbox = Sandbox(made, spec)
    sandbox.sync.exec(["true"])
    sandbox.sync.close()


def run_build(config: BuildConfig) -> int:
    if bool(config.source) == bool(config.debootstrap):
        raise ConfigError("name a source (a folder with a Dockerfile, a root folder or a .tar), or give --debootstrap")
    made: Any = backend("docker")
    pairs = dict(pair.split("=", 1) for pair in config.base_map if "=" in pair)
    if len(pairs) != len(config.base_map):
        raise ConfigError(
            f"--base-map {config.base_map}: write FROM=LOCAL, such as python:3.12-slim=agentgym/base:test"
        )
    source = Path(config.source) if config.source else None
    building = made.build(
        config.name, source, debootstrap=config.debootstrap, include=config.include, base_map=pairs,
        network=config.network, tell=lambda line: say(f"  {line}"),
    )  # fmt: skip
    tag = run_sync(building)
    say(tag)
    return 0


SUBCOMMANDS: dict[str, tuple[type, Callable[..., int]]] = {
    "exec": (ExecConfig, run_exec),
    "build": (BuildConfig, run_build),
    "ls": (ListConfig, run_ls),
    "reap": (ReapConfig, run_reap),
    "bench": (BenchConfig, run_bench),
}
