"""What `agentgym horizon` prints of its summary.

Owns the words and the table. The figures are cli/horizon.py's, the report viewer/'s."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rich.table import Table

from agentgym.evaluation.horizon import HalfHorizon

Figures = dict[str, Any]
WHENS = ("before", "after")


def curve_table(summary: Figures) -> Table:
    """Success by horizon, a column for each policy, every cell with its interval and denominator."""
    phases = [when for when in WHENS if f"h50_{when}" in summary]
    table = Table(title=f"{summary['env']} · {summary.get('model')}", title_justify="left")
    for heading in ("horizon", *(phases if len(phases) > 1 else ["success"])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary["by_horizon"]:
        cells = [row.get(when) for when in phases]
        table.add_row(str(row["horizon"]), *("–" if cell is None else _rate(cell) for cell in cells))
    return table


def remarks(summary: Figures) -> list[str]:
    """What stands under the table, for each policy."""
    lines = []
    for when in WHENS:
        if f"h50_{when}" not in summary:
            continue
        if "h50_before" in summary:
            lines.append(f"{when}:")
        lines.append(f"H50 {_half(summary[f'h50_{when}'])}, H80 {_half(summary[f'h80_{when}'])} (success curve)")
        lines += _of_errors(summary, when) + _of_planted((summary.get("conditioning") or {}).get(when))
        for level in (summary.get("map") or {}).get(when) or ():
            lines.append(f"H50 {_half(level['h50'])} at difficulty {level['difficulty']}")
    return lines


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


def _rate(cell: Figures) -> str:
    return f"{100 * cell['rate']:.1f} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}] of {cell['n']}"


def _half(half: Figures | None) -> str:
    names = [each.name for each in fields(HalfHorizon)]
    return "–" if half is None else str(HalfHorizon(**{name: half[name] for name in names}))
