"""A run's folder with the shape of a real one: the same files, through the real Store, with plausible figures."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentgym.errors import Failure, FailureKind
from agentgym.evaluation.horizon import half_horizon, success_curve
from agentgym.evaluation.intervals import success_interval
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn
from agentgym.messages import Message, assistant, call, tool_result, user
from agentgym.rollout.store import Store

HORIZONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
PER_HORIZON = 20
TRAINED = range(1, 7)
HOSTILE = '</p><script>document.title="owned"</script><img src=x onerror=alert(1)> \u202etxet'


def look_ups(rng: random.Random, horizon: int, walked: int, right: bool) -> tuple[Message, ...]:
    """A walk of so many look-ups and an answer."""
    keys = [str(rng.randrange(10, 100)) for _ in range(40)][: walked + 1]
    messages = [user(f"Start at {keys[0]}. Follow the links to the first red key.")]
    for step, key in enumerate(keys[:-1], start=1):
        lookup = call("lookup", key=int(key))
        colour = "red" if step == horizon else "blue"
        messages += [assistant("", lookup), tool_result(lookup, f"{keys[step]} {colour}")]
    return (*messages, assistant(keys[-1] if right else str(rng.randrange(10, 100))))


def evaluation_episode(phase: str, horizon: int, index: int, success: bool) -> Episode:
    rng = random.Random(f"{horizon}/{index}")
    walked = horizon if success else max(0, horizon - rng.randrange(1, horizon + 2))
    lost = phase == "after" and (horizon, index) in ((6, 3), (12, 4))
    tired = not success and rng.random() < 0.3
    return Episode(
        run=phase,
        update=0 if phase == "before" else 100,
        task_id=f"test:{horizon:02}{index:04}c0ffee1234"[:21],
        attempt=0,
        seed=index,
        split="test",
        group=index,
        env_id="agentgym/Lookup-v0",
        env_version="v0",
        messages=look_ups(random.Random(f"{horizon}/{index}"), horizon, walked, success),
        turns=tuple(Turn(0.0, None, 0.002, 1e-5) for _ in range(walked + 1)),
        reward=float(success),
        reward_parts={"right_key": float(success)},
        terminated=not tired,
        truncated=tired,
        stop_reason=StopReason.FAILED if lost else StopReason.MAX_TURNS if tired else StopReason.ANSWERED,
        failure=Failure(FailureKind.INFRASTRUCTURE, "SandboxError", "the container is gone") if lost else None,
        ledger=Ledger(
            [
                Segment(np.arange(5), Source.OBSERVED, 0),
                Segment([7, 8], Source.SAMPLED, 0, np.array([-0.1, -0.2]), version=0),
            ]
        ),
        metadata={"horizon": horizon},
    )


def evaluation(phase: str, rate_at: Any) -> list[Episode]:
    rng = random.Random(phase)
    return [
        evaluation_episode(phase, horizon, index, rng.random() < rate_at(horizon))
        for index in range(PER_HORIZON)
        for horizon in HORIZONS
    ]


def update_record(update: int) -> dict[str, Any]:
    rng, progress = random.Random(update), 1 - np.exp(-update / 22)
    rates = {h: min(1.0, max(0.0, 0.12 + 0.86 * progress ** (0.6 + 0.35 * h) + rng.gauss(0, 0.04))) for h in TRAINED}
    return {
        "update": update,
        "seconds": 0.66,
        "reward_mean": float(np.mean(list(rates.values()))),
        "success": float(np.mean(list(rates.values()))),
        "by_horizon": rates,
        "entropy": 0.9 * float(np.exp(-update / 40)) + rng.random() * 0.03,
        "kl": abs(rng.gauss(0.004, 0.002)),
        "clip_fraction": abs(rng.gauss(0.03, 0.01)),
        "grad_norm": 0.3 + rng.random() * 0.4,
        "mismatch_mean": 4e-7,
        "mismatch_max": 10 ** rng.uniform(-5.4, -4.6),
        "zero_variance_share": 0.2 + 0.5 * float(progress),
        "stop_reasons": {"answered": 180, "max_turns": 12},
        "failures": {"policy": 1} if update % 50 == 0 else {},
        "seconds_generate": 0.41,
        "seconds_learn": 0.24,
        "tokens_sampled": 4200,
    }


def summary_of(before: list[Episode], after: list[Episode]) -> dict[str, Any]:
    def within(episodes: list[Episode]) -> list[Episode]:
        return [e for e in episodes if e.metadata["horizon"] in TRAINED]

    first, last = success_interval(within(before)), success_interval(within(after))
    curves = {p.horizon: (p, q) for p, q in zip(success_curve(before), success_curve(after), strict=True)}
    greedy = {h: ({"n": 20, "successes": g, "rate": g / 20, "low": 0.0, "high": 1.0}) for h, g in _greedy().items()}
    nothing = {"n": 20, "successes": 0, "rate": 0.0, "low": 0.0, "high": 0.161}
    return {
        "env": "agentgym/Lookup-v0",
        "seed": 11,
        "model": "Llama from scratch",
        "num_parameters": 301_152,
        "success_before": first.rate,
        "success_after": last.rate,
        "ci_before": [first.low, first.high],
        "ci_after": [last.low, last.high],
        "greedy_before": 0.004,
        "greedy_after": 1.0,
        "ci_greedy_before": [0.001, 0.023],
        "ci_greedy_after": [0.984, 1.0],
        "by_horizon": [
            {
                "horizon": h,
                "trained": h in TRAINED,
                "before": p.success.as_json(),
                "after": q.success.as_json(),
                "greedy_before": nothing,
                "greedy_after": greedy[h],
            }
            for h, (p, q) in curves.items()
        ],
        "h50_before": half_horizon(success_curve(before)).as_json(),
        "h50_after": half_horizon(success_curve(after)).as_json(),
        "h50_greedy_after": {"value": 29.5, "low": 28.0, "high": 32.0, "at_least": False},
        "demonstrator": {"rate": 0.15, "low": 0.134, "high": 0.167, "n": 2400},
        "control": {
            **{"rate": 0.092, "low": 0.061, "high": 0.135, "n": 240, "seconds": 110.0},
            "greedy": {"rate": 0.0, "low": 0.0, "high": 0.016, "n": 240},
        },
        "seconds_warm_start": 31.0,
        "seconds_train": 66.4,
        "seconds_evaluate": 17.2,
        "seconds_total": 121.0,
        "peak_rss_bytes": int(0.84 * 2**30),
        "tokens_per_second": 10_240.0,
        "updates": 100,
        "versions": {
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "gymnasium": "1.4.0",
            "agentgym": "0.1.0",
            "commit": None,
        },
        "config": {"env": "agentgym/Lookup-v0", "updates": 100, "learner": {"group_size": 8, "rate": 5e-4}},
    }


def _greedy() -> dict[int, int]:
    return {h: 20 if h < 26 else 14 if h < 30 else 3 for h in HORIZONS}


def make_run(folder: Path) -> Path:
    before = evaluation("before", lambda h: 0.22 * np.exp(-h / 4))
    after = evaluation("after", lambda h: 0.985 / (1 + np.exp((h - 24) / 2.4)))
    before[0] = _with_hostile_text(before[0])
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "run.sqlite")
    for episode in (*before, *after):
        store.add(episode)
    store.close()
    (folder / "summary.json").write_text(json.dumps(summary_of(before, after)))
    lines = [json.dumps(update_record(update)) for update in range(1, 101)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _with_hostile_text(episode: Episode) -> Episode:
    from dataclasses import replace

    lookup = call("lookup", key=HOSTILE)
    wrong = tool_result(lookup, f"key: not an integer: {HOSTILE}")
    return replace(
        episode, messages=(episode.messages[0], assistant(HOSTILE, lookup), wrong, assistant(HOSTILE)), reward=0.0
    )


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "lookup-11")
