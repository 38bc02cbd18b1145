"""`agentgym doctor`: what this machine has, what is missing, and how to get it; or what a chat template breaks.

Owns the probes. Each looks and changes nothing; only what the library cannot do without makes the exit code 1. The
rules of templates are policies/template.py's."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import sqlite3
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentgym.cli import say
from agentgym.cli.options import parse
from agentgym.cli.versions import commit, installed
from agentgym.errors import AgentGymError
from agentgym.loop import run_sync
from agentgym.registry import list_envs, load_plugins
from agentgym.sandbox.backends import AUTOMATIC, backend

EXAMPLE = "agentgym doctor --template ./my-model"
REQUIRED = ("gymnasium", "numpy", "pydantic", "httpx", "rich", "tyro")
OPTIONAL = {  # distribution -> (import name, extra, what needs it)
    "torch": ("torch", "train", "train, eval --model PATH"),
    "transformers": ("transformers", "train", "train, eval --model PATH"),
    "tokenizers": ("tokenizers", "train", "train from scratch"),
    "scipy": ("scipy", "train", "intervals of eval and train"),
    "psutil": ("psutil", "train", "the store of eval and train"),
    "jinja2": ("jinja2", "train", "report.html"),
    "matplotlib": ("matplotlib", "train", "report.html"),
    "reasoning-gym": ("reasoning_gym", "reasoning", "agentgym/Arithmetic-v0"),
    "docker": ("docker", "docker", "container sandboxes"),
}


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has, what is missing, and how to get it."""

    template: str | None = None
    """check the chat template of this model instead: a folder, or a hub name"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe saw. `fix` is empty where nothing is to be done."""

    what: str
    seen: str
    fix: str = ""
    required: bool = False


def main(argv: Sequence[str]) -> int:
    config = parse(DoctorConfig, argv, "agentgym doctor", EXAMPLE)
    if config.template is not None:
        return told(template(config.template), "broken", "Not fit to train with", "Ready: every required rule is kept.")
    probes: tuple[Callable[[], list[Finding]], ...] = (
        python,
        packages,
        torch_device,
        machine,
        disk,
        environments,
        sandboxes,
        tools,
    )
    findings = [finding for probe in probes for finding in probe()]
    return told(findings, "missing", "Not ready", "Ready: nothing required is missing.")


def told(findings: Sequence[Finding], bad: str, verdict: str, ready: str) -> int:
    """Print the table and the verdict; the exit code."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "what", "seen", "to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = Text("ok", "green") if not finding.fix else Text(bad, "bold red") if finding.required else Text("–")
        table.add_row(mark, Text(finding.what), Text(finding.seen), Text(finding.fix))
    Console().print(table)
    broken = [finding.what for finding in findings if finding.fix and finding.required]
    say(f"{verdict}: {', '.join(broken)}." if broken else ready)
    return 1 if broken else 0


def template(name: str) -> list[Finding]:
    """Every rule that a chat template has to keep. Raises ConfigError where there is no such model."""
    from agentgym.engines.causal import load_tokenizer  # noqa: PLC0415  torch and transformers: seconds, and optional
    from agentgym.policies.template import check_template  # noqa: PLC0415  as above
    from agentgym.policies.transcript import ChatFormat  # noqa: PLC0415  as above

    found = check_template(load_tokenizer(name), ChatFormat.load(name))
    return [Finding(each.rule, each.seen, each.fix, each.required) for each in found]


def python() -> list[Finding]:
    version = sys.version.split()[0]
    fix = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer; make PYTHON=/path/to/python3.11"
    return [
        Finding("python", f"{version} ({sys.executable})", fix, required=True),
        Finding("agentgym", f"{installed('agentgym') or 'not installed'}, commit {commit() or 'unknown: no clone'}"),
    ]


def packages() -> list[Finding]:
    """Installed distributions, without importing them."""
    found = [
        Finding(name, installed(name) or "not installed", "" if installed(name) else "pip install -e .", required=True)
        for name in REQUIRED
    ]
    for name, (module, extra, needed_by) in OPTIONAL.items():
        here = importlib.util.find_spec(module) is not None
        seen = installed(name) or "installed" if here else f"not installed: no {needed_by}"
        found.append(Finding(name, seen, "" if here else f"pip install -e '.[{extra}]' in your clone"))
    return found


def torch_device() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch  # noqa: PLC0415  1 s, and optional

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        device = f"cuda: {names}"
    else:
        device = "cpu only" + (
            f" (torch is built for CUDA {torch.version.cuda}, no device)" if torch.version.cuda else ""
        )
    return [Finding("torch device", f"{device}; {torch.get_num_threads()} threads")]


def machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [Finding("machine", f"{cores} cores, {pages:.1f} GiB memory, {sys.platform}")]


def disk(folder: Path | None = None) -> list[Finding]:
    """Whether runs can be written here: SQLite's write-ahead log needs a local disk."""
    folder = folder or Path.cwd()
    free = shutil.disk_usage(folder).free / 2**30
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".agentgym-doctor-") as scratch:
            database = sqlite3.connect(Path(scratch) / "probe.sqlite")
            mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            database.execute("CREATE TABLE probe (x)")
            database.close()
    except (OSError, sqlite3.Error) as error:
        return [Finding("disk here", f"not writable: {folder} ({error})", "give --output on a disk you can write")]
    fix = "" if mode == "wal" else "give --output on a local disk: this one has no write-ahead log"
    return [Finding("disk here", f"journal mode {mode}, {free:.1f} GiB free in {folder}", fix)]


def environments() -> list[Finding]:
    """Plug-ins that load, and the warnings of those that do not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_plugins()
    found = [Finding("environments", f"{len(list_envs())} registered")]
    broken = [str(warning.message) for warning in caught if "does not load" in str(warning.message)]
    return found + [Finding("plug-in", text, "mend or uninstall that package") for text in broken]


def sandboxes() -> list[Finding]:
    """Which backends work here and why not; which one `auto` takes, and what that does not protect from."""
    found, taken = [], None
    for name in AUTOMATIC:
        try:
            made = backend(name)
            seen = run_sync(made.probe())
            if name == "docker":
                seen += f"; image {made.default_image()}"  # type: ignore[attr-defined]
            taken = taken or made
            found.append(Finding(f"sandbox: {name}", seen))
        except ModuleNotFoundError:
            found.append(Finding(f"sandbox: {name}", "not usable", f"pip install -e '.[{name}]' in your clone"))
        except AgentGymError as error:
            found.append(Finding(f"sandbox: {name}", "not usable", str(error)))
    if taken is None:
        return [*found, Finding("sandbox: auto", "none: no code of an agent can be run", "mend one of the above")]
    about = inspect.getdoc(sys.modules[type(taken).__module__]) or ""
    told = " ".join(about.partition("\n\n")[2].split())
    return [*found, Finding("sandbox: auto", f"{taken.name}. {told}")]


def tools() -> list[Finding]:
    """Programs outside Python, each for one purpose."""
    found = []
    for name, purpose, names in (
        ("chromium", "the report's browser test", ("chromium", "chromium-browser", "google-chrome")),
        ("git", "the commit in a run's versions", ("git",)),
    ):
        path = next(filter(None, map(shutil.which, names)), None)
        found.append(Finding(name, path or f"not found: no {purpose}", "" if path else f"apt-get install {name}"))
    return found
