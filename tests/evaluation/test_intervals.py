import math

import numpy as np
import pytest

from agentgym.errors import ConfigError, FailureKind
from agentgym.evaluation.intervals import cluster_bootstrap, success_interval, wilson


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
    # 20 tasks x 10 equal attempts: 200 attempts, but 20 facts. The bootstrap must be as wide as for 20.
    once = {f"t{i}": [i < 10] for i in range(20)}
    repeated = {task: attempts * 10 for task, attempts in once.items()}
    narrow, wide = cluster_bootstrap(once), cluster_bootstrap(repeated)
    assert (wide.low, wide.high) == (narrow.low, narrow.high)
    assert wide.n == 200
    assert wide.high - wide.low > 2 * (wilson(100, 200).high - wilson(100, 200).low)


def test_the_bootstrap_of_two_tasks_has_three_outcomes():
    # two tasks, 1 and 0: draws are 0, 0.5, 1 with weights 1/4, 1/2, 1/4, so the middle 95 % is all of [0, 1]
    interval = cluster_bootstrap({"a": [True, True], "b": [False, False]})
    assert (interval.rate, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_tasks_that_all_succeed_do_not_make_certainty():
    # five tasks x 4 attempts, all won: Wilson on five, lower bound n / (n + z²) = 5 / 8.841459
    interval = cluster_bootstrap({f"t{i}": [True] * 4 for i in range(5)})
    assert (interval.rate, interval.n) == (1.0, 20)
    assert interval.low == pytest.approx(0.565518, abs=1e-5)
    assert interval.high == 1.0


def test_the_process_wide_generator_is_untouched():
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    cluster_bootstrap({"a": [True, False], "b": [False, False]})
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


def test_our_failures_leave_the_denominator_and_the_models_own_stay(episode):
    episodes = [
        episode("test:a"),
        episode("test:b", reward=0.0),
        episode("test:c", reward=0.0, failure=FailureKind.POLICY),
        episode("test:d", reward=0.0, failure=FailureKind.INFRASTRUCTURE),
        episode("test:e", reward=0.0, failure=FailureKind.TASK),
    ]
    interval = success_interval(episodes)
    assert (interval.successes, interval.n, interval.method) == (1, 3, "wilson")


def test_several_attempts_per_task_are_treated_as_clusters(episode):
    episodes = [episode(f"test:{t}", reward=float(t > 1), attempt=k) for t in range(4) for k in range(3)]
    interval = success_interval(episodes)
    assert (interval.successes, interval.n, interval.method) == (6, 12, "cluster bootstrap")


def test_an_attempt_with_part_credit_is_no_success(episode):
    assert success_interval([episode(reward=0.99)]).successes == 0
