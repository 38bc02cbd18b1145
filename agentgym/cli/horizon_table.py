"""What the terminal shows of success by horizon, and of what else `agentgym horizon` measures.

Owns the words and the table. The figures are cli/horizon.py's, the report viewer/'s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from agentgym.evaluation.horizon import HalfHorizon
from agentgym.messages import safe

Figures = dict[str, Any]
WHENS = ("before", "after")
COLUMNS = (*WHENS, "greedy_before", "greedy_after")


def rates_table(rows: Sequence[Figures], title: str = "") -> Table:
    """Success by horizon, a column for each policy, every cell with its interval; with its denominator where there is
    room for it, else the least and the most of these stand below."""
    columns = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    has_room = len(columns) <= len(WHENS)
    sizes = sorted({row[name]["n"] for row in rows for name in columns if row.get(name)})
    about = "* trained; " if any(row.get("trained") for row in rows) else ""
    about += "95 % intervals" + ("" if has_room else f"; scored per cell: {sizes[0]} to {sizes[-1]}")
    table = Table(title=escape(safe(title)), caption=about, box=SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for heading in ("horizon", *(columns if len(columns) > 1 else ["success"])):
        table.add_column(heading.replace("_", " "), justify="right")
    for row in rows:
        cells = [_rate(row.get(name), has_room) for name in columns]
        table.add_row(f"{row['horizon']}{' *' if row.get('trained') else ''}", *cells)
    return table


def remarks(summary: Figures) -> list[str]:
    """What stands under the table, for each policy."""
    lines = []
    for when in WHENS:
        if f"h50_{when}" not in summary:
            continue
        if "h50_before" in summary:
            lines.append(f"{when}:")
        attempts = (summary.get("attempts") or {}).get(when) or {}
        if missing := _missing(attempts):
            lines.append(f"coverage {100 * attempts['coverage']:.1f} %, {attempts['verdict']}{missing}")
        lines.append(f"H50 {_half(summary[f'h50_{when}'])}, H80 {_half(summary[f'h80_{when}'])} (success curve)")
        lines += _of_errors(summary, when) + _of_planted((summary.get("conditioning") or {}).get(when))
        for level in (summary.get("map") or {}).get(when) or ():
            lines.append(f"H50 {_half(level['h50'])} at difficulty {level['difficulty']}{_missing(level)}")
    return lines


def _missing(of: Figures) -> str:
    """How much is scored, where that is not all."""
    scored, planned = of.get("num_scored", 0), of.get("num_planned", 0)
    return f" ({scored} of {planned} attempts scored)" if scored < planned else ""


def _of_errors(summary: Figures, when: str) -> list[str]:
    survival = (summary.get("survival") or {}).get(when)
    if survival is None:
        return [f"first errors: not measured; {(summary.get('why_no_errors') or {}).get(when)}"]
    found = summary["hazard"][when]
    shapes = ", ".join(
        f"{name} {shape['value']:.2f} [{shape['low']:.2f}, {shape['high']:.2f}]"
        for name, shape in (("pooled", found["pooled"]), ("within a task", found["within"]))
        if shape
    )
    return [
        f"H50 {_half(survival['h50'])}, H80 {_half(survival['h80'])} "
        f"(first errors: {survival['num_errors']} in {survival['num_attempts']} attempts)",
        f"hazard of errors: {found['verdict']}; {found['why']}" + (f". Weibull shape {shapes}" if shapes else ""),
    ]


def _of_planted(found: Figures | None) -> list[str]:
    if found is None:
        return []
    if found["verdict"] == "not measured":
        return [f"self-conditioning: not measured; {found['why']}"]
    rates = ", ".join(f"{100 * row['share']:.0f} % wrong: {100 * row['rate']:.0f} %" for row in found["by_share"])
    slope = found["slope"]
    bounds = "" if slope["low"] is None else f" [{slope['low']:+.2f}, {slope['high']:+.2f}]"
    return [
        f"self-conditioning: {found['verdict']}; the step after {found['history']} steps is right, {rates}; slope "
        f"{slope['mean']:+.2f}{bounds} of {slope['num_tasks']} tasks"
    ]


def _rate(cell: Figures | None, has_room: bool) -> str:
    if not cell or cell.get("rate") is None:
        return "–"
    rate, low, high = (f"{100 * cell[name]:.{int(has_room)}f}" for name in ("rate", "low", "high"))
    return f"{rate} % [{low}, {high}]" + (f" of {cell['n']}" if has_room else "")


def _half(half: Figures | None) -> str:
    return "–" if half is None else str(HalfHorizon(**{each.name: half[each.name] for each in fields(HalfHorizon)}))
