"""Whole training runs, minutes each: `make acceptance`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance


def trained(folder: Path, *args: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "agentgym.cli", "train", *args, "--output", str(folder), "--control-steps", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1200)
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("seed", [40, 41, 42])
def test_run_34_sums_by_reasoning_gym_are_learned_and_the_intervals_do_not_overlap(seed: int, tmp_path: Path):
    s = trained(tmp_path / "run", "agentgym/Arithmetic-v0", "--seed", str(seed), "--eval-start", "30000")
    print(f"seed {seed}: {s['success_before']:.3f} {s['ci_before']} -> {s['success_after']:.3f} {s['ci_after']}")
    assert s["ci_before"][1] < s["ci_after"][0]
    assert s["success_before"] <= 0.25
    assert s["success_after"] >= 0.80


def test_the_default_run_learns_every_trained_horizon_and_goes_beyond(tmp_path: Path):
    s = trained(tmp_path / "run", "--seed", "50", "--eval-start", "30000")
    print(json.dumps({k: s[k] for k in ("success_before", "success_after", "greedy_after", "h50_after")}))
    assert s["success_before"] <= 0.20
    assert s["success_after"] >= 0.94
    assert s["greedy_after"] >= 0.94
    assert min(p["after"]["rate"] for p in s["by_horizon"] if p["trained"]) >= 0.85
    assert s["h50_before"]["value"] <= 6 < s["h50_after"]["value"]


def test_the_same_seed_gives_the_same_weights_episodes_and_summary(tmp_path: Path):
    args = ("--updates", "12", "--eval-limit", "4", "--seed", "7")
    one, two = (trained(tmp_path / name, *args) for name in ("one", "two"))
    assert one["weights"] == two["weights"]
    assert episodes(tmp_path / "one") == episodes(tmp_path / "two")
    timed = {k for k in one if k.startswith("seconds")} | {"peak_rss_bytes", "tokens_per_second", "env_share", "config"}
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


def episodes(folder: Path) -> list[tuple]:
    from agentgym.rollout.store import Store

    with Store(folder / "run.sqlite", readonly=True) as store:
        return [(e.key, e.messages, e.reward, e.ledger.fingerprint() if e.ledger else None) for e in store.episodes()]
