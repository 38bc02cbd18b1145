"""`agentgym eval`: a policy's success on held-out tasks.

Owns the command: its flags, its folder, its budget and what it writes. What is played is evaluation/run.py's business,
how it looks eval_table.py's."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from agentgym.cli import eval_table, say
from agentgym.cli.folder import CONFIG, changed, opened, saved, write, written
from agentgym.cli.options import as_dict, parse, settings
from agentgym.cli.policy import MAY_CHANGE, PolicyConfig, load_policy, size_of
from agentgym.cli.show import read_config
from agentgym.cli.versions import versions
from agentgym.errors import ConfigError
from agentgym.evaluation import suite
from agentgym.evaluation.budget import Budget, Meter
from agentgym.evaluation.figures import Evaluation, Tally
from agentgym.evaluation.run import arguments, choose_tasks, evaluate
from agentgym.evaluation.suite import Part
from agentgym.ledger import NONE, Tokens
from agentgym.loop import run_sync
from agentgym.policies.base import Policy
from agentgym.policies.context import ContextConfig
from agentgym.rollout.store import Store

EXAMPLE = "agentgym eval agentgym/Lookup-v0 --model runs/Lookup-v0-1/model --horizon 1 2 4 8 --limit 40"
SPENT = "spent.txt"  # prompt and sampled tokens of the run so far
# What a resumed run may be told anew; of the parts see _refuse_other_parts.
MAY_GROW = {"limit", "attempts", "task", "report", "part", *MAY_CHANGE} | {each.name for each in fields(Budget)}
OF_A_PART = ("env", "split", "limit", "attempts", "horizon", "task", "set")  # a suite says these for each


@dataclass(frozen=True)
class EvalConfig:
    """Measure a policy's success on held-out tasks, by horizon, with 95 % intervals.

    Writes every episode to runs/<name>/; Ctrl-C keeps them, --resume goes on."""

    env: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ENV...")] = ()
    """environment ids; `agentgym list` shows them"""
    suite: str | None = None
    """a TOML file that names environments, or the shipped suite: short"""
    split: str = "test"
    """split of the tasks"""
    limit: int = 100
    """tasks: the first so many of the split; with --horizon, so many of each"""
    task: tuple[str, ...] = ()
    """ids of tasks, in place of the first so many"""
    attempts: int = 1
    """independent episodes per task"""
    horizon: tuple[int, ...] = ()
    """horizons to test; the environment's own without it"""
    set: tuple[str, ...] = ()
    """more arguments of the environment, name=JSON: --set difficulty=1"""
    seed: int = 0
    """seed of everything: same seed, same episodes"""
    concurrency: int = 64
    """episodes at once"""
    output: Path | None = None
    """folder of the run; runs/eval-<environment>-<model>-<n> without it"""
    resume: bool = False
    """go on with the run in --output (or begin it), or with the newest of this environment and model"""
    json: bool = False
    """print the summary as JSON"""
    report: bool = False
    """write report.html too: figures, failures, sample episodes"""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    budget: Budget = field(default_factory=Budget)
    view: ContextConfig = field(default_factory=ContextConfig)
    part: Annotated[tuple[Part, ...], tyro.conf.Suppress] = ()
    """what the suite said when the run was begun or last gone on with"""

    def __post_init__(self) -> None:
        try:
            Part("", limit=self.limit, attempts=self.attempts, horizon=self.horizon)  # checks them
        except ConfigError as error:
            raise ConfigError(f"--{error}") from None
        for name, least in (("concurrency", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: give at least {least}")
        if not self.env and self.suite is None:
            raise ConfigError("give an environment, such as agentgym/Door-v0, or --suite short; see `agentgym list`")

    def planned(self, argv: Sequence[str] = ()) -> tuple[EvalConfig, tuple[Part, ...]]:
        """What is played: this, with the suite's sampling and parts, and the parts. Raises ConfigError where a file of
        defaults, or a flag in `argv`, says what the suite says."""
        if self.suite is not None:
            flags = {arg.partition("=")[0][2:].replace("-", "_") for arg in argv if arg.startswith("--")}
            for name in OF_A_PART:
                if name in flags or getattr(self, name) != getattr(EvalConfig, name):
                    raise ConfigError(f"--suite {self.suite} says {name} for each environment; leave it out here")
            found = suite.load(self.suite)
            said = {name: value for name, value in as_dict(found.sampling).items() if value is not None}
            for name, value in said.items():
                given = getattr(self.policy, name)
                if given != value and (name in flags or given != getattr(PolicyConfig, name)):
                    flag = f"--{name.replace('_', '-')}"
                    raise ConfigError(f"--suite {self.suite} says {name} = {value}; leave {flag} out here")
            try:
                return replace(self, policy=replace(self.policy, **said), part=found.parts), found.parts
            except ConfigError as error:
                raise ConfigError(f"--suite {self.suite}: sampling: {str(error).removeprefix('--')}") from None
        made = tuple(
            Part(env, "", self.split, self.limit, self.attempts, self.horizon, self.task, settings(self.set))
            for env in self.env
        )
        suite.refuse_doubles(made)
        return self, made


def main(argv: Sequence[str]) -> int:
    config, parts = parse(EvalConfig, argv, "agentgym eval", EXAMPLE).planned(argv)
    for part in parts:  # fail before anything is written
        choose_tasks(part.env, arguments(part.split, part.horizon, part.set), limit=1, task_ids=part.task)
    policy = load_policy(config.policy, config.view, config.concurrency)
    folder, started_s = opened(config, _stem(config), MAY_GROW), time.monotonic()
    if (folder / CONFIG).is_file():
        _refuse_other_parts(config, folder)
    with written(config, folder, "eval", argv):
        evaluations, spent = played(config, parts, policy, folder)
        return _sum_up(config, parts, evaluations, spent, folder, time.monotonic() - started_s)


def parts_of(folder: Path) -> dict[str, Part]:
    """What `agentgym eval` was asked to play in the folder's run, by the phase of its episodes; nothing where another
    command wrote it. A run of a suite that has not kept its parts has those of the suite's file today."""
    if not isinstance(read_config(folder).get("env"), list):
        return {}
    config = saved(EvalConfig, folder)
    return _phases(config.part or (suite.load(config.suite).parts if config.suite else config.planned()[1]))


def _phases(parts: Sequence[Part]) -> dict[str, Part]:
    """The parts by the phase under which their episodes are stored: `eval` where there is one, else their names."""
    return {"eval" if len(parts) == 1 else part.name: part for part in parts}


def _refuse_other_parts(config: EvalConfig, folder: Path) -> None:
    """A suite's file may have come to ask for more tasks or attempts, and for nothing else: raises ConfigError."""

    def told(parts: Sequence[Part]) -> dict[str, Any]:
        each = {f"{part.name}: {name}": value for part in parts for name, value in as_dict(part).items()}
        kept = {name: value for name, value in each.items() if name.rpartition(" ")[2] not in MAY_GROW}
        return {"parts": sorted(part.name for part in parts), **kept}

    before, now = told(saved(EvalConfig, folder).part), told(config.part)
    for name in before:
        if before["parts"] and now[name] != before[name]:
            raise changed(folder, name, before[name], now[name])


def played(
    config: EvalConfig, parts: Sequence[Part], policy: Policy, folder: Path
) -> tuple[dict[str, Evaluation], Tokens]:
    """Every part's evaluation, by its name, as far as the budget goes; and what the run has cost in all."""
    hidden = config.json or config.policy.model == "human"
    store = Store(folder / "run.sqlite")
    try:
        with (
            _bill(folder / SPENT) as (spent, record),
            eval_table.progress_bar(config.budget, disable=hidden) as show,
        ):
            meter = Meter(config.budget, config.policy.max_tokens, spent, before=store.episodes(), record=record)
            found = run_sync(_played(config, parts, policy, store, meter, show))
            return found, meter.spent
    finally:
        store.close()


@contextmanager
def _bill(path: Path) -> Iterator[tuple[Tokens, Callable[[Tokens], object]]]:
    """What the run has cost so far, and the way to write it down: in place and in one go, so that no kill tears it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        text = os.read(file, 99).decode(errors="replace")
        try:
            spent = Tokens(*map(int, text.split()))
        except (ValueError, TypeError):
            raise ConfigError(f"{path} holds {text!r} in place of two counts; remove it to go on without") from None
        yield spent, lambda tokens: os.pwrite(file, b"%20d %20d\n" % (tokens.prompt, tokens.sampled), 0)
    finally:
        os.close(file)


async def _played(
    config: EvalConfig, parts: Sequence[Part], policy: Policy, store: Store, meter: Meter, show: Any
) -> dict[str, Evaluation]:
    found: dict[str, Evaluation] = {}
    concurrency = 1 if config.policy.model == "human" else config.concurrency
    close = getattr(policy, "aclose", None)  # of a chat, which computes nothing here: order and company do not matter
    try:
        for phase, part in _phases(parts).items():
            tally = Tally()
            found[part.name] = await evaluate(
                part.env, policy, store=store, run=phase, split=part.split,
                horizons=part.horizon or None, limit=part.limit, task_ids=part.task, attempts=part.attempts,
                seed=config.seed, env_kwargs=part.set, concurrency=concurrency, steady=close is None, meter=meter,
                plan=config.policy.plan, num_parameters=size_of(config.policy, policy),
                tally=tally, progress=lambda done, planned, name=part.name, tally=tally: show(name, tally),
            )  # fmt: skip
    finally:
        if close is not None:
            await close()
    return found


def _stem(config: EvalConfig) -> str:
    what = Path(config.suite).stem if config.suite else "-".join(env.rpartition("/")[2] for env in config.env)
    return f"eval-{what}-{Path(config.policy.model).name}"


def _sum_up(
    config: EvalConfig, parts: Sequence[Part], evaluations: Mapping[str, Evaluation], spent: Tokens,
    folder: Path, seconds: float,
) -> int:  # fmt: skip
    """Write what it came to, and say it."""
    overall = None
    if len(parts) == 1:
        figures = evaluations[parts[0].name].as_json()
    else:
        overall = suite.weighted([(part.weight, evaluations[part.name].overall) for part in parts])
        figures = _together(parts, evaluations) | {"success": overall}
    summary = {
        "command": "eval",
        "model": config.policy.model,
        "seed": config.seed,
        **figures,
        "spent": {
            "prompt_tokens": spent.prompt,
            "sampled_tokens": spent.sampled,
            "cost": config.budget.cost(spent),
        },
        "seconds_total": seconds,
        "versions": versions(),
        "config": as_dict(config),
    }
    text = json.dumps(summary, indent=2)
    title = f"{config.suite or ', '.join(config.env)} · {config.policy.model}"
    lines = eval_table.rows(evaluations, overall)
    in_figures = sum((each.tokens for each in evaluations.values()), NONE)
    remarks = eval_table.said(evaluations) + ([eval_table.bill(spent, config.budget)] if spent != in_figures else [])
    write(folder / "summary.json", text + "\n")
    write(folder / "summary.md", eval_table.markdown(lines, title, remarks))
    if config.report:
        from agentgym.viewer.report import write_report  # noqa: PLC0415  matplotlib: 0.4 s, and optional

        write_report(folder)
    if config.json:
        say(text)
    else:
        Console().print(eval_table.table(lines, title))
        say("\n".join(remarks))
        if any(each.num_played < each.num_planned for each in evaluations.values()):
            say("The budget is spent; --resume with a larger one goes on.")
        say(f"Every episode is in {folder}; `agentgym show {folder} --episode 0` prints one.")
    return 0 if any(each.num_scored for each in evaluations.values()) else 1


def _together(parts: Sequence[Part], evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Sums over the environments of a suite, and the figures of each."""
    each = [as_dict(part) | evaluations[part.name].as_json() for part in parts]
    sums: dict[str, Any] = {}
    for name in ("num_planned", "num_played", "num_scored", "prompt_tokens", "sampled_tokens", "cost", "flops"):
        values = [figures[name] for figures in each]
        sums[name] = None if None in values else sum(values)
    return {
        "env": ", ".join(dict.fromkeys(part.env for part in parts)),
        "verdict": "undecided" if any(figures["verdict"] == "undecided" for figures in each) else "decided",
        **sums,
        "coverage": sums["num_scored"] / sums["num_planned"],
        "environments": each,
    }
