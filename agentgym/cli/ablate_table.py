"""What an ablation says: means over seeds with intervals, paired differences, one table.

Owns the statistics over seeds and the wording. Pure functions of runs' summaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

KEPT = (
    "seed", "success_before", "success_after", "greedy_before", "greedy_after", "h50_after", "seconds_total", "weights",
)  # fmt: skip


def mean_interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any] | None:
    """Mean over seeds and its interval by Student's t with n - 1 degrees of freedom (Student 1908): seeds are the
    repeats, tasks are not. One seed has a mean and no interval; none has nothing. Equal values have one of no width."""
    from scipy.special import stdtrit  # noqa: PLC0415  0.2 s to import

    n = len(values)
    if n < 2:
        return {"mean": float(values[0]), "low": None, "high": None, "n": 1} if n else None
    half = float(stdtrit(n - 1, (1 + level) / 2)) * stdev(values) / math.sqrt(n)
    return {"mean": fmean(values), "low": fmean(values) - half, "high": fmean(values) + half, "n": n}


def row(
    switch: str, flags: str, runs: Mapping[int, Mapping[str, Any]], planned: int, failed: Mapping[str, str],
    first: Mapping[int, Mapping[str, Any]] | None,
) -> dict[str, Any]:  # fmt: skip
    """One switch: its finished runs (seed -> summary) together, and by seed against the first switch's; None for the
    first itself."""
    found: dict[str, Any] = {"switch": switch, "flags": flags, "planned": planned, "failed": dict(failed)}
    for key in ("success_before", "success_after", "greedy_after"):
        found[key] = mean_interval([s[key] for s in runs.values()])
    found["worst_horizon"] = _worst(list(runs.values()))
    h50 = [s["h50_after"] for s in runs.values() if s["h50_after"]]
    found["h50_after"] = mean_interval([h["value"] for h in h50])
    found["h50_at_least"] = any(h["at_least"] for h in h50)
    if first is not None:
        pairs = [s["success_after"] - first[seed]["success_after"] for seed, s in runs.items() if seed in first]
        found["difference"] = mean_interval(pairs)
    found["seconds"] = mean_interval([s["seconds_total"] for s in runs.values()])
    return found | {"runs": [{key: s[key] for key in KEPT} for s in runs.values()]}


def _worst(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The trained horizon whose mean over seeds is least, after training."""
    rates: dict[int, list[float]] = {}
    for point in (p for s in summaries for p in s["by_horizon"] if p["trained"]):
        if point["after"]["rate"] is not None:
            rates.setdefault(point["horizon"], []).append(point["after"]["rate"])
    means = {horizon: mean_interval(found) for horizon, found in rates.items()}
    worst = min(means, key=lambda h: fmean(rates[h]), default=None)
    return None if worst is None else {"horizon": worst, **(means[worst] or {})}


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a person reads it: a Markdown table, padded, and what has to be said beneath."""
    rows = report["rows"]
    heads = ("switch", "seeds", "success, before -> after, %", "greedy, %", "worst horizon, %", "50 % horizon",
             f"against {rows[0]['switch']}, points", "s")  # fmt: skip
    table = [heads, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in table]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    told = "means over seeds, 95 % intervals over seeds (Student's t); success on held-out tasks; differences by seed"
    lines += ["", f"{report['env']}: {told}."]
    lines += [f"{each['switch']}, seed {seed} failed: {why}" for each in rows for seed, why in each["failed"].items()]
    if any(each["failed"] for each in rows):
        lines.append("What failed is in no mean: a switch that kills runs looks better than it is.")
    if len(report["versions"]) > 1:
        lines.append(f"The runs were made by {len(report['versions'])} different versions, see ablate.json.")
    return "\n".join(lines) + "\n"


def _cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    worst, before = line["worst_horizon"], line["success_before"]
    finished = f"{len(line['runs'])}/{line['planned']}"
    return (
        line["switch"],
        f"{finished}, {len(line['failed'])} failed" if line["failed"] else finished,
        "–" if before is None else f"{100 * before['mean']:.1f} -> {_told(line['success_after'], 100, 0, 100)}",
        _told(line["greedy_after"], 100, 0, 100),
        "–" if worst is None else f"{_told(worst, 100, 0, 100)} (h {worst['horizon']})",
        ("≥ " if line["h50_at_least"] else "") + _told(line["h50_after"], 1, 0, math.inf),
        _told(line.get("difference"), 100, -100, 100, "+"),
        "–" if line["seconds"] is None else f"{line['seconds']['mean']:.0f}",
    )


def _told(interval: Mapping[str, Any] | None, scale: float, low: float, high: float, sign: str = "") -> str:
    """`83.1 [70.1, 96.0]`, its ends within what is possible."""
    if interval is None:
        return "–"
    mean = f"{scale * interval['mean']:{sign}.1f}"
    if interval["low"] is None:
        return mean
    ends = (min(max(scale * interval[end], low), high) for end in ("low", "high"))
    return f"{mean} [{', '.join(f'{end:{sign}.1f}' for end in ends)}]"
