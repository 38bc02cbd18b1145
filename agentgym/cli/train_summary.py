"""What a training run says of itself: the line per update, the summary's columns, the closing table.

Owns the wording. Pure functions of figures that others have computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentgym.viewer.horizons import half_text


def update_line(line: dict[str, Any], updates: int) -> str:
    """One update on the terminal: what the audit found."""
    by_horizon = " ".join(f"{h}:{100 * rate:.0f}" for h, rate in line["by_horizon"].items())
    return (
        f"update {line['update'] + 1:>4}/{updates}  success {line['success']:6.1%}  [{by_horizon}]  "
        f"entropy {line.get('entropy', 0):.3f}  kl {line.get('kl_k3', 0):.4f}  "
        f"clip {line.get('clip_fraction', 0):.3f}  "
        f"grad {line['grad_norm']:.2f}  mismatch {line['mismatch_mean']:.1e} p99 {line['mismatch_p99']:.1e} "
        f"max {line['mismatch_max']:.1e}  same {line['zero_variance_share']:.0%}  "
        f"{_shares(line)}{line['seconds']:.1f} s"
    ).replace("[", "\\[")


def _shares(line: dict[str, Any]) -> str:
    """What is told only where there is any."""
    told = (("filtered", line["filtered_share"]), ("masked", line["masked_share"]), ("twice", line["duplicate_share"]))
    made = "".join(f"{name} {share:.0%}  " for name, share in told if share > 0)
    if set(line["staleness"]) - {"0"}:
        made += f"stale {' '.join(f'{k}:{n}' for k, n in line['staleness'].items())}  "
    if "input_retrieval" in line:
        made += f"own prompt {line['input_retrieval']:.0%} (chance {line['input_retrieval_chance']:.0%})  "
    if line["failures"]:
        made += f"failed {' '.join(f'{kind}:{n}' for kind, n in line['failures'].items())}  "
    return made


def before_and_after(name: str, interval: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    made = {}
    for when, figures in (("before", before["overall"]), ("after", after["overall"])):
        made[f"{name}_{when}"] = figures["rate"]
        made[f"{interval}_{when}"] = [figures["low"], figures["high"]]
    return made


def by_horizon(before: dict[str, Any], after: dict[str, Any], trained: set[int]) -> list[dict[str, Any]]:
    columns = {
        "before": before["sampled"], "after": after["sampled"],
        "greedy_before": before["greedy"], "greedy_after": after["greedy"],
    }  # fmt: skip
    points = {name: {p["horizon"]: p for p in figures["points"]} for name, figures in columns.items()}
    return [
        {"horizon": h, "trained": h in trained, **{name: found[h] for name, found in points.items() if h in found}}
        for h in sorted(points["before"])
    ]


def spent(updates: Sequence[dict[str, Any]], num_parameters: int) -> dict[str, Any]:
    """Turns, tokens and FLOPs of all updates. FLOPs are six for each parameter and token trained, two for each
    parameter and token sampled or read (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, without attention); what is
    read again to be trained on is not among them. Turns are those of episodes that count."""
    sampled = sum(line["tokens_sampled"] for line in updates)
    trained = round(sum(line["tokens_trained"] for line in updates))
    in_all = sum(line["tokens_sampled"] / (line["policy_token_share"] or 1) for line in updates)
    return {
        "num_turns": round(sum(line["turns_mean"] * line["coverage"] * line["episodes"] for line in updates)),
        "prompt_tokens": round(in_all) - sampled,
        "sampled_tokens": sampled,
        "trained_tokens": trained,
        "flops": num_parameters * (6.0 * trained + 2.0 * round(in_all)),
    }


def control_figures(progress: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any] | None:
    if "control" not in progress:
        return None
    sampled, greedy = (progress["control"][kind]["overall"] for kind in ("sampled", "greedy"))
    return {**sampled, "greedy": greedy, "seconds": seconds["control"]}


def table(s: dict[str, Any]) -> list[tuple[str, str]]:
    """The headline figures as a person reads them."""

    def rate(value: float, interval: Sequence[float]) -> str:
        return f"{100 * value:5.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"

    def horizon(h: dict[str, Any] | None) -> str:
        return "–" if h is None else f"{half_text(h)} [{h['low']:.1f}, {h['high']:.1f}]"

    worst = min((p for p in s["by_horizon"] if p["trained"]), key=lambda p: p["after"]["rate"], default=None)
    rows = [
        ("success, sampled, before", rate(s["success_before"], s["ci_before"])),
        ("success, sampled, after", rate(s["success_after"], s["ci_after"])),
        ("success, greedy, before", rate(s["greedy_before"], s["ci_greedy_before"])),
        ("success, greedy, after", rate(s["greedy_after"], s["ci_greedy_after"])),
    ]
    if worst is not None:
        told = f"{100 * worst['after']['rate']:5.1f} % (horizon {worst['horizon']})"
        rows.append(("worst trained horizon, after", told))
    rows.append(("50 % horizon, before -> after", f"{horizon(s['h50_before'])} -> {horizon(s['h50_after'])}"))
    if d := s["demonstrator"]:
        rows.append(("the demonstrator's own success", rate(d["rate"], (d["low"], d["high"])) + f" of {d['n']}"))
    if c := s["control"]:
        told = (
            f"{rate(c['rate'], (c['low'], c['high']))}, greedy {100 * c['greedy']['rate']:.1f} %, {c['seconds']:.0f} s"
        )
        rows.append(("control: imitation alone", told))
    for name, c in (s["controls"] or {}).items():
        gain, low, high = (100 * c["gain_over_it"][key] for key in ("value", "low", "high"))
        told = f"; the run is {gain:+.1f} points better [{low:+.1f}, {high:+.1f}]"
        rows.append((f"control: {name} reward", rate(c["success_after"], c["ci_after"]) + told))
    tokens = f"{s['sampled_tokens']:,} sampled, {s['trained_tokens']:,} trained, {s['prompt_tokens']:,} read"
    seconds = f"{s['seconds_warm_start']:.0f}, {s['seconds_train']:.0f}, {s['seconds_evaluate']:.0f}; in all "
    memory = f"{s['seconds_total']:.0f}; peak memory {s['peak_rss_bytes'] / 2**30:.2f} GiB"
    return [
        *rows,
        ("share of RL time outside the model", f"{100 * s['env_share']:5.1f} % (sandboxes, tools, bookkeeping)"),
        ("tokens of RL", f"{tokens} in {s['num_turns']:,} turns; {s['flops']:.2g} FLOPs"),
        ("seconds: warm start, RL, evaluation", seconds + memory),
    ]
