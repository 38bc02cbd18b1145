"""`agentgym show`: a run at the terminal, as figures or as one episode's transcript.

Owns the choice of what to print. The page with all of it is viewer/report.py's business."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from agentgym.cli import horizon_table, say
from agentgym.cli.options import parse
from agentgym.errors import ConfigError, nearest
from agentgym.ledger import Episode
from agentgym.messages import transcript
from agentgym.rollout.store import Store
from agentgym.viewer.horizons import columns, half_text
from agentgym.viewer.report import percent, read_summary

EXAMPLE = "agentgym show runs/Lookup-v0-1 --phase after --episode 0"
TRAINED = ("after", "train", "before")  # phases of a run with more than evaluations, the one that is meant first


@dataclass(frozen=True)
class ShowConfig:
    """Show a run: its figures, or with --episode one of its episodes as a transcript."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of a run, or its name under runs/"""
    episode: int | None = None
    """print this episode of the phase, counted from 0 in the order they ended"""
    phase: str | None = None
    """which episodes: before, after, train, eval; the last one of the run without it"""
    task: str | None = None
    """only episodes on this task: its id, or how the id begins"""
    attempt: int | None = None
    """only this attempt"""
    update: int | None = None
    """only episodes of this update of a training run"""
    failed: bool = False
    """only episodes without success"""


def main(argv: Sequence[str]) -> int:
    config = parse(ShowConfig, argv, "agentgym show", EXAMPLE)
    folder = find_run(config.run, "run.sqlite", "summary.json")
    wants_figures = (config.episode, config.task, config.attempt, config.update, config.failed) == (*(None,) * 4, False)
    if not (folder / "run.sqlite").is_file():  # `agentgym horizon RUN` plays nothing
        if not wants_figures:
            told = read_summary(folder).get("run")
            raise ConfigError(f"{folder} holds figures and no episodes; those it measured are in {told}")
        show_figures(folder, {})
        return 0
    store = Store(folder / "run.sqlite", readonly=True)
    try:
        phases = store.runs()
        if wants_figures:
            show_figures(folder, phases)
        else:
            episode, index = choose_episode(store, choose_phase(config.phase, phases, folder), config)
            show_episode(episode, index)
    finally:
        store.close()
    return 0


def find_run(name: str, *files: str) -> Path:
    """The folder of that path, or of that name under runs/, that holds one of the files, or else episodes. Raises
    ConfigError naming the nearest."""
    for folder in (Path(name), Path("runs") / name):
        if any((folder / file).is_file() for file in files or ("run.sqlite",)):
            return folder
    known = [path.parent.name for path in sorted(Path("runs").glob("*/run.sqlite"))]
    there = f" Runs here: {', '.join(known[:10])}." if known else " There are no runs under runs/ here."
    raise ConfigError(f"no run {name!r}: no folder with a run.sqlite{nearest(Path(name).name, known)}{there}")


def choose_phase(wanted: str | None, phases: Mapping[str, int], folder: Path) -> str:
    if not phases:
        raise ConfigError(f"{folder} holds no finished episode yet")
    if wanted is None:
        known = () if _is_evaluation(phases, folder) else TRAINED
        return next((name for name in known if name in phases), list(phases)[-1])
    if wanted not in phases:
        known = f"{folder} has {', '.join(phases)}{nearest(wanted, list(phases))}"
        raise ConfigError(f"there is no phase {wanted!r}: {known}")
    return wanted


def choose_phases(wanted: str | None, phases: Mapping[str, int], folder: Path) -> tuple[str, ...]:
    """The phase that is meant; of an evaluation every part."""
    is_whole = wanted is None and phases and _is_evaluation(phases, folder)
    return tuple(phases) if is_whole else (choose_phase(wanted, phases, folder),)


def _is_evaluation(phases: Mapping[str, int], folder: Path) -> bool:
    """Whether every phase is a part of an evaluation, whatever a suite calls it."""
    path = folder / "summary.json"
    return not phases.keys() & {*TRAINED} or (path.is_file() and read_summary(folder).get("command") == "eval")


def read_config(folder: Path) -> dict[str, Any]:
    """The run's config.toml; nothing where it has none. Raises ConfigError where it cannot be read."""
    path = folder / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as TOML: {error}; restore it") from error


def choose_episode(store: Store, phase: str, config: ShowConfig) -> tuple[Episode, int]:
    """The episode that is meant, and its place in the phase. Only its record is unpacked, however many there are."""
    played = store.outcomes(run=phase)
    known = list(dict.fromkeys(each.task_id for each in played))
    begun = [task for task in known if config.task is None or task.startswith(config.task)]
    tasks = {config.task} if config.task in begun else {*begun}
    found = [
        (index, each)
        for index, each in enumerate(played)
        if each.task_id in tasks
        and (config.attempt is None or each.attempt == config.attempt)
        and (config.update is None or each.update == config.update)
        and not (config.failed and each.success)
    ]
    number = config.episode or 0
    if not found:
        flag = "" if config.task is None else f"--task {config.task}: "
        hint = "" if tasks else nearest(config.task or "", known)
        raise ConfigError(f"{flag}phase {phase} has no such episode{hint}")
    if not 0 <= number < len(found):
        there = f"phase {phase} has {len(found)} such episodes"
        raise ConfigError(f"--episode {number}: {there}; give 0 to {len(found) - 1}")
    index, result = found[number]
    run, update, task, attempt = result.key
    [episode] = store.episodes(run=run, update=update, task=task, attempt=attempt)
    return episode, number if config.episode is not None else index


def show_episode(episode: Episode, index: int) -> None:
    verdict = "success" if episode.success else "no success" if episode.counts else "not scored"
    horizon = episode.metadata.get("horizon")
    about = [f"episode {index}", f"phase {episode.run}", f"task {episode.task_id}", f"attempt {episode.attempt}"]
    about += [] if horizon is None else [f"horizon {horizon}"]
    say(" · ".join(about))
    say(transcript(episode.messages))
    say(f"{verdict}: reward {episode.reward:g}, {len(episode.turns)} turns, ended: {episode.stop_reason}")
    if episode.failure is not None:
        say(f"failure ({episode.failure.kind}): {episode.failure.cause}: {episode.failure.message}")


def show_figures(folder: Path, phases: Mapping[str, int]) -> None:
    if not (folder / "summary.json").is_file():
        say(f"{folder} is not finished: no summary.json yet. Its command goes on with --resume.")
    else:
        summary = read_summary(folder)
        about = f"{summary.get('env')} · {summary.get('model') or 'from scratch'} · seed {summary.get('seed')}"
        say(about)
        is_horizon = summary.get("command") == "horizon"
        say("\n".join(horizon_table.remarks(summary)) if is_horizon else _headline(summary))
        if summary.get("by_horizon"):
            Console().print(horizon_table.rates_table(columns(summary)))
    if (folder / "run.sqlite").is_file():
        files = [folder / "run.sqlite", folder / "run.sqlite-wal"]  # what is new lies in the second until it is closed
        kb = sum(path.stat().st_size for path in files if path.is_file()) / 1000
        size = f"; {kb / sum(phases.values()):,.1f} kB each" if phases else ""
        say("episodes: " + (", ".join(f"{phase} {n:,}" for phase, n in phases.items()) or "none yet") + size)
    if (folder / "report.html").is_file():
        say(f"report: {folder / 'report.html'}")
    if phases:
        say(f"An episode: agentgym show {folder} --episode 0")


def _headline(summary: Mapping[str, Any]) -> str:
    if "success_after" in summary:
        half = summary.get("h50_after") or {}
        low, high = summary.get("ci_after") or (None, None)
        line = f"success {percent(summary.get('success_before'))} -> {percent(summary['success_after'])}"
        line += f" [{percent(low)}, {percent(high)}]"
        return line + (f", 50 % horizon {half_text(half)}" if half else "")
    success = summary.get("success") or {}
    line = f"success {percent(success.get('rate'))} [{percent(success.get('low'))}, {percent(success.get('high'))}]"
    return f"{line} of {success.get('n')} scored, coverage {percent(summary.get('coverage'))}, {summary.get('verdict')}"
