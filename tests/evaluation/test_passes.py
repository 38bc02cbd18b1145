"""pass@k and pass^k: worked by hand, against enumeration, and with their denominators."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from agentgym.evaluation.intervals import cluster_wilson
from agentgym.evaluation.passes import pass_at_k, pass_hat_k, passes


def test_two_of_four_attempts_give_the_hand_worked_rates():
    # of the 6 pairs out of four, 1 has neither success and 1 has both
    assert pass_at_k(4, 2).tolist() == pytest.approx([0.5, 1 - 1 / 6, 1.0, 1.0])
    assert pass_hat_k(4, 2).tolist() == pytest.approx([0.5, 1 / 6, 0.0, 0.0])


@pytest.mark.parametrize("n", [1, 5, 9])
def test_both_rates_are_those_of_all_subsets(n):
    for c in range(n + 1):
        attempts = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            drawn = [*combinations(attempts, k)]
            assert pass_at_k(n, c)[k - 1] == pytest.approx(np.mean([any(x) for x in drawn]), abs=1e-12)
            assert pass_hat_k(n, c)[k - 1] == pytest.approx(np.mean([all(x) for x in drawn]), abs=1e-12)


def test_many_attempts_neither_overflow_nor_cancel():
    assert pass_at_k(10_000, 1)[0] == pytest.approx(1e-4, abs=1e-12)
    assert pass_hat_k(2000, 1000)[[4, 999, 1000]] == pytest.approx(
        [math.comb(1000, 5) / math.comb(2000, 5), 1 / math.comb(2000, 1000), 0], rel=1e-9
    )
    assert pass_at_k(2000, 3)[998] == pytest.approx(1 - math.comb(1997, 999) / math.comb(2000, 999), abs=1e-12)


def test_four_thousand_attempts_are_summed_up_for_every_k():
    found = passes({"a": [True] * 1000 + [False] * 3000, "b": [True] * 4000})
    assert len(found) == 4000
    assert found[1].all.mean == pytest.approx((math.comb(1000, 2) / math.comb(4000, 2) + 1) / 2)
    assert found[-1].all.mean == 0.5


def test_a_task_with_fewer_scored_attempts_leaves_the_denominator_of_larger_k():
    # a: 1 of 2, b: 2 of 2, c: 0 of 1. pass^1 = (1/2 + 1 + 0) / 3; at k = 2 only a and b are left: (0 + 1) / 2
    one, two = passes({"a": [True, False], "b": [True, True], "c": [False], "d": []})
    assert (one.all.mean, one.at_least_one.mean, one.all.num_tasks, one.left_out) == (0.5, 0.5, 3, 1)
    assert (two.all.mean, two.at_least_one.mean, two.all.num_tasks, two.left_out) == (0.5, 1.0, 2, 2)
    assert two.as_json()["num_tasks"] == 2
    assert two.as_json()["pass@k"]["rate"] == 1.0


def test_at_k_1_both_are_the_success_rate_with_its_interval():
    rng = np.random.default_rng(0)
    outcomes = {str(i): (rng.random(4) < rng.random()).tolist() for i in range(12)}
    [first, *_] = passes(outcomes)
    rate = cluster_wilson(outcomes)
    for found in (first.at_least_one, first.all):
        assert (found.mean, found.low, found.high) == pytest.approx((rate.rate, rate.low, rate.high), abs=1e-12)
        assert found.n == 48


def test_no_attempt_gives_no_rate():
    assert passes({}) == passes({"a": []}) == []


def test_the_intervals_hold_their_rate_and_widen_with_k():
    rng = np.random.default_rng(1)
    found = passes({str(i): (rng.random(8) < rng.random()).tolist() for i in range(30)})
    for each in found:
        assert 0 <= each.all.low <= each.all.mean <= each.all.high <= 1
        assert each.at_least_one.mean >= each.all.mean
    assert [each.all.mean for each in found] == sorted((each.all.mean for each in found), reverse=True)
