import numpy as np
import pytest

from agentgym.errors import ConfigError, FailureKind
from agentgym.evaluation.horizon import Point, crossing, half_horizon, success_curve
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
    ]
    first, second = success_curve(episodes)
    assert (first.horizon, first.success.successes, first.success.n, first.coverage) == (1, 0, 1, 1.0)
    assert (second.horizon, second.success.successes, second.success.n) == (4, 1, 2)
    assert second.coverage == pytest.approx(2 / 3)


def test_half_horizon_interpolates_between_the_tested_horizons():
    # recipe, seed 13: 35/40 at 8 and 15/40 at 9; 8 + (0.875 - 0.5) / (0.875 - 0.375) = 8.75
    found = half_horizon(curve({6: 37, 7: 37, 8: 35, 9: 15, 10: 5, 11: 0}))
    assert found.value == pytest.approx(8.75)
    assert not found.at_least
    assert (round(found.low, 1), round(found.high, 1)) == pytest.approx((8.6, 9.1), abs=0.11)  # as printed there


def test_half_horizon_across_a_gap_of_untested_horizons():
    # recipe, seed 14: 26/40 at 16 and 2/40 at 20; 16 + 4 · 0.15 / 0.6 = 17
    found = half_horizon(curve({14: 34, 15: 26, 16: 26, 20: 2, 24: 1}))
    assert found.value == pytest.approx(17.0)
    assert (found.low, found.high) == (pytest.approx(16.0, abs=0.35), pytest.approx(17.4, abs=0.35))


def test_a_dip_that_recovers_is_pooled_and_not_taken_for_the_end():
    # 20/40 and 28/40 pool to 24/40 = 0.6 at 2 and 3; then 0.6 -> 0.2 between 3 and 4 crosses at 3 + 0.1 / 0.4 = 3.25
    assert half_horizon(curve({1: 40, 2: 20, 3: 28, 4: 8})).value == pytest.approx(3.25)


def test_the_pool_weighs_horizons_by_their_episodes():
    # 0.2 of 10 and 0.8 of 30 pool to 26/40 = 0.65; to 0.05 at 3: 2 + 0.15 / 0.6 = 2.25
    points = [Point(1, wilson(2, 10)), Point(2, wilson(24, 30)), Point(3, wilson(1, 20))]
    assert half_horizon(points).value == pytest.approx(2.25)


def test_a_first_horizon_below_half_gives_zero():
    found = half_horizon(curve({1: 8, 2: 7, 3: 0}))
    assert (found.value, found.low, found.high, found.at_least) == (0.0, 0.0, 0.0, False)


def test_a_curve_that_never_falls_is_at_least_the_last_horizon():
    found = half_horizon(curve({1: 40, 16: 39, 32: 38}))
    assert (found.value, found.low, found.high, found.at_least) == (32.0, 32.0, 32.0, True)
    assert str(found).startswith("≥ 32.0")


def test_exactly_one_half_is_not_below():
    assert crossing(np.array([1.0, 2.0]), np.array([0.5, 0.0]), 0.5) == (1.0, False)
    assert half_horizon(curve({1: 16, 2: 24})).at_least  # pooled to 0.5 at both


def test_horizons_without_a_scored_episode_are_left_out():
    assert half_horizon([*curve({1: 40, 3: 0}), Point(2, wilson(0, 0), num_failed=40)]).value == pytest.approx(2.0)


def test_another_level_reads_the_same_curve_elsewhere():
    # 1.0 at 1, 0.5 at 2: 0.8 is crossed at 1.4
    assert half_horizon(curve({1: 40, 2: 20}), level=0.8).value == pytest.approx(1.4)


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
