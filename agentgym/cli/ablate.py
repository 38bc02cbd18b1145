"""`agentgym ablate`: runs of `agentgym train` that differ in named switches, over seeds, in one table with intervals.

Owns the switches and the plan. A run is an ordinary one: what its flags mean, and how it goes on after a kill, is
train.py's business; their processes are ablate_runs.py's, the statistics and the table ablate_table.py's."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from agentgym.cli import Interrupted, say
from agentgym.cli.ablate_runs import Cell, Switch, refuse_other, run_cells
from agentgym.cli.ablate_table import markdown, row
from agentgym.cli.lock import locked
from agentgym.cli.options import parse
from agentgym.cli.train import TrainConfig, _configured
from agentgym.errors import ConfigError, nearest

EXAMPLE = (
    'agentgym ablate --switch "mean: --credit outcome_mean" "state: --credit same_state" --seeds 0 1 2 -- --updates 40'
)
LADDERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "dapo": (  # Yu et al. 2025, table 1; for an agent, overlong is whatever a limit cut short
        ("naive GRPO", "--credit grpo --denominator trajectories --clip-low 0.2 --clip-high 0.2"),
        ("overlong filter", "--masked-stops max_tokens max_turns max_time context"),
        ("clip-higher", "--clip-high 0.28"),
        ("soft overlong penalty", "--overlong-limit {limit} --overlong-cache {cache}"),
        ("token loss", "--denominator tokens"),
        ("dynamic sampling", "--resample 4"),
    )
}
CACHE_SHARE = 5  # the penalty rises over the last fifth before the limit: 4,096 of 20,480 tokens in the paper


@dataclass(frozen=True)
class AblateConfig:
    """Train once per switch and seed, and compare: success with 95 % intervals over seeds, paired differences.

    Flags of `agentgym train` that all runs share stand behind a lone --. The same command goes on where the last one
    stopped: finished runs are kept, half-done ones resumed."""

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")] = "agentgym/Lookup-v0"
    """Environment id; its folder's train.toml, where it has one, holds the defaults."""
    switch: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """What is compared, each as "name: --flag value …"; differences are taken from the first. {seed} in a flag is the
    run's seed. In a file: a table [switches], name = "flags"."""
    cumulative: bool = False
    """Every switch adds its flags to those of the one before: a ladder."""
    ladder: str | None = None
    """A published ladder before the switches: dapo."""
    overlong_limit: int = 0
    """Of the ladder's soft penalty: sampled tokens at which an episode loses 1; it rises over the fifth before them."""
    grid: tuple[str, ...] = ()
    """All combinations, after the switches: credit=leave_one_out,grpo "horizon=6,1 2 3"."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each switch."""
    output: Path | None = None
    """Folder of the runs and the table; runs/ablate-<name> without it."""
    jobs: int = 1
    """Runs at once."""
    dry_run: bool = False
    """Print the runs' commands and what is done of them, and begin none."""
    switches: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    flags: Annotated[str, tyro.conf.Suppress] = ""  # in a file: what stands behind -- otherwise

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {' '.join(map(str, self.seeds))}: give at least one, each once, from 0 on")
        if self.jobs < 1:
            raise ConfigError(f"jobs is {self.jobs}; give at least 1")
        if self.ladder is not None and self.ladder not in LADDERS:
            raise ConfigError(f"no ladder {self.ladder!r}{nearest(self.ladder, LADDERS)} There is {', '.join(LADDERS)}")
        if (self.ladder is None) != (self.overlong_limit == 0) or self.overlong_limit < 0:
            raise ConfigError(
                f"ladder {self.ladder} with overlong_limit {self.overlong_limit}: a ladder needs the limit, nothing "
                "else does. length_sampled in a run's metrics.jsonl says how many tokens an episode has"
            )


def main(argv: Sequence[str]) -> int:
    split = list(argv).index("--") if "--" in argv else len(argv)
    config = parse(AblateConfig, argv[:split], "agentgym ablate", EXAMPLE)
    shared = (*_words(config.flags, "flags"), *argv[split + 1 :])
    output = config.output or Path("runs") / f"ablate-{config.env.rpartition('/')[2]}"
    cells = planned(config.env, _switches(config), config.seeds, output, shared)
    if config.dry_run:
        for cell in cells:
            say(f"{cell.state:<9} {shlex.join(['agentgym', *cell.command])}")
        return 0
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        try:
            failed = run_cells(cells, jobs=config.jobs)
        except KeyboardInterrupt:
            _tell(compared(cells), output)
            again = shlex.join(["agentgym", "ablate", *argv])
            raise Interrupted(f"What was finished is kept. Go on with:\n  {again}") from None
        _tell(compared(cells, failed), output)
    return 1 if failed else 0


# -- the plan ----------------------------------------------------------------------------------------------------------


def _switches(config: AblateConfig) -> list[Switch]:
    """The ladder's, the named ones, the grid's. Raises ConfigError where there is none."""
    found: list[Switch] = []
    if config.ladder is not None:
        limit = config.overlong_limit
        rungs = [(name, f.format(limit=limit, cache=limit // CACHE_SHARE)) for name, f in LADDERS[config.ladder]]
        found += _climbed([Switch(name, tuple(flags.split())) for name, flags in rungs])
    named = [_switch(text) for texts in config.switch for text in texts]
    named += [Switch(name, _words(flags, f"switch {name!r}")) for name, flags in config.switches.items()]
    found += _climbed(named) if config.cumulative else named
    found += _grid(config.grid) if config.grid else []
    if not found:
        raise ConfigError('nothing to compare: give --switch "name: --flag value", --grid flag=value,value or --ladder')
    return found


def _switch(text: str) -> Switch:
    name, colon, flags = text.partition(":")
    if not colon:
        raise ConfigError(f"--switch {text!r} has no name: write 'name: --flag value', or 'name:' to change nothing")
    return Switch(name.strip(), _words(flags, f"--switch {text!r}"))


def _climbed(rungs: Sequence[Switch]) -> list[Switch]:
    """Each with the flags of those before it."""
    return [Switch(rung.name, sum((r.flags for r in rungs[: i + 1]), ())) for i, rung in enumerate(rungs)]


def _grid(axes: Sequence[str]) -> list[Switch]:
    """All combinations of `name=value,value`; a value may be several words: `horizon=6,1 2 3`."""
    options: list[list[tuple[str, tuple[str, ...]]]] = []
    for axis in axes:
        name, _, values = axis.partition("=")
        if not name or not all(value.strip() for value in values.split(",")):
            raise ConfigError(f"--grid {axis!r}: write name=value,value such as credit=leave_one_out,grpo")
        flag = f"--{name.lstrip('-').replace('_', '-')}"
        options.append([(f"{name}={value}", (flag, *_words(value, f"--grid {axis!r}"))) for value in values.split(",")])
    return [
        Switch(" ".join(name for name, _ in chosen), sum((flags for _, flags in chosen), ()))
        for chosen in itertools.product(*options)
    ]


def _words(text: str, where: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{where}: {str(error).lower()}; close the quotes") from None


def planned(
    env: str, switches: Sequence[Switch], seeds: Sequence[int], output: Path, shared: Sequence[str] = ()
) -> list[Cell]:
    """Every run, all switches of one seed before the next seed, so that what is done can be compared. Flags are read as
    train reads them. Raises ConfigError for wrong ones, names given twice, and folders that hold other runs."""
    switches = [Switch(switch.name, (*shared, *switch.flags)) for switch in switches]
    folders = [switch.folder for switch in switches]
    for switch in switches:
        if folders.count(switch.folder) > 1:
            raise ConfigError(f"switch {switch.name!r} is there twice (folder {switch.folder}); give each its own name")
    cells = []
    for switch in switches:
        config = None
        for seed in seeds:
            if config is None or any("{seed}" in flag for flag in switch.flags):
                config = _read(env, switch, seed)
            folder = output / switch.folder / f"seed-{seed}"
            cells.append(Cell(switch, seed, folder, replace(config, seed=seed)))
            refuse_other(cells[-1])
    return sorted(cells, key=lambda cell: list(seeds).index(cell.seed))


def _read(env: str, switch: Switch, seed: int) -> TrainConfig:
    told = f"switch {switch.name!r}, flags {shlex.join(switch.flags)!r}"
    try:
        return _configured([env, *(flag.replace("{seed}", str(seed)) for flag in switch.flags)])
    except SystemExit:
        raise ConfigError(f"{told}: agentgym train does not take them, see above; it has --help") from None
    except ConfigError as error:
        raise ConfigError(f"{told}: {error}") from None


def compared(cells: Sequence[Cell], failed: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """The finished runs of each switch together, and against the first switch's by seed."""
    rows: list[dict[str, Any]] = []
    first: dict[int, dict[str, Any]] | None = None
    made: list[dict[str, Any]] = []
    for switch in dict.fromkeys(cell.switch for cell in cells):
        members = [cell for cell in cells if cell.switch == switch]
        runs = {cell.seed: summary for cell in members if (summary := cell.summary) is not None}
        causes = {str(cell.seed): failed[cell.folder] for cell in members if failed and cell.folder in failed}
        rows.append(row(switch.name, shlex.join(switch.flags), runs, len(members), causes, first))
        first = runs if first is None else first
        made += [summary["versions"] for summary in runs.values() if summary["versions"] not in made]
    return {"env": cells[0].config.env, "seeds": sorted({c.seed for c in cells}), "rows": rows, "versions": made}


def _tell(report: Mapping[str, Any], output: Path) -> None:
    (output / "ablate.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    (output / "ablate.md").write_text(markdown(report), "utf-8")
    say(f"\n{markdown(report)}\nwritten to {output / 'ablate.md'} and {output / 'ablate.json'}")
