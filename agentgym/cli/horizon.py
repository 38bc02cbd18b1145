"""`agentgym horizon`: how far a policy gets, as a measurement.

Owns the command: its flags, its folder and what is played; horizon_table.py prints it. In evaluation/ the curve is
horizon.py's, first errors survival.py's, the hazard hazard.py's, planted errors conditioning.py's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agentgym.cli import say
from agentgym.cli.eval import parts_of
from agentgym.cli.folder import opened, write, written
from agentgym.cli.horizon_table import WHENS, Figures, rates_table, remarks
from agentgym.cli.options import as_dict, parse, settings
from agentgym.cli.policy import MAY_CHANGE, PolicyConfig, load_policy, size_of
from agentgym.cli.show import find_run
from agentgym.cli.versions import versions
from agentgym.errors import ConfigError
from agentgym.evaluation.conditioning import conditioning
from agentgym.evaluation.figures import Evaluation, forward_flops, summarise
from agentgym.evaluation.hazard import hazard
from agentgym.evaluation.horizon import half_horizon
from agentgym.evaluation.run import arguments, choose_tasks, evaluate
from agentgym.evaluation.suite import Part
from agentgym.evaluation.survival import first_errors, gold_paths, kaplan_meier
from agentgym.ledger import NONE, Episode
from agentgym.loop import run_sync
from agentgym.policies.base import Policy
from agentgym.policies.context import ContextConfig
from agentgym.rollout.store import Store
from agentgym.viewer.report import planned, read_summary, write_report

EXAMPLE = "agentgym horizon agentgym/Lookup-v0 --model runs/Lookup-v0-1/model --horizon 1 2 4 8 16 32"
LONGEST = 20  # history that is chosen where none is given
Bar = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class HorizonConfig:
    """Measure how far a policy gets: success by horizon, H50 and H80, first errors, their hazard, planted errors.

    Of a run (agentgym train, eval) it reads the episodes that are there, and plays none but gold's. Writes runs/<name>/
    with a report; Ctrl-C keeps what is played, --resume goes on."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV|RUN")]
    """environment with a `horizon` dial, or the folder of a run"""
    before: str | None = None
    """another, measured beside it in the same pictures: the model before training"""
    split: str = "test"
    """split of the tasks"""
    horizon: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """horizons to test"""
    limit: int = 20
    """tasks of each horizon"""
    attempts: int = 4
    """independent episodes per task; repeats tell a falling hazard from tasks that differ"""
    history: int | None = None
    """steps before the one that is judged after planted errors; H50, 4 to 20, without it; 0: no planted errors"""
    planted: tuple[float, ...] = (0, 10, 25, 50)
    """per cent of the history that is wrong"""
    difficulty: tuple[int, ...] = ()
    """difficulties of a map: every horizon at each of them, one attempt"""
    set: tuple[str, ...] = ()
    """more arguments of the environment, name=JSON"""
    seed: int = 0
    """seed of everything: same seed, same episodes"""
    concurrency: int = 64
    """episodes at once"""
    output: Path | None = None
    """folder of the run; runs/horizon-<environment>-<n> without it"""
    resume: bool = False
    """go on with the run in --output (or begin it), or with the newest of this environment"""
    json: bool = False
    """print the summary as JSON"""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    view: ContextConfig = field(default_factory=ContextConfig)

    def __post_init__(self) -> None:
        Part(self.env, split=self.split, limit=self.limit, attempts=self.attempts, horizon=self.horizon)  # checks them
        if not self.horizon:
            raise ConfigError("--horizon: give one or more, such as --horizon 1 2 4 8")
        if self.history is not None and self.history != 0 and self.history < 4:
            raise ConfigError(f"--history {self.history}: give at least 4 steps, or 0 to plant no errors")
        if self.history != 0 and (len(set(self.planted)) < 2 or not all(0 <= share <= 50 for share in self.planted)):
            raise ConfigError("--planted: give two or more per cents from 0 to 50, such as --planted 0 25 50")

    @property
    def kwargs(self) -> dict[str, Any]:
        return settings(self.set)


def main(argv: Sequence[str]) -> int:
    config = parse(HorizonConfig, argv, "agentgym horizon", EXAMPLE)
    began_s = time.monotonic()
    is_run = any(place.is_dir() for place in (Path(config.env), Path("runs") / config.env))
    found, policies = (_recorded(find_run(config.env)), {}) if is_run else ({}, _policies(config))
    folder = opened(config, f"horizon-{Path(config.env).name}", MAY_CHANGE)
    with written(config, folder, "horizon", argv):
        if not is_run:
            with Store(folder / "run.sqlite") as store, _bars(config) as bar:
                found = run_sync(_played(config, policies, store, bar))
        return _sum_up(config, folder, found, began_s)


def _policies(config: HorizonConfig) -> dict[str, Policy]:
    """What is measured, when every world that it will play in can be made. Raises ConfigError."""
    for more in ({}, *({"difficulty": level} for level in config.difficulty)):
        choose_tasks(config.env, arguments(config.split, config.horizon, config.kwargs | more), limit=1)
    models = zip(WHENS, (config.before, config.policy.model), strict=True)
    return {
        when: load_policy(replace(config.policy, model=model), config.view, config.concurrency)
        for when, model in models
        if model is not None
    }


def _sum_up(config: HorizonConfig, folder: Path, found: Figures, began_s: float) -> int:
    """The summary, the report, and what the terminal shows of them."""
    seconds = {"seconds_total": time.monotonic() - began_s}
    made_with = {"versions": versions(), "config": as_dict(config)}
    summary = {"command": "horizon", "seed": config.seed, **found, **seconds, **made_with}
    write(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    report = write_report(folder)
    if config.json:
        say(json.dumps(summary, indent=1))
    else:
        Console().print(rates_table(summary["by_horizon"], f"{summary['env']} · {summary['model']}"))
        say("\n".join(remarks(summary)))
        say(f"report   {report}\nsummary  {folder / 'summary.json'}")
    return 0 if summary["by_horizon"] else 1


# -- what is measured ---------------------------------------------------------------------------------------------


async def _played(config: HorizonConfig, policies: Mapping[str, Policy], store: Store, bar: Bar) -> Figures:
    """Play what is not played yet, and measure it."""
    phases: dict[str, Figures] = {}
    for when, policy in policies.items():
        try:
            phases[when] = await _Measured(config, when, policy, store, bar).figures()
        finally:
            if (close := getattr(policy, "aclose", None)) is not None:  # of a chat with a server
                await close()
    sizes = {when: size_of(config.policy, policy) for when, policy in policies.items()}
    about = {"env": config.env, "model": config.policy.model, "before": config.before}
    return {**about, **beside(phases), **_spent(store, sizes)}


def _spent(store: Store, sizes: Mapping[str, int | None]) -> Figures:
    """What all episodes of the policies came to, planted errors and maps included; `sizes` are their parameters. FLOPs
    are None where tokens are of a policy whose size is not known, or no size is."""
    of_run = {run: size for run in store.runs() for when, size in sizes.items() if run.partition("-")[0] == when}
    tokens, unsized, num_turns, flops = NONE, NONE, 0, 0.0
    for run, size in of_run.items():
        for episode in store.episodes(run=run):
            spent = episode.tokens
            tokens += spent
            unsized += spent if size is None else NONE
            num_turns += len(episode.turns)
            flops += forward_flops(size or 0, spent)
    known = flops if any(sizes.values()) and not unsized.total else None
    return {"num_turns": num_turns, "prompt_tokens": tokens.prompt, "sampled_tokens": tokens.sampled, "flops": known}


@dataclass(frozen=True, slots=True)
class _Measured:
    """One policy, and where its episodes go."""

    config: HorizonConfig
    when: str
    policy: Policy
    store: Store
    bar: Bar

    async def figures(self) -> Figures:
        config = self.config
        played = await self._evaluate(self.when, self.when, config.kwargs, config.attempts)
        kwargs = arguments(config.split, config.horizon, config.kwargs)
        made = await measured(config.env, kwargs, self.store.episodes(run=self.when), played.num_planned)
        if config.history != 0:
            made["conditioning"] = await self._planted(config.history or (made["h50"] or {}).get("value", 0))
        if config.difficulty:
            made["map"] = [await self._level(level) for level in sorted(set(config.difficulty))]
        return made

    async def _evaluate(self, run: str, name: str, env_kwargs: Mapping[str, Any], attempts: int) -> Evaluation:
        return await evaluate(
            self.config.env, self.policy, store=self.store, run=run, horizons=self.config.horizon,
            limit=self.config.limit, attempts=attempts, env_kwargs=env_kwargs, **self._given(name),
        )  # fmt: skip

    def _given(self, name: str) -> dict[str, Any]:
        config = self.config
        return {
            "split": config.split, "seed": config.seed, "progress": self.bar(name),
            "concurrency": 1 if config.policy.model == "human" else config.concurrency,
            "steady": not hasattr(self.policy, "aclose"), "plan": config.policy.plan,
        }  # fmt: skip

    async def _planted(self, history: float) -> Figures:
        """Self-conditioning, or the reason why it could not be measured."""
        config = self.config
        try:
            found = await conditioning(
                config.env, self.policy, store=self.store, run=self.when, history=min(max(round(history), 4), LONGEST),
                shares=[share / 100 for share in config.planted], limit=config.limit * config.attempts,
                env_kwargs=config.kwargs, **self._given(f"{self.when}, planted errors"),
            )  # fmt: skip
        except ConfigError as error:
            return {"verdict": "not measured", "why": str(error)}
        return found.as_json()

    async def _level(self, level: int) -> Figures:
        """One row of the map: the curve at one difficulty."""
        kwargs = self.config.kwargs | {"difficulty": level}
        found = await self._evaluate(f"{self.when}-map-{level}", f"{self.when}, difficulty {level}", kwargs, 1)
        points = [point for point in found.by_horizon if point.success.n]
        half = half_horizon(points).as_json() if points else None
        made = {"difficulty": level, "by_horizon": [point.as_json() for point in points], "h50": half}
        return made | {"num_planned": found.num_planned, "num_scored": found.num_scored}


def _recorded(run: Path) -> Figures:
    """The figures of a run's evaluation episodes: before and after training, or those of `agentgym eval`. Raises
    ConfigError where their tasks name no horizon, and where it is not clear which part is meant."""
    told = read_summary(run)
    config = told.get("config") or {}
    asked = tuple(config.get("test_horizon") or config.get("horizon") or ())
    kwargs = arguments(config.get("split") or "test", asked, settings(config.get("set") or ()))
    names = {"before": "before", "after": "after", "eval": "after"}
    if parts := parts_of(run):
        phase = _measurable(parts, run)
        kwargs = arguments(parts[phase].split, parts[phase].horizon, parts[phase].set)
        names = {phase: "after"}
    with Store(run / "run.sqlite", readonly=True) as store:
        episodes = {names[name]: list(store.episodes(run=name)) for name in store.runs() if name in names}
    if all(episode.metadata.get("horizon") is None for played in episodes.values() for episode in played):
        raise ConfigError(f"{run} holds no evaluation by horizon; give the environment, and the model with --model")
    [env, *_] = {episode.env_id for played in episodes.values() for episode in played}
    num_planned = {names[phase]: n for phase, n in planned(told).items() if phase in names}
    phases = {w: run_sync(measured(env, kwargs, episodes[w], num_planned.get(w))) for w in WHENS if w in episodes}
    trained = config.get("horizon") if "test_horizon" in config else None
    return {"env": env, "model": told.get("model"), "run": str(run), **beside(phases, trained or ())}


def _measurable(parts: Mapping[str, Part], run: Path) -> str:
    """The phase of the only part, or of the only one that was asked for horizons."""
    found = [phase for phase, part in parts.items() if part.horizon] if len(parts) > 1 else [*parts]
    if len(found) != 1:
        raise ConfigError(
            f"{run} has {len(parts)} parts ({', '.join(parts)}), {len(found)} of them with horizons, and one is "
            "measured: give its environment, and the model with --model"
        )
    return found[0]


async def measured(
    env_id: str, env_kwargs: Mapping[str, Any], episodes: Iterable[Episode], num_planned: int | None = None
) -> Figures:
    """Coverage, curve, horizons, first errors and hazard of episodes played in an environment made with `env_kwargs`.
    Without `num_planned`, they are all that was planned."""
    episodes = sorted(episodes, key=lambda e: (e.group, e.task_id, e.attempt))  # in whatever order they ended
    found = summarise(env_id, "", episodes, num_planned=num_planned)
    told, curve = found.as_json(), [point for point in found.by_horizon if point.success.n]
    made: Figures = {"by_horizon": [point.as_json() for point in curve], "h50": None, "h80": None}
    made["attempts"] = {name: told[name] for name in ("num_planned", "num_scored", "coverage", "verdict")}
    if curve:
        made |= {name: half_horizon(curve, level).as_json() for name, level in (("h50", 0.5), ("h80", 0.8))}
    try:
        errors = first_errors(episodes, await gold_paths(env_id, episodes, env_kwargs))
        survival = kaplan_meier(errors)
    except ConfigError as error:
        return made | {"survival": None, "hazard": None, "why_no_errors": str(error)}
    levels = {name: survival.horizon(level).as_json() for name, level in (("h50", 0.5), ("h80", 0.8))}
    return made | {"survival": survival.as_json() | levels, "hazard": hazard(errors).as_json()}


def beside(phases: Mapping[str, Figures], trained: Sequence[int] = ()) -> Figures:
    """One summary of both policies: rows by horizon, and every other figure under before and after."""
    rows: dict[int, Figures] = {}
    for when, figures in phases.items():
        for point in figures["by_horizon"]:
            k = point["horizon"]
            rows.setdefault(k, {"horizon": k, "trained": k in trained})[when] = point
    made: Figures = {"by_horizon": [row for _, row in sorted(rows.items())]}
    for when, figures in phases.items():
        made |= {f"h50_{when}": figures["h50"], f"h80_{when}": figures["h80"]}
    for name in ("attempts", "survival", "hazard", "conditioning", "map", "why_no_errors"):
        if any(figures.get(name) for figures in phases.values()):
            made[name] = {when: figures.get(name) for when, figures in phases.items()}
    return made


@contextmanager
def _bars(config: HorizonConfig) -> Iterator[Bar]:
    """Bars on standard error; yields what opens one and gives the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = config.json or config.policy.model == "human"
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=hidden) as progress:

        def opened(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=None)
            return lambda finished, planned: progress.update(task, completed=finished, total=planned)

        yield opened
