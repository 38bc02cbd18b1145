"""The report's figures as inline SVG that follows the page's colours, light or dark.

Owns drawing. What is drawn, and the words around it, are report.py's; the colours behind the names are the
template's style sheet."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib writes and `_inline` turns into the page's CSS variables.
INK, MUTED, RULE, BEFORE, AFTER, SHADE = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", BEFORE: "before", AFTER: "after", SHADE: "shade"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's font, selectable
    "svg.hashsalt": "agentgym",  # the same run gives the same file
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """Success by horizon, in shares of one; the bounds are absent where only a line is wanted."""

    label: str
    color: str
    horizons: Sequence[int]
    rates: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class HalfMark:
    """A 50 % horizon with its interval, on the 50 % line."""

    label: str
    color: str
    value: float
    low: float
    high: float


def success_by_horizon(curves: Sequence[Curve], trained: tuple[int, int] | None, half: Sequence[HalfMark]) -> str:
    """One line per curve, bands where they have bounds, the trained range shaded, H50 marked on the 50 % line."""
    with _styled() as figure:
        axes: Axes = figure.subplots()
        last = max(h for curve in curves for h in curve.horizons)
        if trained is not None:
            axes.axvspan(trained[0] - 0.5, trained[1] + 0.5, color=SHADE, linewidth=0)
            axes.text(trained[0] - 0.3, 104, "trained", color=MUTED, fontsize=9.5, va="bottom")
        for curve in curves:
            percent = [100 * rate for rate in curve.rates]
            if curve.low is not None and curve.high is not None:
                low, high = [100 * x for x in curve.low], [100 * x for x in curve.high]
                axes.fill_between(curve.horizons, low, high, color=curve.color, alpha=0.17, linewidth=0)
                axes.plot(curve.horizons, percent, color=curve.color, linewidth=2.2, marker="o", markersize=4.5)
            else:
                axes.plot(curve.horizons, percent, color=curve.color, linewidth=1.1, dashes=(2, 2))
        _half_line(axes, half)
        _percent_axis(axes)
        axes.set_ylim(-2, 103)
        axes.set_xlim(min(0.4, last - 1), last + 0.6)
        ticks = sorted({h for curve in curves for h in curve.horizons})
        axes.set_xticks(_thinned(ticks, 20))
        axes.set_xlabel("horizon: turns that a good solution needs")
    return _inline(figure, "horizon", (10.4, 4.1), "Success by horizon before and after training")


def learning_curve(updates: Sequence[int], rates: Sequence[float], label: str, reference: float | None) -> str:
    """The training batches' success per update, thin, and its mean over the neighbouring updates, thick.
    reference: the demonstrator's rate, as a dashed line."""
    with _styled() as figure:
        axes: Axes = figure.subplots()
        percent = [100 * rate for rate in rates]
        axes.plot(updates, percent, color=AFTER, linewidth=0.9, alpha=0.5)
        axes.plot(updates, _smooth(percent, max(1, len(percent) // 20)), color=AFTER, linewidth=2.2)
        if reference is not None:
            axes.axhline(100 * reference, color=BEFORE, linewidth=1.2, dashes=(4, 3))
            side, edge = (-5, "top") if reference > 0.1 else (5, "bottom")  # the curve leaves upwards
            axes.annotate(
                "demonstrator", (updates[-1], 100 * reference), (0, side),
                textcoords="offset points", ha="right", va=edge, color=BEFORE,
            )  # fmt: skip
        _percent_axis(axes)
        axes.set_ylim(-2, 103)
        axes.set_xlabel("update")
    return _inline(figure, "learning", (5.1, 3.1), f"{label} per update")


def horizon_map(updates: Sequence[int], horizons: Sequence[int], rates: Sequence[Sequence[float]]) -> str:
    """Training success of every horizon over time: a horizon that dies inside a good mean shows as a dark row.
    rates: [horizons][updates], shares of one, NaN where a batch had none."""
    with _styled() as figure:
        axes: Axes = figure.subplots()
        extent = (updates[0] - 0.5, updates[-1] + 0.5, -0.5, len(horizons) - 0.5)
        _heat(figure, axes, rates, extent)
        axes.set_yticks(_thinned(list(range(len(horizons))), 12))
        axes.set_yticklabels([str(horizons[i]) for i in _thinned(list(range(len(horizons))), 12)])
        axes.set_xlabel("update")
        axes.set_ylabel("horizon")
    return _inline(figure, "map", (5.1, 3.1), "Training success of every horizon per update")


def without_error(curves: Sequence[Curve], half: Sequence[HalfMark]) -> str:
    """Share of attempts without an error after k steps, as steps, with bands and their H50."""
    with _styled() as figure:
        axes: Axes = figure.subplots()
        for curve in curves:
            steps, rates = [0, *curve.horizons], [100.0, *(100 * rate for rate in curve.rates)]
            axes.step(steps, rates, where="post", color=curve.color, linewidth=2.2)
            if curve.low is not None and curve.high is not None:
                low, high = ([100.0, *(100 * x for x in bound)] for bound in (curve.low, curve.high))
                axes.fill_between(steps, low, high, step="post", color=curve.color, alpha=0.17, linewidth=0)
        _half_line(axes, half)
        _percent_axis(axes)
        axes.set_ylim(-2, 103)
        axes.set_xlim(left=0)
        axes.set_xlabel("steps of the solution")
    return _inline(figure, "without-error", (5.1, 3.1), "Share of attempts without an error, by steps")


def after_errors(curves: Sequence[Curve]) -> str:
    """Accuracy of the next step against the share of wrong steps before it. Curve.horizons hold per cents."""
    with _styled() as figure:
        axes: Axes = figure.subplots()
        for curve in curves:
            percent, low, high = ([100 * x for x in xs] for xs in (curve.rates, curve.low or (), curve.high or ()))
            axes.vlines(curve.horizons, low, high, color=curve.color, linewidth=5, alpha=0.3)
            axes.plot(curve.horizons, percent, color=curve.color, linewidth=1.6, marker="o", markersize=5)
        _percent_axis(axes)
        axes.set_ylim(-2, 103)
        axes.set_xlabel("wrong steps in the history, %")
    return _inline(figure, "after-errors", (5.1, 3.1), "Accuracy of the next step, by wrong steps before it")


def difficulty_map(
    name: str, difficulties: Sequence[int], horizons: Sequence[int], rates: Sequence[Sequence[float]],
    halves: Sequence[float],
) -> str:  # fmt: skip
    """Success at every difficulty and horizon, and where it crosses 50 %.
    rates: [difficulties][horizons], shares of one, NaN where nothing was scored; halves: H50 of each difficulty."""
    with _styled() as figure:
        axes: Axes = figure.subplots()
        _heat(figure, axes, rates, (-0.5, len(horizons) - 0.5, -0.5, len(difficulties) - 0.5))
        places = [_place(half, horizons) for half in halves]
        axes.plot(places, range(len(difficulties)), color="white", linewidth=2, marker="D", markersize=6)
        axes.set_xticks(range(len(horizons)), labels=list(map(str, horizons)))
        axes.set_yticks(range(len(difficulties)), labels=list(map(str, difficulties)))
        axes.set_xlabel("horizon")
        axes.set_ylabel("difficulty")
    return _inline(figure, name, (5.1, 2.6), "Success by difficulty and horizon, with the 50 % contour")


def small_line(name: str, title: str, updates: Sequence[int], values: Sequence[float], bar: float | None = None) -> str:
    """One health signal per update; `bar` is the level it must stay below, on a logarithmic axis."""
    with _styled() as figure:
        axes: Axes = figure.subplots()
        axes.plot(updates, values, color=INK, linewidth=1.3)
        if bar is not None:
            axes.axhline(bar, color=BEFORE, linewidth=1.2, dashes=(4, 3))
            axes.set_yscale("log")
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=4)
        if bar is None:
            axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("update")
    return _inline(figure, name, (3.4, 2.0), title)


def _half_line(axes: Axes, half: Sequence[HalfMark]) -> None:
    """The 50 % line, and the horizons at which it is crossed."""
    axes.axhline(50, color=MUTED, linewidth=0.8, dashes=(4, 4), zorder=1)
    for mark in half:
        axes.plot([mark.low, mark.high], [50, 50], color=mark.color, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot([mark.value], [50], color=mark.color, marker="D", markersize=7, markeredgecolor="none")
        axes.annotate(mark.label, (mark.value, 50), (10, 7), textcoords="offset points")


def _heat(figure: Figure, axes: Axes, rates: Sequence[Sequence[float]], extent: tuple[float, ...]) -> None:
    """Rates as colours, lowest row first, and the bar that explains them."""
    percent = [[100 * rate for rate in row] for row in rates]
    image = axes.imshow(
        percent, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=100, interpolation="nearest",
        extent=extent,  # type: ignore[arg-type]
    )  # fmt: skip
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=18)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_ticks([0, 50, 100], labels=["0 %", "50 %", "100 %"])


def _place(half: float, horizons: Sequence[int]) -> float:
    """Where a horizon lies among the columns of tested ones, in log k; before the first: at its left edge; NaN where
    nobody knows."""
    if math.isnan(half):
        return half
    if half < horizons[0]:
        return -0.5
    k = max(i for i, horizon in enumerate(horizons) if horizon <= half)
    if k == len(horizons) - 1:
        return float(k)
    return k + math.log(half / horizons[k]) / math.log(horizons[k + 1] / horizons[k])


class _styled:
    """A figure in the report's style; the process's own matplotlib settings stay as they are."""

    def __enter__(self) -> Figure:
        from matplotlib import rc_context  # noqa: PLC0415  0.3 s, and an optional package
        from matplotlib.figure import Figure  # noqa: PLC0415

        self._style = rc_context(_STYLE)
        self._style.__enter__()
        return Figure(layout="constrained")

    def __exit__(self, *exception: object) -> None:
        self._style.__exit__(None, None, None)


def _percent_axis(axes: Axes) -> None:
    axes.set_yticks([0, 25, 50, 75, 100], labels=["0", "25", "50", "75", "100 %"])
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _inline(figure: Figure, name: str, size: tuple[float, float], title: str) -> str:
    """The figure as an `<svg>` element: own ids, the page's font and colours, described for screen readers."""
    from matplotlib import rc_context  # noqa: PLC0415

    figure.set_size_inches(size)
    with rc_context(_STYLE), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{title}">', text, count=1)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace("xlink:href", "href").replace("'DejaVu Sans'", "var(--sans)")
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    return text


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean over the values at most `reach` places away."""
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _thinned(ticks: list[int], most: int) -> list[int]:
    """At most so many ticks, evenly."""
    step = -(-len(ticks) // most)
    return ticks[::step]
