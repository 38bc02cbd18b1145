"""A run's folder: which one a command gets, who writes it, and what --resume may not change.

Owns the names under runs/, config.toml, and what a stopped command says. What else is in it is the command's business.
"""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentgym.cli import Interrupted
from agentgym.cli.lock import LOCK_FILE, locked
from agentgym.cli.options import Config, from_toml, leaves, to_toml
from agentgym.cli.versions import versions
from agentgym.errors import ConfigError
from agentgym.rollout.store import Store

RUNS = Path("runs")
CONFIG = "config.toml"
RESULTS = ("summary.json", "summary.md", "report.html")  # of a run that has ended, and of no other
ASIDE = ".tmp"


def numbered(stem: str) -> Path:
    """runs/<stem>-<n>, made here: two starts at once get two folders."""
    number = max(_numbers(stem).values(), default=0) + 1
    while True:
        try:
            (folder := RUNS / f"{stem}-{number}").mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def newest(stem: str) -> Path:
    """The run runs/<stem>-<n> that was begun, or gone on with, last. Raises ConfigError where there is none."""
    begun = [folder for folder in _numbers(stem) if (folder / CONFIG).is_file()]
    if not begun:
        raise ConfigError(f"--resume: there is no run {RUNS}/{stem}-*; give its folder with --output")
    return max(begun, key=lambda folder: (folder / CONFIG).stat().st_mtime)


def opened(config: Any, stem: str, may_change: Collection[str]) -> Path:
    """The folder of a command's run, made where it is new: `config.output`, or one named after `stem`; with
    `config.resume` the run that is there. Raises ConfigError where it is another run's."""
    folder: Path = config.output or (newest(stem) if config.resume else numbered(stem))
    ours = (LOCK_FILE, Path(CONFIG).with_suffix(ASIDE).name)
    begun = folder.exists() and (not folder.is_dir() or any(path.name not in ours for path in folder.iterdir()))
    if begun and not config.resume:
        raise ConfigError(f"--output {folder} is there already: add --resume to go on, or choose another")
    if begun:
        refuse_changes(config, folder, may_change)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def saved(config_class: type[Config], folder: Path) -> Config:
    """The settings that a run was begun with. Raises ConfigError where the folder says none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"--resume: {folder} holds no run (no {CONFIG}); leave --resume out to begin one")
    if "[versions]" not in path.read_text("utf-8", "replace"):  # written last
        raise ConfigError(f"{path} is cut short, so its settings are not known; restore it or start a new run")
    return from_toml(config_class, path)


def refuse_changes(config: Any, folder: Path, may_change: Collection[str]) -> None:
    """Raises ConfigError where the folder's run was begun with other settings than `config`, or says none."""
    before, now = leaves(saved(type(config), folder)), leaves(config)
    for name in before.keys() - {*may_change}:
        if now[name] != before[name]:
            flag = "environment" if name == "env" else f"--{name.replace('_', '-')}"
            raise changed(folder, flag, before[name], now[name])


def changed(folder: Path, what: str, before: Any, now: Any) -> ConfigError:
    """A resumed run that is told something else than before, with both values."""
    return ConfigError(
        f"--resume: {folder} was begun with {what} {_said(before)}, not {_said(now)}; "
        "use the same, or begin a new run with another --output"
    )


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(ASIDE)
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


@contextmanager
def written(config: Any, folder: Path, command: str, argv: Sequence[str]) -> Iterator[None]:
    """The folder while the command writes it: locked, with its settings, and without the results of before. A run that
    is refused before it has played anything keeps what it had; Ctrl-C is told what is kept, and with which command it
    goes on."""
    with locked(folder):
        paths = [path for name in (CONFIG, *RESULTS) if (path := folder / name).exists()]
        before = {path: path.read_text("utf-8", "replace") for path in paths}
        kept = _finished(folder)
        write(folder / CONFIG, to_toml(replace(config, output=None, resume=False, json=False), versions()))
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        try:
            yield
        except ConfigError:
            if _finished(folder) == kept:
                for path, text in before.items():
                    write(path, text)
            raise
        except KeyboardInterrupt:
            again = shlex.join(["agentgym", command, *_without(argv), "--output", str(folder), "--resume"])
            raise Interrupted(f"Stopped; {_finished(folder)} are kept. Go on with:\n  {again}") from None


def _finished(folder: Path) -> str:
    if not (folder / "run.sqlite").exists():
        return "its settings"
    with Store(folder / "run.sqlite", readonly=True) as store:
        return f"{sum(store.runs().values())} finished episodes"


def _numbers(stem: str) -> dict[Path, int]:
    folders = RUNS.glob(f"{glob.escape(stem)}-*")
    return {folder: int(n) for folder in folders if (n := folder.name[len(stem) + 1 :]).isdecimal()}


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)


def _without(argv: Sequence[str]) -> list[str]:
    """The arguments without --output and --resume."""
    kept, skip = [], False
    for arg in argv:
        if not skip and arg != "--resume" and not arg.startswith("--output"):
            kept.append(arg)
        skip = arg == "--output"
    return kept
