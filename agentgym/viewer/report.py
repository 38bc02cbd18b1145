"""A run's page: `report.html`, self-contained, readable without a network and without scripts.

Owns what the page says. It reads the files a run wrote (summary.json, metrics.jsonl, run.sqlite) and computes no
statistic of its own; the figures are drawn by charts.py, the layout and the escaping are report.html.jinja's."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from agentgym.errors import ConfigError
from agentgym.learner.metrics import read_metrics
from agentgym.ledger import Episode
from agentgym.messages import clean
from agentgym.rollout.store import Store
from agentgym.viewer import charts, horizons
from agentgym.viewer.samples import samples

STOP_COLORS = {  # Okabe & Ito's colour-blind safe set; limits in warm tones
    "answered": "#0072B2",
    "ended": "#56B4E9",
    "max_turns": "#E69F00",
    "max_tokens": "#D55E00",
    "max_time": "#CC79A7",
    "context": "#F0E442",
    "cancelled": "#999999",
    "failed": "#555555",
}
PART_COLORS = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#999999")
KINDS = {"train": "training report", "eval": "evaluation report", "horizon": "horizon report"}


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a bar that adds up to the whole."""

    label: str
    amount: float
    share: float
    color: str
    text: str


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` from what the run has written, and return its path."""
    run_dir = Path(run_dir)
    summary = read_summary(run_dir)
    metrics = read_metrics(run_dir / "metrics.jsonl")
    page = render(summary, metrics, _read_phases(run_dir), name=run_dir.resolve().name)
    path = run_dir / "report.html"
    scratch = path.with_suffix(".html.part")
    scratch.write_text(page, encoding="utf-8")
    os.replace(scratch, path)  # a reader never sees half a page
    return path


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The run's summary.json. Raises ConfigError where the run has none yet, or it cannot be read."""
    path = run_dir / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{run_dir} has no summary.json: not a run, or not finished; its command goes on with --resume"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}; run the command again with --resume") from error
    if not isinstance(summary, dict):
        raise ConfigError(f"{path} is no summary of a run: {str(summary)[:40]}; run the command again with --resume")
    return summary


def render(
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    phases: Mapping[str, Sequence[Episode]],
    name: str,
) -> str:
    """The page as one HTML text. phases: evaluation phase -> its episodes."""
    import jinja2  # noqa: PLC0415  an optional package

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, seconds=seconds, count=count)
    summary = {**summary, "by_horizon": horizons.columns(summary)}
    page = environment.get_template("report.html.jinja").render(
        name=name,
        kind=KINDS.get(summary.get("command") or "train", "report"),
        summary=summary,
        facts=_facts(summary),
        rates=_rates(summary),
        halves=horizons.halves(summary),
        horizon_rows=summary["by_horizon"],
        horizons=horizons.measured(summary),
        figures=_figures(summary, metrics),
        stops=_stops(phases),
        time=_time(summary, metrics),
        failures=_failure_rows(phases, metrics, planned(summary)),
        samples=samples(*_sides(summary, phases)),
        versions=summary.get("versions") or {},
        config=flat(summary.get("config") or {}),
    )
    return clean(page)


def percent(rate: float | None) -> str:
    return "–" if rate is None or math.isnan(rate) else f"{100 * rate:.1f}\u202f%"


def seconds(value: float | None) -> str:
    """A duration as a person says it."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.0f}\u202fs"
    return f"{value / 60:.1f}\u202fmin" if value < 7200 else f"{value / 3600:.1f}\u202fh"


def count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def _read_phases(run_dir: Path) -> dict[str, list[Episode]]:
    """The evaluation phases' episodes. Those of training are many, and metrics.jsonl has their figures."""
    path = run_dir / "run.sqlite"
    if not path.is_file():
        return {}
    store = Store(path, readonly=True)
    try:
        return {p: list(store.episodes(run=p)) for p in store.runs() if p != "train" and "planted" not in p}
    finally:
        store.close()


def _sides(
    summary: Mapping[str, Any], phases: Mapping[str, Sequence[Episode]]
) -> tuple[Sequence[Episode] | None, Iterable[Episode]]:
    """The episodes before, where there was a before, and those after; of an evaluation all of them."""
    if summary.get("command") == "eval":
        return None, chain.from_iterable(phases.values())
    return phases.get("before"), phases.get("after", ())


def _facts(summary: Mapping[str, Any]) -> list[str]:
    """The line under the title: what was trained, for how long, at what cost."""
    facts = []
    if summary.get("model"):
        facts.append(str(summary["model"]))
    if summary.get("num_parameters"):
        facts.append(f"{summary['num_parameters'] / 1e6:.2f} M parameters")
    if summary.get("seed") is not None:
        facts.append(f"seed {summary['seed']}")
    if summary.get("updates"):
        facts.append(f"{summary['updates']} updates")
    if summary.get("seconds_total"):
        facts.append(f"{seconds(summary['seconds_total'])} in all")
    if summary.get("peak_rss_bytes"):
        facts.append(f"peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB")
    if summary.get("tokens_per_second"):
        facts.append(f"{count(summary['tokens_per_second'])} sampled tokens/s")
    return facts


def _rates(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the interval plot: what succeeded how often, with its interval and denominator."""
    trained = [row for row in summary.get("by_horizon") or [] if row.get("trained")]

    def row(label: str, kind: str, rate: float | None, bounds: Sequence[float] | None, n: int | None) -> None:
        if rate is not None and bounds is not None:
            rows.append({"label": label, "kind": kind, "rate": rate, "low": bounds[0], "high": bounds[1], "n": n})

    def denominator(column: str) -> int | None:
        return sum(r[column]["n"] for r in trained if r.get(column)) or None

    rows: list[dict[str, Any]] = []
    if rate := summary.get("success"):  # of `agentgym eval`
        row("success", "after", rate["rate"], (rate["low"], rate["high"]), rate["n"])
    row("before, sampled", "before", summary.get("success_before"), summary.get("ci_before"), denominator("before"))
    row("after, sampled", "after", summary.get("success_after"), summary.get("ci_after"), denominator("after"))
    for when in ("before", "after"):
        column = f"greedy_{when}"
        row(f"{when}, greedy", when, summary.get(column), summary.get(f"ci_{column}"), denominator(column))
    for key, label in (("demonstrator", "demonstrator"), ("control", "warm start alone")):
        beside = summary.get(key)
        if beside and beside.get("rate") is not None:
            row(label, "beside", beside["rate"], (beside["low"], beside["high"]), beside.get("n"))
        greedy = (beside or {}).get("greedy")
        if greedy and greedy.get("rate") is not None:
            row(f"{label}, greedy", "beside", greedy["rate"], (greedy["low"], greedy["high"]), greedy.get("n"))
    for reward, control in (summary.get("controls") or {}).items():
        row(f"{reward} reward", "beside", control["success_after"], control["ci_after"], denominator("after"))
    return rows


def _figures(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"health": [], **horizons.figures_of(summary)}
    rows = summary.get("by_horizon") or []
    if rows:
        figures["horizon"] = horizons.success_figure(summary, rows)
    if len(metrics) < 2:
        return figures
    key = "success" if all(record.get("success") is not None for record in metrics) else "reward_mean"
    points = [(int(r["update"]), float(r[key])) for r in metrics if r.get(key) is not None]
    if points:
        updates, rates = zip(*points, strict=True)
        demonstrator = (summary.get("demonstrator") or {}).get("rate")
        figures["learning"] = charts.learning_curve(updates, rates, "Success of the training batch", demonstrator)
    figures["map"] = _map_figure(metrics)
    for name, title, bar in (
        ("entropy", "entropy of sampled tokens, nats", None),
        ("kl", "KL to the sampling weights, nats", None),
        ("kl_k3", "KL to the sampling weights, nats", None),
        ("clip_fraction", "share of clipped tokens", None),
        ("grad_norm", "gradient norm before clipping", None),
        ("zero_variance_share", "share of groups without signal", None),
        ("mismatch_max", "largest engine–learner log-prob gap (bar 1e-4)", 1e-4),
    ):
        points = [(int(r["update"]), float(r[name])) for r in metrics if horizons.finite(r.get(name))]
        if len(points) >= 2:
            updates, values = zip(*points, strict=True)
            figures["health"].append((title, charts.small_line(name, title, updates, values, bar)))
    return figures


def _map_figure(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Training success by horizon and update, where the metrics have it for more than one horizon."""
    tested = sorted({int(h) for record in metrics for h in record.get("by_horizon") or {}})
    if len(tested) < 2:
        return ""
    rates = []
    for horizon in tested:
        cells = [(record.get("by_horizon") or {}).get(str(horizon)) for record in metrics]
        rates.append([cell if horizons.finite(cell) else math.nan for cell in cells])
    return charts.horizon_map([int(record["update"]) for record in metrics], tested, rates)


def _stops(phases: Mapping[str, Sequence[Episode]]) -> list[tuple[str, int, list[Share]]]:
    """Per evaluation phase: why its episodes ended."""
    bars = []
    for phase, episodes in phases.items():
        if episodes:
            reasons = Counter(str(e.stop_reason) for e in episodes)
            ordered = [(reason, reasons[reason]) for reason in STOP_COLORS if reasons[reason]]
            bars.append((_phase_label(phase), len(episodes), _bar(ordered, STOP_COLORS.get, lambda n: f"{n:.0f}")))
    return bars


def _time(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[Share]:
    """Where the wall time went. Generation and learning are parts of the training time; the rest is 'other'."""
    spent = {
        "warm start": float(summary.get("seconds_warm_start") or 0),
        "generation": sum(float(record.get("seconds_generate") or 0) for record in metrics),
        "learning": sum(float(record.get("seconds_learn") or 0) for record in metrics),
        "evaluation": float(summary.get("seconds_evaluate") or 0),
        "control": float(summary.get("seconds_control") or 0),
    }
    spent["other"] = max(float(summary.get("seconds_total") or 0) - sum(spent.values()), 0.0)
    colors = dict(zip(spent, PART_COLORS, strict=True))
    return _bar([(label, amount) for label, amount in spent.items() if amount > 0], colors.get, seconds)


def _bar(amounts: Iterable[tuple[str, float]], color: Any, text: Any) -> list[Share]:
    amounts = list(amounts)
    total = sum(amount for _, amount in amounts) or 1
    return [
        Share(label.replace("_", " "), amount, amount / total, color(label) or "#999999", text(amount))
        for label, amount in amounts
    ]


def planned(summary: Mapping[str, Any]) -> dict[str, int]:
    """The attempts that a phase was to have, where the summary says it."""
    told = dict(summary.get("attempts") or {})  # of `agentgym horizon`
    if summary.get("command") == "eval":
        told = {part["name"]: part for part in summary.get("environments") or [{**summary, "name": "eval"}]}
    return {phase: n for phase, figures in told.items() if (n := (figures or {}).get("num_planned"))}


def _failure_rows(
    phases: Mapping[str, Sequence[Episode]], metrics: Sequence[Mapping[str, Any]], num_planned: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Per phase: episodes, failures by whose fault they are, the denominator and the coverage."""
    rows = []
    for phase, episodes in phases.items():
        kinds = Counter(str(e.failure.kind) for e in episodes if e.failure is not None)
        rows.append(_failure_row(_phase_label(phase), len(episodes), kinds, num_planned.get(phase, len(episodes))))
    kinds, played = Counter(), 0
    for record in metrics:
        kinds.update({kind: int(n) for kind, n in (record.get("failures") or {}).items() if kind in _KINDS})
        played += sum(int(n) for n in (record.get("stop_reasons") or {}).values())
    if played:
        place = next((i for i, phase in enumerate(phases) if phase.startswith("after")), len(rows))
        rows.insert(place, _failure_row("training", played, kinds, played))
    return rows


_KINDS = ("policy", "task", "infrastructure")


def _failure_row(label: str, played: int, kinds: Mapping[str, int], num_planned: int) -> dict[str, Any]:
    scored = played - kinds.get("task", 0) - kinds.get("infrastructure", 0)
    coverage = scored / num_planned if num_planned else 0.0
    counts = {kind: kinds.get(kind, 0) for kind in _KINDS}
    about = {"label": label, "planned": num_planned, "played": played, "scored": scored}
    return {**about, "coverage": coverage, **counts}


def _phase_label(phase: str) -> str:
    return phase if "/" in phase else phase.replace("_", " ").replace("-", " ")  # an environment's id is one


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `table.key`."""
    rows: dict[str, Any] = {}
    for key, value in config.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return rows
