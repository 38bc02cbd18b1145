"""What a report says of horizons: success by horizon, first errors, planted errors, maps.

Owns what of a summary is drawn, and its words. Drawing is charts.py's, the page report.py's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from agentgym.viewer import charts

WHEN = {"before": charts.BEFORE, "after": charts.AFTER}


def measured(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `agentgym horizon` measured of each policy beside its success curve, with its words."""
    found = []
    for when in WHEN:
        parts = {name: (summary.get(name) or {}).get(when) for name in ("survival", "hazard", "conditioning", "map")}
        attempts = (summary.get("attempts") or {}).get(when) or {}
        missing = attempts if attempts.get("num_scored", 0) < attempts.get("num_planned", 0) else None
        if any(parts.values()) or missing:
            why = (summary.get("why_no_errors") or {}).get(when)
            found.append({"when": when, **parts, "why": why, "missing": missing})
    return found


def _marks(halves: Mapping[str, Mapping[str, Any]]) -> list[charts.HalfMark]:
    return [
        charts.HalfMark(f"50 % at {half['text']}", color, half["value"], half["low"], half["high"])
        for when, color in WHEN.items()
        if (half := halves.get(when)) and half["value"] > 0
    ]


def figures_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """First errors and planted errors of both policies in one picture each, and a map of each policy."""
    figures: dict[str, Any] = {}
    found = {name: {w: x for w, x in (summary.get(name) or {}).items() if x} for name in ("survival", "conditioning")}
    if found["survival"]:
        curves = [
            charts.Curve(when, WHEN[when], s["steps"], s["share"], s["low"], s["high"])
            for when, s in found["survival"].items()
        ]
        halves = {when: s["h50"] | {"text": half_text(s["h50"])} for when, s in found["survival"].items()}
        figures["without_error"] = charts.without_error(curves, _marks(halves))
    planted = {when: x["by_share"] for when, x in found["conditioning"].items() if "by_share" in x}
    if planted:
        figures["after_errors"] = charts.after_errors([
            charts.Curve(
                when, WHEN[when], [100 * row["share"] for row in rows],
                *([row[key] for row in rows] for key in ("rate", "low", "high")),
            )
            for when, rows in planted.items()
        ])  # fmt: skip
    maps = {when: levels or () for when, levels in (summary.get("map") or {}).items()}
    figures["maps"] = {w: _difficulty_figure(w, x) for w, x in maps.items() if any(level["by_horizon"] for level in x)}
    return figures


def _difficulty_figure(when: str, levels: Sequence[Mapping[str, Any]]) -> str:
    horizons = sorted({row["horizon"] for level in levels for row in level["by_horizon"]})
    rates = []
    for level in levels:
        known = {row["horizon"]: row["rate"] for row in level["by_horizon"]}
        rates.append([known.get(horizon, math.nan) for horizon in horizons])
    halves = [level["h50"]["value"] if level["h50"] else math.nan for level in levels]
    return charts.difficulty_map(f"map-{when}", [level["difficulty"] for level in levels], horizons, rates, halves)


def halves(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The 50 % horizons, as text and interval, and whether too much of an evaluation is missing."""
    whens = ("before", "after", "greedy_after")
    told = {when: attempts.get("verdict") for when, attempts in (summary.get("attempts") or {}).items()}
    return {
        when: half | {"text": half_text(half), "verdict": told.get(when)}
        for when in whens
        if (half := summary.get(f"h50_{when}"))
    }


def half_text(half: Mapping[str, Any]) -> str:
    """The value alone, as a person says it."""
    if not half["value"]:
        return "not reached"
    return f"{'≥ ' if half.get('at_least') else ''}{half['value']:.1f}".removesuffix(".0")


def columns(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Success by horizon with a column for each policy; `agentgym eval` has one policy, and no columns."""
    rows = summary.get("by_horizon") or []
    return [{"horizon": row["horizon"], "after": row} if "rate" in row else row for row in rows]


def success_figure(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    curves = []
    for column, color in (
        ("greedy_before", "before"),
        ("greedy_after", "after"),
        ("before", "before"),
        ("after", "after"),
    ):
        tested = [(row["horizon"], row[column]) for row in rows if finite((row.get(column) or {}).get("rate"))]
        if not tested:
            continue
        sampled = not column.startswith("greedy")
        curves.append(
            charts.Curve(
                label=column,
                color=charts.BEFORE if color == "before" else charts.AFTER,
                horizons=[horizon for horizon, _ in tested],
                rates=[cell["rate"] for _, cell in tested],
                low=[cell["low"] for _, cell in tested] if sampled else None,
                high=[cell["high"] for _, cell in tested] if sampled else None,
            )
        )
    trained = [row["horizon"] for row in rows if row.get("trained")]
    marks = _marks(halves(summary))
    return charts.success_by_horizon(curves, (min(trained), max(trained)) if trained else None, marks) if curves else ""


def finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)
