"""How an evaluation is shown: the line of progress, the table, the remarks under it, and the same as Markdown.

Owns words and layout. The figures are evaluation/figures.py's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agentgym.evaluation.budget import Budget
from agentgym.evaluation.figures import MIN_COVERAGE, Evaluation, Tally
from agentgym.evaluation.intervals import Interval, success_interval
from agentgym.ledger import Tokens
from agentgym.messages import safe

COLUMNS = ("success", "95 % interval", "scored", "failed")
SHOWN_S = 0.5  # between two looks at the figures: an interval over many episodes is work


@contextmanager
def progress_bar(budget: Budget, *, disable: bool) -> Iterator[Any]:
    """A line on standard error: rate, time left, running success, tokens, money, failures. Yields the function that
    moves it: (name of the part, its tally)."""
    name_column, facts_column = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[facts]}", markup=False),
    )
    columns = (name_column, BarColumn(10), MofNCompleteColumn(), TimeRemainingColumn(), facts_column)
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=disable, refresh_per_second=4)
    tasks: dict[str, Any] = {}
    piloted: set[str] = set()
    shown_s = 0.0

    def show(name: str, tally: Tally) -> None:
        nonlocal shown_s
        done, now_s = len(tally.episodes), time.monotonic()
        if name not in tasks:
            tasks[name] = bar.add_task(safe(name.rpartition("/")[2]), total=tally.num_planned, completed=done, facts="")
        if tally.is_pilot:
            piloted.add(name)
        elif name in piloted:
            piloted.discard(name)
            console.print(pilot_line(tally, budget), soft_wrap=True)
        task = next(task for task in bar.tasks if task.id == tasks[name])
        if now_s - shown_s < SHOWN_S and task.completed < done < tally.num_planned:
            bar.update(tasks[name], completed=done)
            return
        shown_s, speed = now_s, task.speed
        rate = f"{speed:.1f}/s · " if speed else ""
        bar.update(tasks[name], completed=done, facts=rate + facts(tally, budget))

    with bar:
        yield show


def facts(tally: Tally, budget: Budget) -> str:
    """What has come in so far, in a line."""
    won = success_interval(tally.episodes)
    found = [f"success {100 * won.rate:.0f} % [{100 * won.low:.0f}, {100 * won.high:.0f}]"] if won.n else []
    if tally.tokens.total:
        found.append(f"{tally.tokens.total:,} tokens")
    if (cost := budget.cost(tally.tokens)) is not None:
        found.append(f"cost {cost:.4g} of about {budget.cost(tally.tokens_in_all):.4g}")
    if tally.failures:
        found.append("failed: " + counts(tally.failures))
    return " · ".join(found)


def pilot_line(tally: Tally, budget: Budget) -> str:
    """What a few episodes say of the whole."""
    whole = tally.tokens_in_all
    seconds = sum(turn.policy_s + turn.env_s for episode in tally.episodes for turn in episode.turns)
    each_s = seconds / max(len(tally.episodes), 1)
    cost = budget.cost(whole)
    money = "" if cost is None else f"cost {cost:.4g}, "
    return (
        f"pilot: about {money}{whole.total:,} tokens and {each_s * tally.num_planned:,.0f} s of episodes in all "
        f"(from {len(tally.episodes)} of {tally.num_planned})"
    )


def rows(evaluations: Mapping[str, Evaluation], overall: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """One environment by horizon, several by name, and what all come to; the heading first."""
    if overall is None:
        (evaluation,) = evaluations.values()
        found = [("horizon", *COLUMNS)]
        found += [(str(p.horizon), *_cells(p.success), str(p.num_failed)) for p in evaluation.by_horizon]
        return found if len(evaluation.by_horizon) == 1 else [*found, ("all", *_of(evaluation))]
    found = [("environment", *COLUMNS)]
    found += [(name, *_of(each)) for name, each in evaluations.items()]
    lost = sum(each.num_played - each.num_scored for each in evaluations.values())
    rate = "–" if overall["rate"] is None else f"{100 * overall['rate']:.1f} %"
    interval = f"[{100 * overall['low']:.1f}, {100 * overall['high']:.1f}]"
    return [*found, ("weighted", rate, interval, str(overall["n"]), str(lost))]


def table(lines: Sequence[tuple[str, ...]], title: str) -> Table:
    """For the terminal; the last row, where it sums up, is set off."""
    made = Table(title=escape(safe(title)), title_justify="left")
    for heading in lines[0]:
        made.add_column(heading, justify="left" if heading == "environment" else "right", no_wrap=True)
    for line in lines[1:]:
        sums_up = line[0] in ("all", "weighted")
        if sums_up:
            made.add_section()
        made.add_row(*(escape(safe(cell)) for cell in line), style="bold" if sums_up else None)
    return made


def markdown(lines: Sequence[tuple[str, ...]], title: str, remarks: Sequence[str]) -> str:
    """The same for summary.md."""
    head, *body = [f"| {' | '.join(map(_marked, line))} |" for line in lines]
    rule = "|" + " --- |" * len(lines[0])
    said = [f"- {_marked(remark.strip())}" for remark in remarks]
    return "\n".join([f"# {_marked(title)}", "", head, rule, *body, "", *said, ""])


def remarks(evaluation: Evaluation) -> list[str]:
    """What stands under the table: coverage and verdict, reward, reliability, ends, cost, and what went wrong."""
    e = evaluation
    lines = [f"coverage {100 * e.coverage:.1f} % ({e.num_scored} of {e.num_planned} scored)"]
    if e.undecided:
        lines.append(f"verdict: undecided; below {100 * MIN_COVERAGE:.0f} % coverage the rate says too little")
    if e.num_cut:
        lines.append(f"cut by the budget: {e.num_cut} episodes under way; what is missing is rather the long ones")
    lines.append(f"mean reward {e.reward}")
    if len(e.reward_parts) > 1:
        lines.append("mean parts: " + ", ".join(f"{name} {value:.3g}" for name, value in e.reward_parts.items()))
    if len(e.passes) > 1:
        lines += [_passes(each) for each in (e.passes[0], e.passes[-1])]
    if (c := e.calibration) is not None:
        lines.append(
            f"calibration: said {100 * c.confidence:.1f} %, right {100 * c.accuracy:.1f} %; ECE {c.ece_width:.3f} by "
            f"width, {c.ece_mass:.3f} by mass; Brier {c.brier:.3f}; AUROC {c.auroc:.3f}; surer half right "
            f"{100 * c.accuracy_at(0.5):.1f} % ({c.n} answers, {c.num_unstated} more without a confidence)"
        )
    if (m := e.minutes) is not None:
        low, high = m.p50_interval
        lines.append(
            f"half of the tasks that take people {m.p50:.3g} minutes [{low:.3g}, {high:.3g}] "
            f"({m.num_tasks} tasks of {m.num_families} families)"
        )
    lines.append(f"ended: {counts(e.stop_reasons)}")
    read = f", prompt tokens {e.tokens.prompt:,}" if e.tokens.prompt else ""
    each = f" ({e.tokens.sampled / max(e.num_played, 1):.1f} an episode)" if e.tokens.sampled else ""
    lines.append(f"mean turns {e.mean_turns:.1f}, sampled tokens {e.tokens.sampled:,}{each}{read}")
    if e.cost is not None:
        each = "no success" if e.cost_per_success is None else f"{e.cost_per_success:.4g} a success"
        lines.append(f"cost {e.cost:.4g}: {e.cost / max(e.num_played, 1):.4g} an episode, {each}")
    if e.failures:
        lines.append(
            f"failures: {counts(e.failures)} (policy failures count as attempts without success, the others not at all)"
        )
    lines += [
        f"  {cause.n} x {cause.cause}, the first: {' '.join(cause.first[:200].split())}" for cause in e.causes[:3]
    ]
    return lines


def bill(spent: Tokens, budget: Budget) -> str:
    """What the whole run has cost, with what is in no figure."""
    cost = budget.cost(spent)
    money = "" if cost is None else f", cost {cost:.4g}"
    limit = "" if budget.max_total_tokens is None else f" of {budget.max_total_tokens:,}"
    return f"spent in all, what was cut or played again included: {spent.total:,} tokens{limit}{money}"


def said(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The remarks of one evaluation, or of several by name."""
    if len(evaluations) == 1:
        return remarks(*evaluations.values())
    told = {name: remarks(each) for name, each in evaluations.items()}
    return [line for name, lines in told.items() for line in (f"{name}:", *(f"  {x}" for x in lines))]


def counts(of: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(of.items(), key=lambda item: -item[1]))


def _marked(text: str) -> str:
    """A name or a message that Markdown takes for nothing else."""
    return re.sub(r"[\\`*_<|~]|\](?=\()", r"\\\g<0>", safe(text))


def _passes(each: Any) -> str:
    found = each.as_json()
    rates = ", ".join(
        f"{name.replace('k', str(each.k))} {100 * found[name]['rate']:.1f} % "
        f"[{100 * found[name]['low']:.1f}, {100 * found[name]['high']:.1f}]"
        for name in ("pass@k", "pass^k")
        if found[name]["rate"] is not None
    )
    return f"{rates} ({found['num_tasks']} tasks)"


def _of(evaluation: Evaluation) -> tuple[str, ...]:
    return (*_cells(evaluation.overall), str(evaluation.num_played - evaluation.num_scored))


def _cells(success: Interval) -> tuple[str, str, str]:
    if not success.n:
        return "–", "–", "0"
    return f"{100 * success.rate:.1f} %", f"[{100 * success.low:.1f}, {100 * success.high:.1f}]", str(success.n)
