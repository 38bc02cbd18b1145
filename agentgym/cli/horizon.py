"""`agentgym horizon`: how far a policy gets, as a measurement.

Owns the command: its flags, its folder and what is played; horizon_table.py prints it. In evaluation/ the curve is
horizon.py's, first errors survival.py's, the hazard hazard.py's, planted errors conditioning.py's."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agentgym.cli import Interrupted, say
from agentgym.cli.horizon_table import WHENS, Figures, curve_table, remarks
from agentgym.cli.lock import LOCK_FILE, locked
from agentgym.cli.options import as_dict, from_toml, leaves, parse, settings, to_toml
from agentgym.cli.policy import MAY_CHANGE, PolicyConfig, load_policy, size_of
from agentgym.cli.versions import versions
from agentgym.errors import ConfigError
from agentgym.evaluation.conditioning import conditioning
from agentgym.evaluation.figures import Evaluation
from agentgym.evaluation.hazard import hazard
from agentgym.evaluation.horizon import half_horizon, success_curve
from agentgym.evaluation.run import arguments, choose_tasks, evaluate
from agentgym.evaluation.suite import Part
from agentgym.evaluation.survival import first_errors, gold_paths, kaplan_meier
from agentgym.ledger import Episode
from agentgym.loop import run_sync
from agentgym.policies.base import Policy
from agentgym.policies.context import ContextConfig
from agentgym.rollout.store import Store
from agentgym.viewer.report import read_summary, write_report

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
    """go on with the run in --output"""
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
    is_run = Path(config.env).is_dir()
    if not is_run:  # fail before anything is written
        choose_tasks(config.env, arguments(config.split, config.horizon, config.kwargs), limit=1)
    folder = _open_folder(config)
    with locked(folder):
        lasting = replace(config, output=None, resume=False, json=False)
        (folder / "config.toml").write_text(to_toml(lasting, versions()), encoding="utf-8")
        if is_run:
            return _sum_up(config, folder, _recorded(Path(config.env)))
        with Store(folder / "run.sqlite") as store:  # closed last: whoever reads beside it leaves no files of its own
            try:
                with _bars(config) as bar:
                    found = run_sync(_played(config, store, bar))
            except KeyboardInterrupt:
                again = [
                    "agentgym",
                    "horizon",
                    *argv,
                    *(() if config.resume else ("--output", str(folder), "--resume")),
                ]
                raise Interrupted(f"Stopped; what was played is kept. Go on with:\n  {shlex.join(again)}") from None
            return _sum_up(config, folder, found)


def _sum_up(config: HorizonConfig, folder: Path, found: Figures) -> int:
    """The summary, the report, and what the terminal shows of them."""
    summary = {"command": "horizon", "seed": config.seed, **found, "versions": versions(), "config": as_dict(config)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    report = write_report(folder)
    if config.json:
        say(json.dumps(summary, indent=1))
    else:
        Console().print(curve_table(summary))
        say("\n".join(remarks(summary)))
        say(f"report   {report}\nsummary  {folder / 'summary.json'}")
    return 0 if summary["by_horizon"] else 1


# -- what is measured ---------------------------------------------------------------------------------------------


async def _played(config: HorizonConfig, store: Store, bar: Bar) -> Figures:
    """Play what is not played yet, and measure it."""
    phases: dict[str, Figures] = {}
    for when, model in zip(WHENS, (config.before, config.policy.model), strict=True):
        if model is None:
            continue
        policy = load_policy(replace(config.policy, model=model), config.view, config.concurrency)
        try:
            phases[when] = await _Measured(config, when, policy, store, bar).figures()
        finally:
            if (close := getattr(policy, "aclose", None)) is not None:  # of a chat with a server
                await close()
    return {"env": config.env, "model": config.policy.model, "before": config.before, **beside(phases)}


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
        await self._evaluate(self.when, self.when, config.kwargs, config.attempts)
        kwargs = arguments(config.split, config.horizon, config.kwargs)
        made = await measured(config.env, kwargs, list(self.store.episodes(run=self.when)))
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
            "num_parameters": size_of(config.policy, self.policy),
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
        return {"difficulty": level, "by_horizon": [point.as_json() for point in points], "h50": half}


def _recorded(run: Path) -> Figures:
    """The figures of a run's evaluation episodes: before and after training, or those of `agentgym eval`."""
    told = read_summary(run)
    config = told.get("config") or {}
    with Store(run / "run.sqlite", readonly=True) as store:
        names = {"before": "before", "after": "after", "eval": "after"}
        episodes = {names[name]: list(store.episodes(run=name)) for name in store.runs() if name in names}
    horizons = tuple(config.get("test_horizon") or config.get("horizon") or ())
    if not episodes or not horizons:
        raise ConfigError(f"{run} holds no evaluation by horizon; give the environment, and the model with --model")
    [env] = [told["env"]] if isinstance(told["env"], str) else told["env"]
    kwargs = arguments(config.get("split") or "test", horizons, settings(config.get("set") or ()))
    phases = {when: run_sync(measured(env, kwargs, episodes[when])) for when in WHENS if when in episodes}
    trained = config.get("horizon") if "test_horizon" in config else None
    return {"env": env, "model": told.get("model"), "run": str(run), **beside(phases, trained or ())}


async def measured(env_id: str, env_kwargs: Mapping[str, Any], episodes: Sequence[Episode]) -> Figures:
    """Curve, horizons, first errors and hazard of episodes played in an environment made with `env_kwargs`."""
    curve = [point for point in success_curve(episodes) if point.success.n]
    made: Figures = {"by_horizon": [point.as_json() for point in curve], "h50": None, "h80": None}
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
    for name in ("survival", "hazard", "conditioning", "map", "why_no_errors"):
        if any(figures.get(name) for figures in phases.values()):
            made[name] = {when: figures.get(name) for when, figures in phases.items()}
    return made


# -- the run's folder and its progress ------------------------------------------------------------------------------


def _open_folder(config: HorizonConfig) -> Path:
    """The run's folder with its config.toml: a new one, or with --resume the one in --output."""
    stem = f"horizon-{Path(config.env).name}"
    folder = config.output
    if config.resume:
        if folder is None or not (folder / "config.toml").is_file():
            raise ConfigError(f"--resume: give the folder of the run that is to go on with --output, not {folder}")
        saved = leaves(from_toml(HorizonConfig, folder / "config.toml"))
        for name, value in leaves(config).items():
            if name not in MAY_CHANGE and saved[name] != value:
                raise ConfigError(
                    f"--resume: {folder} was begun with {name} {saved[name]!r}, not {value!r}; "
                    "use the same, or begin a new run with another --output"
                )
    elif folder is None:
        taken = [int(n) for path in Path("runs").glob(f"{stem}-*") if (n := path.name.rpartition("-")[2]).isdecimal()]
        folder = Path("runs") / f"{stem}-{max(taken, default=0) + 1}"
    elif folder.exists() and (not folder.is_dir() or any(path.name != LOCK_FILE for path in folder.iterdir())):
        raise ConfigError(f"--output {folder} is there already: add --resume to go on, or choose another")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
