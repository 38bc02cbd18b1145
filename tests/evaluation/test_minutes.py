"""METR's time horizon: the fit is scikit-learn's, the weights are worked by hand, and the edges are told."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from agentgym.errors import ConfigError, FailureKind
from agentgym.evaluation.minutes import Run, fit_logistic, invsqrt_task_weights, runs_of, time_horizon


def simulated(seed: int = 0, p50: float = 30.0) -> list[Run]:
    """12 families x 3 tasks x 6 runs; success is logistic in log2 of the minutes, 0.5 at p50."""
    rng = np.random.default_rng(seed)
    runs = []
    for family in range(12):
        for task in range(3):
            minutes = float(2 ** rng.uniform(0, 10))
            chance = 1 / (1 + math.exp(0.8 * math.log2(minutes / p50)))
            runs += [Run(f"f{family}", f"t{task}", minutes, bool(rng.random() < chance)) for _ in range(6)]
    return runs


def test_the_fit_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    x, y = rng.uniform(-2, 10, 200), rng.random(200) < 0.4
    weights = np.stack([np.ones(200), rng.random(200), rng.integers(0, 3, 200) / 100])
    for c in (0.1, 100.0):
        for row, ours in zip(weights, fit_logistic(x, y.astype(float), weights, c), strict=True):
            peer = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-14)
            peer.fit(x[:, None], y, sample_weight=row)
            assert ours.tolist() == pytest.approx([peer.intercept_[0], peer.coef_[0, 0]], abs=1e-9)


def test_a_fit_that_nearly_separates_still_ends():
    x = np.arange(10.0)
    [[intercept, slope]] = fit_logistic(x, (x < 5).astype(float), np.full((1, 10), 0.1))
    assert slope < -1
    assert -intercept / slope == pytest.approx(4.5, abs=1e-6)  # by symmetry


def test_a_task_counts_once_and_a_family_as_the_root_of_its_tasks():
    # family a: one task run twice; family b: four tasks run once. Raw: 1/2, 1/2; 1/2 each of four; sum 1 + 2
    runs = [Run("a", "x", 1, True)] * 2 + [Run("b", name, 1, True) for name in "wxyz"]
    assert invsqrt_task_weights(runs).tolist() == pytest.approx([1 / 6] * 6)


def test_the_horizon_of_simulated_runs_is_found_and_its_interval_holds_it():
    found = time_horizon(simulated(), draws=200)
    assert found.p50_interval[0] < 30 < found.p50_interval[1]
    assert found.p50_interval[0] < found.p50 < found.p50_interval[1]
    assert found.p80 < found.p50
    assert (found.num_runs, found.num_tasks, found.num_families) == (216, 36, 12)
    assert time_horizon(simulated(), draws=200) == found  # own generator, same seed


def test_families_not_runs_make_the_interval():
    one_family = [replace(run, family="f", task=f"{run.family}{run.task}") for run in simulated()]
    weights = [1.0] * len(one_family)
    wide, narrow = time_horizon(simulated(), weights, draws=300), time_horizon(one_family, weights, draws=300)
    ratios = [found.p50_interval[1] / found.p50_interval[0] for found in (wide, narrow)]
    assert wide.p50 == pytest.approx(narrow.p50)
    assert ratios[0] > ratios[1]


def test_the_interval_is_that_of_drawing_families_tasks_and_runs_one_by_one():
    runs, random, found = simulated(), np.random.default_rng(1), []
    weights = dict(zip(runs, invsqrt_task_weights(runs), strict=True))
    families = [[[*of_task] for of_task in zip(*[iter(runs[i : i + 18])] * 6, strict=True)] for i in range(0, 216, 18)]
    for _ in range(400):
        drawn = [
            tasks[t][r]
            for tasks in (families[f] for f in random.integers(12, size=12))
            for t in random.integers(3, size=3)
            for r in random.integers(6, size=6)
        ]
        found.append(time_horizon(drawn, [weights[run] for run in drawn], draws=1).p50)
    assert time_horizon(runs).p50_interval == pytest.approx(np.quantile(found, (0.025, 0.975)), rel=0.15)


def test_eight_thousand_runs_take_few_megabytes():
    rng = np.random.default_rng(0)
    runs = [Run(f"f{i % 80}", f"t{i}", float(2 ** rng.uniform(0, 10)), bool(rng.random() < 0.5)) for i in range(8000)]
    tracemalloc.start()
    try:
        time_horizon(runs, draws=200)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("success", "p50"), [(True, math.inf), (False, 0.0)])
def test_success_everywhere_or_nowhere_has_no_crossing(success, p50):
    found = time_horizon([replace(run, success=success) for run in simulated()], draws=20)
    assert (found.p50, found.p50_interval) == (p50, (p50, p50))
    assert found.as_json()["p50_minutes"] == (None if success else 0.0)


def test_success_that_grows_with_minutes_has_no_crossing():
    runs = [Run("f", str(m), 2.0**m, m > 2) for m in range(10)]
    assert time_horizon(runs, draws=10).p50 in (0.0, math.inf)


def test_only_attempts_that_count_on_tasks_with_minutes_are_runs(episode):
    timed = replace(episode(), metadata={"human_minutes": 12, "family": "doors"})
    others = [episode(), replace(timed, failure=episode(failure=FailureKind.TASK).failure)]
    others += [replace(timed, metadata={"human_minutes": wrong}) for wrong in (0, -1, "12", True, math.nan, math.inf)]
    assert runs_of([timed, *others]) == [Run("doors", "test:a", 12.0, True)]


def test_no_runs_and_tasks_of_no_length_are_refused():
    for runs in ([], [Run("a", "b", 0.0, True)]):
        with pytest.raises(ConfigError, match="more than 0 minutes"):
            time_horizon(runs)
