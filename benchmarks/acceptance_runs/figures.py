"""Runs 17, 29 and 31: pass^k, calibration and METR's time horizon, by the library's figures, on recorded results."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import gymnasium
import numpy as np
from agentgym_envs.service.records import read_trajectories

from acceptance_runs.base import Found, Setup, run
from agentgym.evaluation.calibration import Calibration, calibration_of, stated
from agentgym.evaluation.minutes import Run, fit_logistic, invsqrt_task_weights, time_horizon
from agentgym.evaluation.passes import passes
from agentgym.ledger import Episode
from agentgym.loop import run_sync
from agentgym.messages import assistant, call
from agentgym.policies.base import Actor
from agentgym.policies.builtin import Scripted
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot

RELIABILITY = {  # episodes: pass^1 to pass^4 of the shared records, and as tau-bench published them of all
    128: (0.4219, 0.2656, 0.2109, 0.1875),
    200: (0.420, 0.273, 0.220, 0.200),
}
HORIZONS = {"GPT-4o": 4.51, "o1": 28.68, "Claude 3.5 Sonnet (New)": 52.05, "Claude 3 Opus": 3.71}  # minutes
NUM_RUNS = 4907  # records that these are of
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@run(17, "pass^k")
def reliability(setup: Setup) -> Found:
    outcomes: dict[Any, list[bool]] = {}
    for task, _, reward, _ in read_trajectories(setup.data / "tau_airline_v1/gpt4o_trajectories.jsonl.gz"):
        outcomes.setdefault(task, []).append(reward >= 1 - 1e-6)
    ours = passes({str(task): attempts for task, attempts in outcomes.items()})
    off = 0.0
    for each in ours:
        drawn = [[*combinations(attempts, each.k)] for attempts in outcomes.values()]
        off = max(off, abs(each.all.mean - np.mean([np.mean([all(x) for x in sets]) for sets in drawn])))
        off = max(off, abs(each.at_least_one.mean - np.mean([np.mean([any(x) for x in sets]) for sets in drawn])))
    num = sum(map(len, outcomes.values()))
    wanted = RELIABILITY.get(num)
    reached = wanted is None or all(abs(a.all.mean - b) < 6e-4 for a, b in zip(ours, wanted, strict=True))
    told = ", ".join(f"{each.all.mean:.4f} [{each.all.low:.3f}, {each.all.high:.3f}]" for each in ours)
    observed = (
        f"pass^k {told} over {len(outcomes)} tasks; pass@k {', '.join(f'{x.at_least_one.mean:.4f}' for x in ours)}"
    )
    observed += f"; from enumeration {off:.0e}"
    expected = f"{wanted or 'no figure for so many'}; equal to all sets of k attempts to 1e-12"
    return Found(num, expected, observed, passed=num > 0 and reached and off < 1e-12)


class Stating:
    """Answers a multiple-choice question right with a chance that it draws and states: scripted probabilities."""

    def __init__(self, chance: Callable[[int, np.random.Generator], float]) -> None:
        self.chance = chance  # of the number of options

    def begin(self, env: gymnasium.Env, *, seed: int) -> Actor:
        world: Any = env.unwrapped
        rng = np.random.default_rng(seed)

        def answer(_: Any) -> Any:
            asked = world.asked[0]
            options = len(asked["options"])
            chance = self.chance(options, rng)
            key = asked["options"].index(asked["key"])
            wrong = [index for index in range(options) if index != key]
            chosen = key if rng.random() < chance else int(rng.choice(wrong))
            return assistant("", call("answer", option=LETTERS[chosen], confidence=chance))

        return Scripted([answer]).begin(env, seed=seed)


def answered(setup: Setup, layout: str, policy: Stating) -> tuple[list[Episode], list[str]]:
    """An episode for each question of the splits but train, and what could not be read."""
    kwargs: dict[str, Any] = {"layout": layout, "data": str(setup.data)}
    tasks = make("agentgym/Choice-v0", **kwargs).unwrapped.tasks
    splits = [tasks.split(name) for name in tasks.names if name != "train"]
    ids = [split.id(index) for split in splits for index in range(len(split))]
    driver = Driver("agentgym/Choice-v0", policy, run="acceptance", env_kwargs=kwargs, concurrency=setup.workers)
    try:
        slots = [Slot(task, attempt=0, group=number, seed=number) for number, task in enumerate(ids)]
        return run_sync(driver.collect(slots)), list(tasks.left_out)
    finally:
        driver.close()


def equals_peer(found: Calibration, episodes: list[Episode]) -> bool:
    """Brier, its decomposition's sum and AUROC against scikit-learn's."""
    from sklearn.metrics import brier_score_loss, roc_auc_score  # noqa: PLC0415 - optional: this run alone needs it

    said, right = zip(*(each for episode in episodes for each in stated(episode)), strict=True)
    parts = found.reliability - found.resolution + found.uncertainty
    off = [found.brier - brier_score_loss(right, said), found.brier - parts]
    off += [found.auroc - roc_auc_score(right, said)] if 0 < sum(right) < len(right) else []
    return max(map(abs, off)) < 1e-9


@run(29, "calibration")
def calibrated(setup: Setup) -> Found:
    policies = {
        "sure": Stating(lambda options, rng: 1.0),
        "guess": Stating(lambda options, rng: 1.0 / options),
        "scripted": Stating(lambda options, rng: round(float(rng.beta(2, 1)), 2)),
    }
    num, passed, told, skipped = 0, True, [], {}
    for layout in ("mmlu", "arc", "truthfulqa"):
        for name, policy in policies.items():
            episodes, left_out = answered(setup, layout, policy)
            found = calibration_of(episodes)
            if found is None or found.n != len(episodes):
                raise RuntimeError(f"{layout}, {name}: {len(episodes)} episodes, of which not all state a confidence")
            spread = math.sqrt(found.uncertainty / found.n)
            if name == "sure":
                num += found.n
                passed &= found.ece_width == found.ece_mass == found.brier == 0.0 and found.accuracy == 1.0
            else:
                near = 3 * spread * math.sqrt(10 if name == "scripted" else 3)  # bins that are used
                passed &= abs(found.accuracy - found.confidence) < 3 * spread and found.ece_width < near
            surest = found.accuracy_at(0.25)
            passed &= equals_peer(found, episodes) and (name != "scripted" or surest > found.accuracy)
            told.append(
                f"{layout} {name}: accuracy {found.accuracy:.4f} (said {found.confidence:.4f} ± {spread:.4f}) ECE "
                f"{found.ece_width:.4f}/{found.ece_mass:.4f} Brier {found.brier:.4f} surest quarter {surest:.4f}"
            )
            if left_out:
                skipped[f"{layout}: records left out"] = len(left_out)
    expected = (
        "sure: ECE and Brier 0; others: accuracy within 3 s.e. of what was said, ECE near 0, the surest are right "
    )
    expected += "more often; Brier, its parts and AUROC equal scikit-learn's to 1e-9"
    return Found(num, expected, "; ".join(told), passed, skipped)


@run(31, "time horizon")
def minutes(setup: Setup) -> Found:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - optional: this run alone needs it

    text = gzip.decompress((setup.data / "metr_runs/runs.jsonl.gz").read_bytes()).decode()
    records = [json.loads(line) for line in text.splitlines() if line]
    worst, off_peer, off_weights, told = 0.0, 0.0, 0.0, []
    for alias, wanted in HORIZONS.items():
        own = [record for record in records if record["alias"] == alias]
        runs = [Run(r["task_family"], r["task_id"], r["human_minutes"], bool(r["score_binarized"])) for r in own]
        weights = np.array([record["invsqrt_task_weight"] for record in own])
        found = time_horizon(runs, weights, draws=500)
        x, y = np.log2([each.minutes for each in runs]), np.array([each.success for each in runs], dtype=float)
        peer = LogisticRegression(C=100, solver="newton-cholesky", tol=1e-12).fit(x[:, None], y, sample_weight=weights)
        fit = fit_logistic(x, y, weights[None])[0]
        off_peer = max(off_peer, abs(fit - [peer.intercept_[0], peer.coef_[0, 0]]).max())
        off_weights = max(off_weights, abs(invsqrt_task_weights(runs) / (weights / weights.sum()) - 1).max())
        worst = max(worst, abs(found.p50 / wanted - 1))
        told.append(f"{alias} {found.p50:.2f} [{found.p50_interval[0]:.2g}, {found.p50_interval[1]:.3g}]")
    reached = worst < 0.01 or len(records) != NUM_RUNS
    observed = (
        f"{', '.join(told)}; worst {100 * worst:.2f} %; from scikit-learn's fit {off_peer:.0e}; own weights from the "
    )
    observed += f"recorded {off_weights:.0e}"
    expected = f"{', '.join(f'{alias} {wanted}' for alias, wanted in HORIZONS.items())} to 1 % of {NUM_RUNS} runs"
    return Found(len(records), expected, observed, passed=reached and off_peer < 1e-8 and off_weights < 1e-6)
