import math

import numpy as np
import pytest

from agentgym.errors import ConfigError, FailureKind
from agentgym.evaluation.horizon import Point, crossing, effective_n, half_horizon, success_curve
from agentgym.evaluation.intervals import wilson


def curve(successes_by_horizon: dict[int, int], n: int = 40) -> list[Point]:
    return [Point(horizon, wilson(successes, n)) for horizon, successes in successes_by_horizon.items()]


def test_the_curve_counts_by_horizon_and_states_its_coverage(episode):
    episodes = [
        episode("test:a", horizon=4),
        episode("test:b", reward=0.0, horizon=4),
        episode("test:c", reward=0.0, horizon=4, failure=FailureKind.INFRASTRUCTURE),
        episode("test:d", reward=0.0, horizon=1, failure=FailureKind.POLICY),
        episode("test:e"),  # no horizon: no place on the curve
        episode("test:f", horizon=1e299),  # nonsense: neither
    ]
    first, second = success_curve(episodes)
    assert (first.horizon, first.success.successes, first.success.n, first.num_failed) == (1, 0, 1, 0)
    assert (second.horizon, second.success.successes, second.success.n, second.num_failed) == (4, 1, 2, 1)


def test_half_horizon_interpolates_in_the_logarithm_between_the_tested_horizons():
    # 35/40 at 8 and 15/40 at 9: three quarters of the way, 8 · (9/8)^0.75
    found = half_horizon(curve({6: 37, 7: 37, 8: 35, 9: 15, 10: 5, 11: 0}))
    assert found.value == pytest.approx(8 * (9 / 8) ** 0.75)
    assert not found.at_least
    assert (found.low, found.high) == (pytest.approx(8.5, abs=0.25), pytest.approx(9.1, abs=0.25))


def test_half_horizon_across_a_gap_of_untested_horizons():
    # 26/40 at 16 and 2/40 at 20: a quarter of the way, 16 · (20/16)^0.25
    found = half_horizon(curve({14: 34, 15: 26, 16: 26, 20: 2, 24: 1}))
    assert found.value == pytest.approx(16 * 1.25**0.25)
    assert found.gap == 1.25
    assert "factor" not in str(found)


def test_a_wide_gap_around_the_crossing_is_told():
    found = half_horizon(curve({1: 40, 8: 10, 64: 0}))
    assert found.gap == 8
    assert "a factor of 8 apart" in str(found)


def test_a_dip_that_recovers_is_pooled_and_not_taken_for_the_end():
    # 20/40 and 28/40 pool to 24/40 = 0.6 at 2 and 3; then 0.6 -> 0.2 crosses a quarter of the way from 3 to 4
    assert half_horizon(curve({1: 40, 2: 20, 3: 28, 4: 8})).value == pytest.approx(3 * (4 / 3) ** 0.25)


def test_the_pool_weighs_horizons_by_their_episodes():
    # 0.2 of 10 and 0.8 of 30 pool to 26/40 = 0.65; to 0.05 at 3: a quarter of the way from 2 to 3
    points = [Point(1, wilson(2, 10)), Point(2, wilson(24, 30)), Point(3, wilson(1, 20))]
    assert half_horizon(points).value == pytest.approx(2 * 1.5**0.25)


def test_a_first_horizon_below_half_gives_zero():
    found = half_horizon(curve({1: 8, 2: 7, 3: 0}))
    assert (found.value, found.low, found.high, found.at_least) == (0.0, 0.0, 0.0, False)
    assert str(found).startswith("not reached")


def test_a_curve_that_never_falls_is_at_least_the_last_horizon():
    found = half_horizon(curve({1: 40, 16: 39, 32: 38}))
    assert (found.value, found.low, found.high, found.at_least) == (32.0, 32.0, 32.0, True)
    assert str(found) == "≥ 32.0 [32.0, ≥ 32.0]"


def test_twenty_of_twenty_is_not_certainty():
    # 20/20 at 2, 0/20 at 4: halfway in log k; what was never seen to fail may fail, so the interval is no point
    found = half_horizon(curve({1: 20, 2: 20, 4: 0}, n=20))
    assert found.value == pytest.approx(2**1.5)
    assert 2 < found.low < found.value < found.high < 4


def test_attempts_that_repeat_their_tasks_are_worth_the_tasks():
    # 4 tasks x 10: two always won, two never: 40 attempts tell no more than 4, 10 each that won and lost at random more
    alike = {"a": [True] * 10, "b": [True] * 10, "c": [False] * 10, "d": [False] * 10}
    assert effective_n(alike) == 4
    unlike = {name: [True, False] * 5 for name in alike}
    assert effective_n(unlike) == 40
    assert effective_n({"a": [True], "b": [False]}) is None
    assert effective_n({"a": [True] * 3, "b": [True] * 3}) == 2
    # of rates 0.8 and 0.2: ((8 - 5)² + (2 - 5)²) · 2 / 20² = 0.09; 0.25 / 0.09
    assert effective_n({"a": [True] * 8 + [False] * 2, "b": [True] * 2 + [False] * 8}) == pytest.approx(0.25 / 0.09)


def test_clustered_attempts_widen_the_interval_of_the_horizon(episode):
    def curves(same_task: bool) -> list[Point]:
        won = {1: 40, 4: 24, 16: 4}
        return success_curve([
            episode(f"test:{k}-{i // 8 if same_task else i}", float(i < n), attempt=i % 8, horizon=k)
            for k, n in won.items() for i in range(40)
        ])  # fmt: skip

    alone, together = half_horizon(curves(False)), half_horizon(curves(True))
    assert alone.value == together.value
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_exactly_one_half_is_not_below():
    assert crossing(np.array([1.0, 2.0]), np.array([0.5, 0.0]), 0.5) == 1.0
    assert half_horizon(curve({1: 16, 2: 24})).at_least  # pooled to 0.5 at both
    assert crossing(np.array([1.0, 2.0]), np.array([0.9, 0.6]), 0.5) == math.inf


def test_horizons_without_a_scored_episode_are_left_out():
    assert half_horizon([*curve({1: 40, 3: 0}), Point(2, wilson(0, 0), num_failed=40)]).value == pytest.approx(3**0.5)


def test_another_level_reads_the_same_curve_elsewhere():
    # 1.0 at 1, 0.5 at 2: 0.8 is crossed two fifths of the way
    assert half_horizon(curve({1: 40, 2: 20}), level=0.8).value == pytest.approx(2**0.4)


def test_the_same_seed_gives_the_same_interval_and_leaves_the_process_generator_alone():
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    points = curve({1: 40, 4: 30, 8: 10})
    assert half_horizon(points, seed=3) == half_horizon(points, seed=3)
    assert half_horizon(points, seed=3).low != half_horizon(points, seed=4).low
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


def test_the_interval_covers_a_known_half_horizon():
    # constant step accuracy p: success p^h, H50 = ln 0.5 / ln p. 60 simulated agents, 40 episodes per horizon
    rng, horizons, p = np.random.default_rng(0), np.arange(1, 21, 2), 0.92
    truth = np.log(0.5) / np.log(p)
    covered = 0
    for _ in range(60):
        won = rng.binomial(40, p**horizons)
        found = half_horizon(curve(dict(zip(horizons.tolist(), won.tolist(), strict=True))), draws=200)
        covered += found.low <= truth <= found.high
    assert covered >= 51  # 85 %, where 95 % is promised: four standard errors below


def test_an_empty_curve_is_refused():
    with pytest.raises(ConfigError, match="without scored episodes"):
        half_horizon([])
