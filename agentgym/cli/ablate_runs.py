"""The runs of an ablation: which folder is whose, and their processes.

Owns starting, waiting and stopping. What is compared is ablate.py's business."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from agentgym.cli import say
from agentgym.cli.lock import locked
from agentgym.cli.options import from_toml, leaves
from agentgym.cli.train import TrainConfig
from agentgym.errors import ConfigError

OURS = ("--seed", "--output", "--resume")  # what no switch can set
LOG = "log.txt"  # beside a run: what it said
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Switch:
    """A named change of the settings."""

    name: str
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.folder:
            raise ConfigError(f"switch {self.name!r} has no letter or digit in its name, and so no folder")
        for flag in self.flags:
            if flag.partition("=")[0].replace("_", "-") in OURS:
                raise ConfigError(f"switch {self.name!r} sets {flag}: ablate does that itself; leave it out")

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=+]+", "-", self.name).strip("-.")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a switch and a seed."""

    switch: Switch
    seed: int
    folder: Path
    config: TrainConfig

    @property
    def command(self) -> list[str]:
        """Arguments of `agentgym` that begin the run, or go on with it."""
        if (self.folder / "config.toml").is_file():
            return ["train", self.config.env, "--output", str(self.folder), "--resume"]
        flags = [flag.replace("{seed}", str(self.seed)) for flag in self.switch.flags]
        return ["train", self.config.env, *flags, "--seed", str(self.seed), "--output", str(self.folder)]

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run says of itself; None until it is finished."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    @property
    def state(self) -> str:
        if (self.folder / "summary.json").is_file():
            return "finished"
        return "begun" if (self.folder / "config.toml").is_file() else "new"


def refuse_other(cell: Cell) -> None:
    """A folder with a run of other settings is not this cell's."""
    path = cell.folder / "config.toml"
    if not path.is_file():
        return
    saved, wanted = (leaves(c) for c in (from_toml(TrainConfig, path), cell.config))
    for name in saved.keys() - {"output", "resume"}:
        if saved[name] != wanted[name]:
            raise ConfigError(
                f"{cell.folder} holds a run with {name} {saved[name]}, not {wanted[name]}: name the switch "
                f"{cell.switch.name!r} otherwise, choose another --output, or delete that folder"
            )


def tell_at_once(text: str) -> None:
    """A line of progress, also where standard output is a file."""
    say(text)
    sys.stdout.flush()


def run_cells(cells: Sequence[Cell], *, jobs: int = 1, tell: Callable[[str], None] = tell_at_once) -> dict[Path, str]:
    """Run what is not finished, each in a process of its own, `jobs` at once -> why by folder, for those that failed.
    A run that another process is at (the child of a command that was killed) is waited for.

    Whatever ends this ends the runs as Ctrl-C would, which saves them."""
    waiting = deque(cell for cell in cells if cell.state != "finished")
    tell(f"{len(cells)} runs, {len(cells) - len(waiting)} of them finished")
    running: dict[Cell, tuple[subprocess.Popen[bytes], float]] = {}
    failed: dict[Path, str] = {}
    spent: list[float] = []
    taken: set[Path] = set()
    try:
        while waiting or running:
            for _ in range(min(len(waiting), jobs - len(running))):
                cell = waiting.popleft()
                if _in_use(cell.folder):
                    waiting.append(cell)
                    if cell.folder not in taken:
                        tell(f"{cell.switch.name}, seed {cell.seed}: waits for another process that is at it")
                    taken.add(cell.folder)
                elif cell.state != "finished":
                    tell(f"{cell.switch.name}, seed {cell.seed}: {'goes on' if cell.state == 'begun' else 'begins'}")
                    running[cell] = (_started(cell), time.monotonic())
            for cell, (process, since) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[cell]
                if code and _in_use(cell.folder):  # somebody else was first
                    waiting.append(cell)
                    continue
                if code:
                    failed[cell.folder] = _reason(cell, code)
                spent.append(time.monotonic() - since)
                left = len(waiting) + len(running)
                tell(f"{_ended(cell, failed.get(cell.folder))} in {spent[-1]:.0f} s")
                tell(f"{len(cells) - left} of {len(cells)} runs, about {fmean(spent) * left / jobs / 60:.0f} min to go")
            time.sleep(POLL_S)
    finally:
        for process, _ in running.values():
            process.send_signal(signal.SIGINT)
        for process, _ in running.values():
            process.wait()
    return failed


def _started(cell: Cell) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C at the terminal reaches it once, through us."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "agentgym.cli", *cell.command]
    with (cell.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _in_use(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        locked(folder).close()
    except ConfigError:
        return True
    return False


def _reason(cell: Cell, code: int) -> str:
    """The last that a run said."""
    log = cell.folder / LOG
    lines = log.read_text("utf-8", "replace").strip().splitlines() if log.is_file() else []
    said = lines[-1].removeprefix("error: ")[:300] if lines else "it said nothing"
    return f"killed by signal {-code}" if code < 0 else said


def _ended(cell: Cell, why: str | None) -> str:
    told, s = f"{cell.switch.name}, seed {cell.seed}: ", cell.summary
    if why is not None or s is None:
        return f"{told}FAILED ({why})"
    return f"{told}{100 * s['success_before']:.1f} -> {100 * s['success_after']:.1f} %"
