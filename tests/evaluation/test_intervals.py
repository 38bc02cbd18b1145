import math

import numpy as np
import pytest

from agentgym.errors import ConfigError, FailureKind
from agentgym.evaluation.intervals import cluster_wilson, mean_interval, success_interval, wilson


def test_wilson_of_8_in_10_is_the_textbook_interval():
    # z² = 3.841459; centre (0.8 + z²/20) / (1 + z²/10) = 0.716740;
    # half width z·sqrt(0.016 + z²/400) / 1.3841459 = 0.226577
    interval = wilson(8, 10)
    assert interval.rate == 0.8
    assert interval.low == pytest.approx(0.490162, abs=1e-5)
    assert interval.high == pytest.approx(0.943318, abs=1e-5)


def test_wilson_gives_the_interval_printed_in_the_recipe():
    assert str(wilson(26, 240)) == "10.8 % [7.5, 15.4] (n = 240)"
    assert str(wilson(237, 240)) == "98.8 % [96.4, 99.6] (n = 240)"


def test_no_success_in_ten_still_leaves_room_above_zero():
    # upper bound at p = 0: z² / (n + z²) = 3.841459 / 13.841459
    interval = wilson(0, 10)
    assert (interval.low, interval.high) == (0.0, pytest.approx(0.277533, abs=1e-5))


def test_nothing_scored_knows_nothing():
    interval = wilson(0, 0)
    assert math.isnan(interval.rate)
    assert (interval.low, interval.high, str(interval)) == (0.0, 1.0, "none scored")
    assert interval.as_json()["rate"] is None


def test_a_success_too_many_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="11 successes of 10 attempts"):
        wilson(11, 10)


def test_a_level_in_percent_is_refused():
    with pytest.raises(ConfigError, match=r"confidence level 95; .* 0\.95"):
        wilson(1, 2, level=95)


def test_attempts_that_only_repeat_their_task_are_worth_one_each():
    # 20 tasks x 10 equal attempts: 200 attempts, but worth 20. Student's quantile of 19 degrees, 2.093, for Wilson's.
    repeated = cluster_wilson({f"t{i}": [i < 10] * 10 for i in range(20)})
    assert (repeated.rate, repeated.n, repeated.successes) == (0.5, 200, 100)
    # half width t·sqrt(0.25/20 + t²/1600) / (1 + t²/20), t² = 4.380750
    assert repeated.high - 0.5 == pytest.approx(0.211937, abs=1e-5)
    assert repeated.high - repeated.low > 2 * (wilson(100, 200).high - wilson(100, 200).low)


def test_attempts_that_differ_as_coins_do_are_worth_at_most_their_number():
    # every task has one success of two: the tasks show no spread, so that 40 attempts are worth 40 and not more
    even = cluster_wilson({f"t{i}": [True, False] for i in range(20)})
    squared = 4.380750
    half = math.sqrt(squared * (0.25 / 40 + squared / 6400)) / (1 + squared / 40)
    assert (even.low, even.high) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))


def test_a_single_attempt_per_task_gives_wilsons_own_interval():
    for won in (0, 1, 9, 10):
        clustered, plain = cluster_wilson({f"t{i}": [i < won] for i in range(10)}), wilson(won, 10)
        assert (clustered.low, clustered.high) == (pytest.approx(plain.low), pytest.approx(plain.high))


def test_tasks_that_all_succeed_do_not_make_certainty():
    # five tasks x 4 attempts, all won: Wilson on five, lower bound n / (n + z²) = 5 / 8.841459
    interval = cluster_wilson({f"t{i}": [True] * 4 for i in range(5)})
    assert (interval.rate, interval.n) == (1.0, 20)
    assert interval.low == pytest.approx(0.565518, abs=1e-5)
    assert interval.high == 1.0


def test_one_task_says_almost_nothing_of_the_others():
    interval = cluster_wilson({"a": [True, False, True, True]})
    assert interval.low < 0.05
    assert interval.high > 0.95


def test_a_mean_over_tasks_has_the_cluster_robust_interval_of_statsmodels():
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    values = {f"t{i}": rng.normal(i % 4, 1, size=1 + i % 3).tolist() for i in range(17)}
    flat = np.concatenate([*values.values()])
    groups = np.repeat(np.arange(17), [len(v) for v in values.values()])
    fit = sm.OLS(flat, np.ones(len(flat))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    ours = mean_interval(values)
    [[low, high]] = fit.conf_int()
    assert (ours.n, ours.num_tasks) == (len(flat), 17)
    np.testing.assert_allclose([ours.mean, ours.low, ours.high], [fit.params[0], low, high], rtol=0, atol=1e-9)


def test_wilson_is_that_of_scipy_and_statsmodels():
    from scipy.stats import binomtest
    from statsmodels.stats.proportion import proportion_confint

    for won, n, level in ((0, 7, 0.95), (3, 7, 0.9), (7, 7, 0.95), (240, 1000, 0.99)):
        ours = wilson(won, n, level)
        theirs = binomtest(won, n).proportion_ci(level, method="wilson")
        np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], rtol=0, atol=1e-9)
        peers = proportion_confint(won, n, 1 - level, method="wilson")
        np.testing.assert_allclose([ours.low, ours.high], peers, rtol=0, atol=1e-9)


def test_rewards_stay_within_their_bounds_and_others_are_refused():
    rewards = {"a": [1.0, 0.9], "b": [1.0, 1.0], "c": [1.0]}
    bounded, free = mean_interval(rewards, within_unit=True), mean_interval(rewards)
    assert bounded.mean == free.mean == pytest.approx(0.98)
    assert free.high > 1.0 > bounded.high > 0.98 > bounded.low
    with pytest.raises(ConfigError, match="leave within_unit out"):
        mean_interval({"a": [1.5]}, within_unit=True)
    with pytest.raises(ConfigError, match="leave within_unit out"):
        mean_interval({"a": [math.nan]}, within_unit=True)


def test_no_value_and_a_single_task_are_told_as_not_known():
    assert mean_interval({"a": []}).as_json() == {"mean": None, "low": None, "high": None, "n": 0, "num_tasks": 0}
    assert mean_interval({"a": [2.0, 4.0]}).as_json()["low"] is None
    assert str(mean_interval({})) == "none scored"


@pytest.mark.parametrize(("num_tasks", "attempts", "rate"), [(5, 4, 0.5), (10, 8, 0.5), (20, 2, 0.1), (10, 2, 0.97)])
def test_the_cluster_interval_covers_the_truth_where_tasks_are_few(num_tasks, attempts, rate):
    # Rates of tasks ~ Beta(3·rate, 3·(1 - rate)). 95 % nominal; 2000 draws have a standard error of 0.5 points.
    rng = np.random.default_rng(num_tasks)
    covered = 0
    for _ in range(2000):
        wins = rng.binomial(attempts, rng.beta(3 * rate, 3 * (1 - rate), num_tasks))
        found = cluster_wilson({str(i): [True] * won + [False] * (attempts - won) for i, won in enumerate(wins)})
        covered += found.low <= rate <= found.high
    assert covered / 2000 > 0.92


def test_our_failures_leave_the_denominator_and_the_models_own_stay(episode):
    episodes = [
        episode("test:a"),
        episode("test:b", reward=0.0),
        episode("test:c", reward=0.0, failure=FailureKind.POLICY),
        episode("test:d", reward=0.0, failure=FailureKind.INFRASTRUCTURE),
        episode("test:e", reward=0.0, failure=FailureKind.TASK),
    ]
    interval = success_interval(episodes)
    assert interval == wilson(1, 3)


def test_several_attempts_per_task_are_treated_as_clusters(episode):
    episodes = [episode(f"test:{t}", reward=float(t > 1), attempt=k) for t in range(4) for k in range(3)]
    interval = success_interval(episodes)
    assert (interval.successes, interval.n, interval.num_tasks) == (6, 12, 4)
    assert interval.high - interval.low > wilson(6, 12).high - wilson(6, 12).low


def test_an_attempt_with_part_credit_is_no_success(episode):
    assert success_interval([episode(reward=0.99)]).successes == 0
