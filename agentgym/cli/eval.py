"""`agentgym eval`: a policy's success on held-out tasks.

Owns the command: its flags, its folder, its progress and its table. What is played and counted is
evaluation/run.py's business."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from agentgym.cli import Interrupted, say
from agentgym.cli.options import as_dict, from_toml, parse, settings, to_toml
from agentgym.cli.versions import versions
from agentgym.engines.base import Sampling
from agentgym.errors import ConfigError, Failure, nearest
from agentgym.evaluation.intervals import Interval
from agentgym.evaluation.run import MIN_COVERAGE, Evaluation, arguments, evaluate, first_tasks
from agentgym.loop import run_sync
from agentgym.policies.base import Policy
from agentgym.policies.builtin import NAMES, builtin
from agentgym.policies.context import ContextConfig
from agentgym.rollout.store import Store

EXAMPLE = "agentgym eval agentgym/Lookup-v0 --model runs/Lookup-v0-1/model --horizon 1 2 4 8 --limit 40"
RUN = "eval"  # the phase under which the episodes are stored
FIXED = (
    "env",
    "model",
    "split",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "set",
    "view",
)  # what a resumed run cannot change


@dataclass(frozen=True)
class EvalConfig:
    """Measure a policy's success on held-out tasks, by horizon, with 95 % intervals.

    Writes every episode to runs/<name>/; Ctrl-C keeps them, --resume goes on."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """environment id; `agentgym list` shows them"""
    model: Annotated[str, tyro.conf.arg(metavar="PATH|gold|nop|random|human|demonstrator")] = "gold"
    """model folder (or hub name), or a built-in policy"""
    split: str = "test"
    """split of the tasks"""
    limit: int = 100
    """tasks: the first so many of the split; with --horizon, so many of each"""
    attempts: int = 1
    """independent episodes per task"""
    horizon: tuple[int, ...] = ()
    """horizons to test; the environment's own without it"""
    set: tuple[str, ...] = ()
    """more arguments of the environment, name=JSON: --set difficulty=1"""
    seed: int = 0
    """seed of everything: same seed, same episodes"""
    temperature: float = 1.0
    """sampling temperature; 0 is greedy"""
    top_p: float = 1.0
    """draw from the likeliest tokens that have so much of the probability together"""
    max_tokens: int = 256
    """most tokens per message"""
    device: str = "cpu"
    """where the model runs: cpu or cuda"""
    concurrency: int = 64
    """episodes at once"""
    output: Path | None = None
    """folder of the run; runs/eval-<environment>-<model>-<n> without it"""
    resume: bool = False
    """go on with the run in --output, or with the newest of this environment and model"""
    json: bool = False
    """print the summary as JSON"""
    view: ContextConfig = field(default_factory=ContextConfig)

    def __post_init__(self) -> None:
        for name in ("limit", "attempts", "concurrency", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1")
        if any(horizon < 1 for horizon in self.horizon):
            raise ConfigError(f"--horizon {' '.join(map(str, self.horizon))}: a horizon is at least 1 turn")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: give 0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature}: give 0 (greedy) or more")
        Sampling(0, top_p=self.top_p)


def main(argv: Sequence[str]) -> int:
    config = parse(EvalConfig, argv, "agentgym eval", EXAMPLE)
    env_kwargs = settings(config.set)
    first_tasks(
        config.env, arguments(config.split, config.horizon, env_kwargs), limit=1
    )  # fail before anything is written
    policy = load_policy(config)
    folder = open_folder(config)
    done = 0

    def count(finished: int, planned: int) -> None:
        nonlocal done
        done = finished
        show(finished, planned)

    started = time.monotonic()
    store = Store(folder / "run.sqlite")
    try:
        with progress_bar(config) as show:
            evaluation = run_sync(
                evaluate(
                    config.env, policy, store=store, run=RUN, split=config.split, horizons=config.horizon or None,
                    limit=config.limit, attempts=config.attempts, seed=config.seed, env_kwargs=env_kwargs,
                    concurrency=1 if config.model == "human" else config.concurrency, progress=count,
                )
            )  # fmt: skip
        failures = [episode.failure for episode in store.episodes(run=RUN) if episode.failure is not None]
    except KeyboardInterrupt:
        again = shlex.join(["agentgym", "eval", *_without(argv), "--output", str(folder), "--resume"])
        raise Interrupted(f"Stopped; {done} finished episodes are kept. Go on with:\n  {again}") from None
    finally:
        store.close()
    summary = {
        "command": "eval",
        "model": config.model,
        "seed": config.seed,
        **evaluation.as_json(),
        "seconds_total": time.monotonic() - started,
        "versions": versions(),
        "config": as_dict(config),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if config.json:
        say(json.dumps(summary, indent=2))
    else:
        Console().print(success_table(evaluation, title=f"{config.env} · {config.model}"))
        say("\n".join(remarks(evaluation, failures)))
        say(f"Every episode is in {folder}; `agentgym show {folder} --episode 0` prints one.")
    return 0 if evaluation.num_scored else 1


def load_policy(config: EvalConfig) -> Policy:
    """A built-in policy by name, or the model in a folder or on the hub."""
    if config.model in NAMES:
        return builtin(config.model)
    if "/" not in config.model and not Path(config.model).exists():
        raise ConfigError(
            f"--model {config.model!r}: no such folder, and no built-in policy{nearest(config.model, NAMES)} "
            f"Give a model folder or one of {', '.join(NAMES)}"
        )
    from agentgym.policies import local  # noqa: PLC0415  torch and transformers: seconds, and optional

    return local.load_policy(
        config.model, device=config.device, temperature=config.temperature, max_tokens=config.max_tokens,
        top_p=config.top_p, context=config.view,
    )  # fmt: skip


def open_folder(config: EvalConfig) -> Path:
    """The run's folder with its config.toml: a new one, or with --resume the one that is there."""
    stem = f"eval-{config.env.rpartition('/')[2]}-{Path(config.model).name}"
    earlier = sorted(Path("runs").glob(f"{stem}-*/config.toml"), key=lambda path: path.stat().st_mtime)
    if config.resume:
        if config.output is None and not earlier:
            raise ConfigError(f"--resume: there is no run runs/{stem}-*; give its folder with --output")
        folder = config.output or earlier[-1].parent
        _refuse_changes(config, folder)
    else:
        taken = [int(n) for path in earlier if (n := path.parent.name.rpartition("-")[2]).isdecimal()]
        folder = config.output or Path("runs") / f"{stem}-{max(taken, default=0) + 1}"
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--output {folder} is there already: add --resume to go on, or choose another")
    folder.mkdir(parents=True, exist_ok=True)
    lasting = replace(config, output=None, resume=False, json=False)
    (folder / "config.toml").write_text(to_toml(lasting, versions()), encoding="utf-8")
    return folder


@contextmanager
def progress_bar(config: EvalConfig) -> Iterator[Any]:
    """A bar on standard error with rate and remaining time; yields the function that moves it."""
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
    hidden = config.json or config.model == "human"
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task("episodes", total=None, rate="")

        def show(finished: int, planned: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, completed=finished, total=planned, rate=f"{speed:.1f}/s" if speed else "")

        yield show


def success_table(evaluation: Evaluation, title: str) -> Table:
    """Success by horizon, each row with its interval and its denominator."""
    table = Table(title=title, title_justify="left")
    for heading in ("horizon", "success", "95 % interval", "scored", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in evaluation.by_horizon:
        table.add_row(str(point.horizon), *_cells(point.success), str(point.num_failed))
    if len(evaluation.by_horizon) != 1:
        table.add_section()
        lost = evaluation.num_planned - evaluation.num_scored
        table.add_row("all", *_cells(evaluation.overall), str(lost), style="bold")
    return table


def remarks(evaluation: Evaluation, failures: Sequence[Failure]) -> list[str]:
    """What stands under the table: coverage and verdict, ends, cost, and what went wrong most often."""
    ends = ", ".join(f"{reason} {n}" for reason, n in sorted(evaluation.stop_reasons.items(), key=lambda x: -x[1]))
    lines = [
        f"coverage {100 * evaluation.coverage:.1f} % ({evaluation.num_scored} of {evaluation.num_planned} scored)",
        f"ended: {ends}",
        f"mean turns {evaluation.mean_turns:.1f}, sampled tokens {evaluation.sampled_tokens:,}",
    ]
    if evaluation.undecided:
        lines.insert(1, f"verdict: undecided; below {100 * MIN_COVERAGE:.0f} % coverage the rate says too little")
    if evaluation.failures:
        kinds = ", ".join(f"{kind} {n}" for kind, n in evaluation.failures.items())
        lines.append(f"failures: {kinds} (policy failures count as attempts without success, the others not at all)")
    for cause, n in Counter(failure.cause for failure in failures).most_common(3):
        first = next(failure.message for failure in failures if failure.cause == cause)
        lines.append(f"  {n} x {cause}, the first: {first[:200]}")
    return lines


def _cells(success: Interval) -> tuple[str, str, str]:
    if not success.n:
        return "–", "–", "0"
    return f"{100 * success.rate:.1f} %", f"[{100 * success.low:.1f}, {100 * success.high:.1f}]", str(success.n)


def _refuse_changes(config: EvalConfig, folder: Path) -> None:
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"--resume: {folder} holds no run (no config.toml); leave --resume out to begin one")
    saved = from_toml(EvalConfig, folder / "config.toml")
    for name in FIXED:
        if getattr(saved, name) != getattr(config, name):
            flag = f"--{name.replace('_', '-')}" if name != "env" else "environment"
            raise ConfigError(
                f"--resume: {folder} was begun with {flag} {getattr(saved, name)!r}, not {getattr(config, name)!r}; "
                "use the same, or begin a new run with another --output"
            )


def _without(argv: Sequence[str]) -> list[str]:
    """The arguments without --output and --resume."""
    kept, skip = [], False
    for arg in argv:
        if not skip and arg != "--resume" and not arg.startswith("--output"):
            kept.append(arg)
        skip = arg == "--output"
    return kept
