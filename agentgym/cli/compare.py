"""`agentgym compare`: runs beside one another on the same tasks, with intervals and the tasks that changed.

Owns the command, its refusals and its table. What is paired, tested and refused is evaluation/compare.py's business."""

from __future__ import annotations

import difflib
import gc
import json as json_
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentgym.cli import say
from agentgym.cli.options import parse
from agentgym.cli.show import choose_phases, find_run, read_config
from agentgym.errors import ConfigError
from agentgym.evaluation.compare import (
    POWER,
    TARGET,
    Comparison,
    Difference,
    Flip,
    Mismatch,
    Places,
    by_place,
    compare,
    corrected,
    mismatches,
)
from agentgym.messages import safe, transcript
from agentgym.rollout.store import Store, opening
from agentgym.viewer.report import flat, read_summary

EXAMPLE = "agentgym compare runs/eval-Lookup-v0-gold-1 runs/eval-Lookup-v0-random-1"
NUM_FLIPS = 5  # that the terminal shows; --json has all


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs on the tasks they share: paired differences of success and reward with 95 % intervals.

    The first run is A, to which each of the others is compared. Refuses runs that differ in tasks, prompts or
    environment version, and shows what differs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN[:PHASE]")]
    """folders of runs, or their names under runs/; with a phase behind a colon, such as runs/Lookup-v0-1:before"""
    anyway: bool = False
    """compare what they share where they differ in tasks, prompts or environment version"""
    json: bool = False
    """print the comparison as JSON, with every task that changed"""

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise ConfigError(f"{' '.join(self.runs)}: give at least two runs, the first of which is compared with")


@dataclass(frozen=True)
class Side:
    """One run: where it is, and what its episodes came to."""

    folder: Path
    phases: tuple[str, ...]
    places: Places
    stored: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by place: share of the planned episodes
    command: str | None = None  # that wrote it, where it has ended

    def __str__(self) -> str:
        return f"{self.folder}:{'+'.join(self.phases)}"


def main(argv: Sequence[str]) -> int:
    config = parse(CompareConfig, argv, "agentgym compare", EXAMPLE)
    gc.disable()  # it would look again and again through 100,000 episodes, none of which is garbage
    try:
        return told(config)
    finally:
        gc.enable()


def told(config: CompareConfig) -> int:
    """Read, refuse or compare, and print."""
    first, *others = (read(run) for run in config.runs)
    found = []
    for other in others:
        if (first.folder.resolve(), first.phases) == (other.folder.resolve(), other.phases):
            raise ConfigError(f"{other} is A itself; give another run, or another phase: {other.folder}:PHASE")
        differ = mismatches(first.places, other.places)
        if differ and not config.anyway:
            raise ConfigError(refusal(first, other, differ))
        if not (comparisons := compare(first.places, other.places)):
            raise ConfigError(f"A {first} and B {other} share no environment and split, so nothing can be compared")
        found.append((other, differ, comparisons))
    num_tests = sum(len(comparisons) for _, _, comparisons in found)
    together = iter(corrected([each for _, _, comparisons in found for each in comparisons]))
    found = [(b, differ, [_of_planned(next(together), first, b) for _ in made]) for b, differ, made in found]
    if config.json:
        say(json_.dumps([_as_json(first, *each) for each in found], indent=2))
        return 0
    say(f"A  {first}")
    for other, differ, comparisons in found:
        say(f"B  {other}")
        for line in (*settings_that_differ(first, other), *(each.text for each in differ)):
            say(f"   differs: {line}")
        for side in (side for side in (first, other) if min(side.stored.values()) < 1):
            say(f"   {side} is not finished: what is missing counts as not covered; its command goes on with --resume")
        Console().print(table(comparisons, num_tests))
        for line in remarks(comparisons, partial(shown, a=first, b=other)):
            say(line)
    return 0


def read(run: str) -> Side:
    """A run, and of it the phase behind a colon, or every part of an evaluation, or what a training run ended with.
    Raises ConfigError where two parts are of one environment and split: they would pass for attempts on its tasks."""
    folder, phase = _found(run)
    with Store(folder / "run.sqlite", readonly=True) as store:
        phases = choose_phases(phase, store.runs(), folder)
        results = [each for name in phases for each in store.outcomes(run=name)]
        if any(each.opening is None for each in results):  # a file from before they were kept
            told = {each.key: opening(each.messages) for name in phases for each in store.episodes(run=name)}
            results = [each._replace(opening=told[each.key]) for each in results]
    places = by_place(results)
    played = {place: Counter(each.run for task in tasks.values() for each in task) for place, tasks in places.items()}
    for (env, split), parts in played.items():
        if len(parts) > 1:
            which = " or ".join(f"{folder}:{part}" for part in parts)
            raise ConfigError(f"{folder} has several parts of {env}, split {split}; give one of them: {which}")
    if not (folder / "summary.json").is_file():
        return Side(folder, phases, places, dict.fromkeys(places, 0.0))
    summary = read_summary(folder)
    planned = {each["name"]: each["num_planned"] for each in summary.get("environments", ())}
    of_all = len(results) / (summary.get("num_planned") or len(results))
    stored = {
        place: min(1.0, n / planned[part] if part in planned else of_all)
        for place, parts in played.items()
        for part, n in parts.items()
    }
    return Side(folder, phases, places, stored, summary.get("command"))


def _found(run: str) -> tuple[Path, str | None]:
    """The folder, and the phase behind a colon; both may have colons of their own."""
    first, *others = [at for at in range(1, len(run) - 1) if run[at] == ":"] or [len(run)]
    for at in (len(run), *reversed(others)):
        with suppress(ConfigError):
            return find_run(run[:at]), run[at + 1 :] or None
    return find_run(run[:first]), run[first + 1 :] or None


def _of_planned(found: Comparison, a: Side, b: Side) -> Comparison:
    place = found.name, found.split
    return replace(found, coverage_a=found.coverage_a * a.stored[place], coverage_b=found.coverage_b * b.stored[place])


def refusal(a: Side, b: Side, differ: Sequence[Mismatch]) -> str:
    lines = [f"A {a} and B {b} are not the same experiment; --anyway compares what they share."]
    for each in differ:
        lines += [f"  {each.text}", *(f"    {line}" for line in prompt_diff(a, b, each))]
    return "\n".join([*lines, *(f"  {line}" for line in settings_that_differ(a, b))])


def prompt_diff(a: Side, b: Side, of: Mismatch, most: int = 12) -> Iterator[str]:
    """The lines that one prompt has and the other has not."""
    texts = []
    for side, key in zip((a, b), of.keys or (), strict=False):
        with Store(side.folder / "run.sqlite", readonly=True) as store:
            run, update, task, attempt = key
            [episode] = store.episodes(run=run, update=update, task=task, attempt=attempt)
        told = takewhile(lambda message: message["role"] != "assistant", episode.messages)
        texts.append(transcript(told).splitlines())
    if texts:
        lines = [*difflib.unified_diff(texts[0], texts[1], "A", "B", lineterm="", n=0)]
        yield from (line[:200] for line in lines[:most])
        if len(lines) > most:
            yield f"… {len(lines) - most} lines more"


def settings_that_differ(a: Side, b: Side) -> list[str]:
    """`name: value of A -> value of B` for the two config.toml files, versions of packages left out; of two commands
    the settings that both have."""
    configs = (read_config(side.folder) for side in (a, b))
    one, two = (flat(told | {"part": {part["name"]: part for part in told.get("part", ())}}) for told in configs)
    known = one.keys() | two.keys() if a.command == b.command else one.keys() & two.keys()
    names = sorted(name for name in known if one.get(name) != two.get(name))
    return [f"{name}: {one.get(name)!r} -> {two.get(name)!r}" for name in names if not name.startswith("versions.")]


def table(comparisons: Sequence[Comparison], num_tests: int) -> Table:
    """A row for success and one for the mean reward of each environment and split, of `num_tests` made together."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("environment, split")
    for heading in ("A", "B", "B − A", "95 % interval", "p"):
        made.add_column(heading, justify="right", no_wrap=True)
    for each in comparisons:
        p = f"{each.success.p:.2g}" + (f" ({each.p_holm:.2g})" if num_tests > 1 else "")
        made.add_row(escape(safe(f"{each.name}, {each.split}")), *_cells(each.success), p)
        if (each.reward.a, each.reward.b) != (each.success.a, each.success.b):
            made.add_row("  mean reward", *_cells(each.reward), f"{each.reward.p:.2g}")
    more = f"; in brackets corrected for {num_tests} comparisons (Holm)" if num_tests > 1 else ""
    tests = " or ".join(sorted({each.test for each in comparisons}))
    made.caption = f"success in %, a mean over tasks; p: {tests}{more}"
    made.caption_justify = "left"
    return made


def remarks(comparisons: Sequence[Comparison], command: Callable[[Flip], list[str]]) -> Iterator[str]:
    """Verdict, denominators and power of each comparison, and by `command` how to see the tasks that changed."""
    for each in comparisons:
        yield f"{each.name}, {each.split}: {each.verdict()}"
        missing = f"; {each.num_unpaired} more are missing or without a scored attempt in one of the two"
        yield (
            f"  {each.success.num_tasks} tasks{missing if each.num_unpaired else ''}; scored episodes on them: A "
            f"{each.a.n} (coverage {100 * each.coverage_a:.1f} %), B {each.b.n} ({100 * each.coverage_b:.1f} %)"
        )
        if each.success.num_needed is not None:
            yield (
                f"  to see {100 * TARGET:.0f} points in {100 * POWER:.0f} % of such comparisons, about "
                f"{each.success.num_needed:,} tasks would be needed"
            )
        worse = sum(flip.b < flip.a for flip in each.flips)
        yield f"  tasks that changed: {len(each.flips)} ({len(each.flips) - worse} better in B, {worse} worse)"
        for flip in each.flips[:NUM_FLIPS]:
            yield f"    {flip.task_id}: {100 * flip.a:.0f} % -> {100 * flip.b:.0f} %"
            yield from (f"      {line}" for line in command(flip))


def shown(flip: Flip, a: Side, b: Side) -> list[str]:
    """The commands that print the two transcripts."""
    return [
        " ".join(map(_word, ("agentgym", "show", str(side.folder), "--phase", run, f"--task={task}")))
        + f" --attempt {attempt}"
        + (f" --update {update}" if update else "")
        for side, (run, update, task, attempt) in ((a, flip.shows_a), (b, flip.shows_b))
    ]


def _word(text: str) -> str:
    """Quoted for a shell; what cannot be printed as the escapes of $'…'."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(x if x.isprintable() and x not in "\\'" else f"\\U{ord(x):08x}" for x in text) + "'"


def _as_json(a: Side, b: Side, differ: Sequence[Mismatch], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    made = [each.as_json() for each in comparisons]
    for told, each in zip(made, comparisons, strict=True):
        for line, flip in zip(told["flips"], each.flips, strict=True):
            line["show_a"], line["show_b"] = shown(flip, a, b)
    differences = [*settings_that_differ(a, b), *(each.text for each in differ)]
    return {"a": str(a), "b": str(b), "differs": differences, "comparisons": made}


def _cells(of: Difference) -> tuple[str, ...]:
    bounds = f"[{100 * of.low:+.1f}, {100 * of.high:+.1f}]"
    return f"{100 * of.a:.1f}", f"{100 * of.b:.1f}", f"{100 * of.value:+.1f}", bounds
